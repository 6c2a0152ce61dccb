"""The backbone contract as an importable test suite (needs pytest), and its tools.

    from ndem_ocp.testing import BackboneContract

    class TestMine(BackboneContract):
        model = {"name": "hydra", "backbone": {...}, "heads": {...}}
        forces = "direct"

docs/backbones.md applies it to two backbones from outside this package.
"""

from fairchem_kit.lazy import lazy_names

# lazily: only the contract needs pytest, and `ndem bench` uses the rest
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.contract": ("BackboneContract",),
        f"{__name__}.precision": ("default_dtype", "use_float64_graphs"),
        f"{__name__}.runs": ("frames", "run_config", "small_data", "steps", "trainer_of"),
        f"{__name__}.views": ("Motion", "build", "noised", "random_motion"),
    },
)
