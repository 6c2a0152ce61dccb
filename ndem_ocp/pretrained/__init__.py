"""Starting from a checkpoint of fairchem, Frad, DP-TorchMD-NET or TorchMD-NET (section 5.4.3)."""

from ndem_ocp.pretrained.file import PretrainedError
from ndem_ocp.pretrained.load import init_from, load_pretrained
from ndem_ocp.pretrained.normalizers import take_normalizers
from ndem_ocp.pretrained.report import LoadReport

__all__ = ["LoadReport", "PretrainedError", "init_from", "load_pretrained", "take_normalizers"]
