"""Checkpoints that plain fairchem loads: `ndem export`."""

from fairchem_kit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {f"{__name__}.export": ("ExportReport", "export_checkpoint")}
)
