"""The contract of a backbone as an importable test suite (needs pytest), and its tools.

    from ndem_ocp.testing import BackboneContract

    class TestMine(BackboneContract):
        model = {"name": "hydra", "backbone": {...}, "heads": {...}}
        forces = "direct"

docs/backbones.md shows it on two backbones from outside this package.
"""

from ndem_ocp.testing.contract import BackboneContract
from ndem_ocp.testing.precision import default_dtype, use_float64_graphs
from ndem_ocp.testing.runs import frames, run_config, small_data, steps, trainer_of
from ndem_ocp.testing.views import Motion, build, noised, random_motion

__all__ = [
    "BackboneContract",
    "Motion",
    "build",
    "default_dtype",
    "frames",
    "noised",
    "random_motion",
    "run_config",
    "small_data",
    "steps",
    "trainer_of",
    "use_float64_graphs",
]
