"""Using a trained model: the ASE calculator."""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.ase_calculator": ("NDeMCalculator", "calculator"),
        f"{__name__}.structures": ("CalculatorError",),
    },
)
