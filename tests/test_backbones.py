"""The contract of ndem_ocp.testing on every backbone of fairchem 1.10, from its own config."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any, ClassVar

import pytest
from fairchem.core.common.utils import load_config

from conftest import ROOT
from fairchem_kit.training.normalizers import resolve_normalizers
from ndem_ocp.models import two_view_config
from ndem_ocp.testing import BackboneContract
from ndem_ocp.trainer.config import check_auxiliary_head, check_config, read_task

FOLDER = ROOT / "configs/backbones"


def model_of(name: str, **backbone: Any) -> dict[str, Any]:
    """The model section of configs/backbones/NAME.yml, its backbone made smaller."""
    model = copy.deepcopy(load_config(str(FOLDER / f"{name}.yml"))[0]["model"])
    model["backbone"].update(backbone)
    return model


SCHNET = {"hidden_channels": 16, "num_filters": 16, "num_interactions": 2, "cutoff": 4.0}
DIMENET = {
    "hidden_channels": 16,
    "int_emb_size": 8,
    "basis_emb_size": 4,
    "out_emb_channels": 16,
    "num_blocks": 1,
    "num_spherical": 3,
    "num_radial": 4,
    "num_output_layers": 1,
    "cutoff": 3.5,
}
PAINN = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 16, "cutoff": 4.0}
GEMNET = {"num_spherical": 3, "num_radial": 8, "num_blocks": 1, "cutoff": 3.5}
GEMNET |= {"emb_size_atom": 16, "emb_size_edge": 16}
SCN = {"num_interactions": 1, "sphere_channels": 8, "hidden_channels": 8, "cutoff": 4.0}
SCN |= {"sphere_channels_reduce": 8, "max_num_neighbors": 40, "num_sphere_samples": 128}
ESCN = {"num_layers": 1, "sphere_channels": 8, "hidden_channels": 8, "cutoff": 4.0}
ESCN |= {"edge_channels": 8, "max_neighbors": 40, "num_sphere_samples": 128}
ESEN = {"num_layers": 1, "sphere_channels": 8, "hidden_channels": 8, "cutoff": 4.0}
ESEN |= {"edge_channels": 8, "num_distance_basis": 16, "max_neighbors": 40}
EQUIFORMER = {"num_layers": 1, "sphere_channels": 8, "ffn_hidden_channels": 8, "max_radius": 4.0}
EQUIFORMER |= {"attn_hidden_channels": 8, "attn_alpha_channels": 8, "edge_channels": 8}
EQUIFORMER |= {"num_heads": 2, "max_neighbors": 40}


TORCHMD = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 4.0}

needs_torchmd = pytest.mark.skipif(
    importlib.util.find_spec("torchmdnet") is None, reason="torchmd-net is not installed"
)

# fairchem's PaiNN and DimeNet++ use what torch_geometric and torch deprecate.
painn_warns = pytest.mark.filterwarnings("ignore:'PaiNNMessage.jittable':UserWarning")
dimenet_warns = pytest.mark.filterwarnings("ignore:Using torch.cross without:UserWarning")


class TestSchNet(BackboneContract):
    name, config = "SchNet", "schnet"
    model = model_of(config, **SCHNET)
    forces = "gradient"


class TestSchNetDirect(BackboneContract):
    name, config = "SchNet", "schnet_direct"
    model = model_of(config, **SCHNET)
    note = "fairchem's SchNet has gradient forces only: the main force head is this package's."


@dimenet_warns
class TestDimeNetPlusPlus(BackboneContract):
    name, config = "DimeNet++", "dimenet_plus_plus"
    model = model_of(config, **DIMENET)
    forces = "gradient"
    conservative = False
    note = (
        "fairchem detaches the positions where it computes angles, so the forces lack that part "
        "of the energy's gradient, with NDeM or without."
    )


@painn_warns
class TestPaiNN(BackboneContract):
    name, config = "PaiNN", "painn"
    model = model_of(config, **PAINN)


@painn_warns
class TestPaiNNGradient(BackboneContract):
    name, config = "PaiNN", "painn_gradient"
    model = model_of(config, **PAINN)
    forces = "gradient"
    note = (
        "fairchem's painn_force_head differentiates the sum of the features, which is not an "
        "energy; the configuration has ndem_energy_gradient_head instead."
    )


class TestGemNetT(BackboneContract):
    name, config = "GemNet-T", "gemnet_t"
    model = model_of(config, **GEMNET)
    forces = "gradient"


class TestGemNetTDirect(BackboneContract):
    name, config = "GemNet-T", "gemnet_t_direct"
    model = model_of(config, **GEMNET)


class TestGemNetOC(BackboneContract):
    name, config = "GemNet-OC", "gemnet_oc"
    model = model_of(config, **GEMNET)
    forces = "gradient"
    float64 = False
    note = (
        "Parts of it are float32 always. With quadruplets the gradient is NaN where atoms stand "
        "in a line, as in a perfect crystal: the configuration has none."
    )


class TestGemNetOCDirect(BackboneContract):
    name, config = "GemNet-OC", "gemnet_oc_direct"
    model = model_of(config, **GEMNET)
    float64 = False
    note = "With quadruplets. Parts of it are float32 always."


class TestSCN(BackboneContract):
    name, config = "SCN", "scn"
    model = model_of(config, **SCN)
    tolerance = tolerance64 = 2e-2
    gain = 2.0
    learning_rate = 0.01
    ndem: ClassVar = {"coefficient": 10.0}
    note = (
        "Equivariant approximately: outputs are sums over points on a sphere (128 here), edge "
        "frames have random angles. It learns slowly from its small first outputs: checked with "
        "weights doubled and coefficient 10."
    )


class TestESCN(BackboneContract):
    name, config = "eSCN", "escn"
    model = model_of(config, **ESCN)
    tolerance = tolerance64 = 2e-2
    gain = 2.0
    learning_rate = 0.01
    note = (
        "Equivariant approximately: outputs are sums over points on a sphere (128 here), edge "
        "frames have random angles. Checked with weights doubled, its first outputs are near zero."
    )


class TestESEN(BackboneContract):
    name, config = "eSEN", "esen"
    model = model_of(config, **ESEN)
    forces = "gradient"
    tolerance, tolerance64 = 1e-2, 2e-3
    note = (
        "fairchem leaves the gradient out of the rotation of an edge along the y axis, where it is "
        "undefined, and crystals have such edges: turned off the axes, the float64 error is 1e-14."
    )


class TestESENDirect(BackboneContract):
    name, config = "eSEN", "esen_direct"
    model = model_of(config, **ESEN)


class TestEquiformerV2(BackboneContract):
    name, config = "EquiformerV2", "equiformer_v2"
    model = model_of(config, **EQUIFORMER)
    tolerance64 = 1e-4
    note = (
        "Its activation on a grid is equivariant approximately; with use_gate_act: True and "
        "use_grid_mlp: False it is to rounding (tests/test_model.py)."
    )


class TestOwnEquiformerV2(BackboneContract):
    name, config = "EquiformerV2 (ndem_ocp)", "equiformer_v2_own"
    model = model_of(config, **EQUIFORMER)
    tolerance64 = 1e-4
    note = "fairchem's EquiformerV2 with its parameters and its outputs, faster (docs/cost.md)."


@needs_torchmd
class TestTorchMDET(BackboneContract):
    name, config = "TorchMD-NET ET", "torchmd_et"
    model = model_of(config, **TORCHMD, num_heads=2)
    training_steps = 200
    forces = "gradient"
    gradient_tolerance = 1e-3
    note = (
        "Its energy has a kink where an atom's vectors vanish by symmetry, as in a perfect "
        "crystal: with the atoms off their sites the error of -dE/dX is 1e-6."
    )


@needs_torchmd
class TestTorchMDETDirect(BackboneContract):
    name, config = "TorchMD-NET ET", "torchmd_et_direct"
    model = model_of(config, **TORCHMD, num_heads=2)
    training_steps = 200


@needs_torchmd
class TestTensorNet(BackboneContract):
    name, config = "TensorNet", "torchmd_tensornet"
    model = model_of(config, **TORCHMD)
    training_steps = 100
    forces = "gradient"


@needs_torchmd
class TestTensorNetDirect(BackboneContract):
    name, config = "TensorNet", "torchmd_tensornet_direct"
    model = model_of(config, **TORCHMD)
    training_steps = 100


def test_every_configuration_has_its_class():
    classes = [cls for cls in BackboneContract.__subclasses__() if cls.__module__ == __name__]
    found = {cls.config for cls in classes}
    assert found == {path.stem for path in FOLDER.glob("*.yml")} - {"base"}


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yml") if p.stem != "base"))
def test_every_configuration_passes_the_trainers_checks(name):
    config, _, conflicts = load_config(str(FOLDER / f"{name}.yml"))
    assert conflicts == []
    settings, auxiliary_head, _ = read_task(config)
    assert settings.coefficient == 1
    check_config(config, settings)
    resolve_normalizers(config)
    check_auxiliary_head(two_view_config(config["model"], settings, auxiliary_head))
