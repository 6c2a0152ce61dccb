"""TorchMD-NET backbones: equal to torchmd-net's own, equivariant, differentiable twice."""

from __future__ import annotations

import sys

import pytest
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Batch, Data

pytest.importorskip("torchmdnet", reason="torchmd-net is not installed (extra: molecules)")

from ndem_ocp.models import (
    EnergyGradientHead,
    TorchMDDipoleHead,
    TorchMDETBackbone,
    TorchMDScalarHead,
    TorchMDSpatialExtentHead,
    TorchMDTensorNetBackbone,
    TorchMDVectorHead,
)
from ndem_ocp.models.torchmd import require_torchmd

SIZE = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8}
BACKBONES = {
    "et": lambda **given: TorchMDETBackbone(num_heads=2, **SIZE, **given),
    "tensornet": lambda **given: TorchMDTensorNetBackbone(**SIZE, **given),
}


def molecules(count: int = 3, atoms: int = 7, cell: float = 0.0, seed: int = 0) -> Batch:
    """Random clusters, without a cell or in a cubic one of edge ``cell`` (Angstrom)."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        n = atoms + index
        grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[
            torch.randperm(27, generator=generator)[:n]
        ]
        pos = 1.4 * grid + 0.2 * torch.randn(n, 3, generator=generator)
        items.append(
            Data(
                pos=pos,
                atomic_numbers=torch.randint(1, 9, (n,), generator=generator),
                natoms=n,
                cell=cell * torch.eye(3)[None],
                pbc=torch.full((1, 3), cell > 0),
                fixed=torch.zeros(n),
            )
        )
    return Batch.from_data_list(items)


@pytest.fixture(params=BACKBONES)
def backbone(request):
    torch.manual_seed(1)
    return BACKBONES[request.param](use_pbc=True, max_neighbors=500)


@pytest.mark.parametrize("use_pbc", [True, False])
@pytest.mark.parametrize("name", ["et", "tensornet"])
def test_features_are_torchmd_nets(name, use_pbc):
    """The network with fairchem's edges gives what torchmd-net's own class gives with its own."""
    torch.manual_seed(0)
    ours = BACKBONES[name](use_pbc=use_pbc, cutoff=4.0)
    classes = {"et": ("torchmd_et", "TorchMD_ET"), "tensornet": ("tensornet", "TensorNet")}
    module, cls = classes[name]
    heads = {"num_heads": 2, "trainable_rbf": False} if name == "et" else {"static_shapes": False}
    theirs = getattr(require_torchmd(f"models.{module}"), cls)(
        **SIZE, cutoff_upper=4.0, max_num_neighbors=64, **heads
    )
    missing, unexpected = theirs.load_state_dict(
        ours.representation_model.state_dict(), strict=False
    )
    assert missing == ["distance.box"]
    assert not unexpected
    batch = molecules()
    scalars, vectors, *_ = theirs(batch.atomic_numbers, batch.pos.clone(), batch.batch)
    out = ours(batch)
    torch.testing.assert_close(out["node_embedding"], scalars, rtol=1e-4, atol=1e-5)
    if name == "et":
        torch.testing.assert_close(out["vector_embedding"], vectors, rtol=1e-4, atol=1e-5)


def test_energy_and_forces_are_torchmd_nets():
    """A whole TorchMD_Net with derivative=True against our backbone and gradient head."""
    torch.manual_seed(0)
    ours = BACKBONES["et"](use_pbc=True)
    head = EnergyGradientHead(ours, {"module": "torchmd_scalar_head"})
    model = require_torchmd("models.model")
    et = require_torchmd("models.torchmd_et").TorchMD_ET(
        **SIZE, num_heads=2, trainable_rbf=False, max_num_neighbors=64
    )
    theirs = model.TorchMD_Net(et, head.energy.output_model, derivative=True)
    et.load_state_dict(ours.representation_model.state_dict(), strict=False)
    batch = molecules()
    energy, forces = theirs(batch.atomic_numbers, batch.pos.clone(), batch.batch)
    out = head(batch, ours(batch))
    torch.testing.assert_close(out["energy"], energy.view(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["forces"], forces, rtol=1e-3, atol=1e-5)


def test_a_cell_adds_the_neighbours_across_it(backbone):
    """Where the cell's origin lies does not matter, and that there is a cell does."""
    scalar, vector = TorchMDScalarHead(backbone), TorchMDVectorHead(backbone)
    batch, moved, alone = molecules(cell=5.0), molecules(cell=5.0), molecules(cell=0.0)
    batch.pos = batch.pos % 5.0
    moved.pos = (batch.pos + torch.tensor([2.0, 1.0, -1.5])) % 5.0
    for head, output in ((scalar, "energy"), (vector, "forces")):
        torch.testing.assert_close(
            head(moved, backbone(moved))[output],
            head(batch, backbone(batch))[output],
            rtol=1e-3,
            atol=1e-4,
        )
    difference = scalar(alone, backbone(alone))["energy"] - scalar(batch, backbone(batch))["energy"]
    assert difference.abs().min() > 1e-4


