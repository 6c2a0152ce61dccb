"""A trained model in use: ASE's calculator, and checkpoints that plain fairchem loads."""

from ndem_ocp.inference.ase_calculator import CalculatorError, NDeMCalculator, calculator
from ndem_ocp.inference.export import ExportReport, export_checkpoint

__all__ = ["CalculatorError", "ExportReport", "NDeMCalculator", "calculator", "export_checkpoint"]