@pytest.mark.parametrize("reflect", [False, True])
def test_vector_head_turns_with_the_structure(backbone, reflect):
    head = TorchMDVectorHead(backbone)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]
    if (torch.det(rotation) < 0) != reflect:
        rotation = -rotation
    batch, turned = molecules(), molecules()
    turned.pos = turned.pos @ rotation.T
    forces = head(batch, backbone(batch))["forces"]
    assert forces.abs().max() > 1e-4
    torch.testing.assert_close(
        head(turned, backbone(turned))["forces"], forces @ rotation.T, rtol=1e-3, atol=1e-5
    )


def test_gradient_forces_are_minus_the_slope_of_the_energy(backbone):
    head = EnergyGradientHead(backbone, {"module": "torchmd_scalar_head"}, force_scale=3.0)
    batch = molecules()
    forces = head(batch, backbone(batch))["forces"]
    direction = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(2))
    direction /= direction.norm()
    step = 2e-2
    ends = []
    for sign in (1, -1):
        moved = molecules()
        moved.pos = moved.pos + sign * step * direction
        ends.append(head(moved, backbone(moved))["energy"].sum())
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((forces * direction).sum(), -3.0 * slope, rtol=2e-2, atol=1e-3)


def test_a_loss_on_gradient_forces_reaches_every_weight(backbone):
    head = EnergyGradientHead(backbone, {"module": "torchmd_scalar_head"})
    batch = molecules()
    out = head(batch, backbone(batch))
    (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # ET's vectors are zero before its first layer, so what it makes of them there is zero.
    assert [n for n in without if "attention_layers.0.vec_proj" not in n] == []


def test_evaluation_keeps_no_graph(backbone):
    head = EnergyGradientHead(backbone, {"module": "torchmd_scalar_head"})
    batch = molecules()
    with torch.no_grad():
        out = head(batch, backbone(batch))
    assert not out["energy"].requires_grad or not out["forces"].requires_grad
    assert out["forces"].abs().max() > 0


@pytest.mark.parametrize(
    ("cls", "output"), [(TorchMDDipoleHead, "mu"), (TorchMDSpatialExtentHead, "r2")]
)
def test_qm9_heads_do_not_depend_on_where_the_molecule_is(backbone, cls, output):
    head = cls(backbone)
    batch, moved = molecules(), molecules()
    moved.pos = moved.pos + torch.tensor([3.0, -2.0, 1.0])
    value = head(batch, backbone(batch))[output]
    assert value.shape == (3,)
    torch.testing.assert_close(head(moved, backbone(moved))[output], value, rtol=1e-3, atol=1e-3)
    if output == "mu":
        assert (value >= 0).all()


def test_one_atom_has_a_vector_output(backbone):
    """torchmd-net squeezes; a batch of one atom must still give (1, 3)."""
    batch = molecules(count=1, atoms=1, cell=3.0)
    assert TorchMDVectorHead(backbone)(batch, backbone(batch))["forces"].shape == (1, 3)


def test_registered_names():
    for name in ("torchmd_et_backbone", "torchmd_tensornet_backbone", "torchmd_scalar_head"):
        assert registry.get_model_class(name).__module__.startswith("ndem_ocp.models.torchmd")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmdnet.models.torchmd_et", None)
    with pytest.raises(ImportError, match=r"pip install '.*\[molecules\]'"):
        require_torchmd("models.torchmd_et")
