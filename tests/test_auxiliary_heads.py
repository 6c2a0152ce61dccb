"""Which auxiliary head a model gets, what is refused, and the generic one of edge vectors."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ndem_ocp.method import NDeMSettings
from ndem_ocp.models import (
    EdgeVectorHead,
    ModelConfigError,
    TwoViewHydra,
    default_auxiliary_head,
    join_views,
    two_view_config,
)
from ndem_ocp.testing import build, frames, noised
from ndem_ocp.testing.views import collate, draw, outputs
from test_backbones import ESCN, ESEN, GEMNET, SCHNET, model_of, painn_warns

SHARED = NDeMSettings(head="shared")
ZERO = NDeMSettings(clean_forces="zero")


@pytest.fixture(scope="module")
def structures(demo_data):
    return frames(demo_data)[:3]


def built(model, auxiliary_head=None, settings=None):
    config = two_view_config(model, settings or NDeMSettings(), auxiliary_head)
    config.pop("name")
    torch.manual_seed(0)
    return TwoViewHydra(**config)


# --- the default ---------------------------------------------------------------------------------


class Speaks(nn.Module):
    ndem_auxiliary_head = "mine"


class SpeaksAtLength(nn.Module):
    ndem_auxiliary_head = {"module": "mine", "width": 3}  # noqa: RUF012


class Silent(nn.Module):
    pass


@pytest.mark.parametrize(
    ("backbone", "heads", "expected"),
    [
        ("painn_backbone", {"forces": {"module": "theirs"}}, {"module": "ndem_painn_vector_head"}),
        (f"{__name__}.Speaks", {"forces": {"module": "theirs"}}, {"module": "mine"}),
        (f"{__name__}.SpeaksAtLength", {}, {"module": "mine", "width": 3}),
        (f"{__name__}.Silent", {"forces": {"module": "x", "a": 1}}, {"module": "x", "a": 1}),
        (f"{__name__}.Silent", {"energy": {"module": "x"}}, {"module": "ndem_edge_vector_head"}),
    ],
)
def test_default_head_of_a_backbone(backbone, heads, expected):
    assert default_auxiliary_head({"backbone": {"model": backbone}, "heads": heads}) == expected


def test_arguments_without_a_module_are_the_defaults():
    config = two_view_config(model_of("schnet"), NDeMSettings(), {"num_radial": 5})
    assert config["auxiliary_head"] == {"module": "ndem_edge_vector_head", "num_radial": 5}


# --- models without a head named forces ----------------------------------------------------------


def without_forces():
    model = model_of("schnet_direct", **SCHNET)
    model["heads"].pop("forces")
    return model


def test_zero_reference_forces_need_no_force_head(structures):
    model = built(without_forces(), settings=ZERO)
    out = model(noised(structures, draw(structures)))
    assert set(out) == {"energy", "noisy_forces"}
    assert out["noisy_forces"].abs().sum() > 0
    model.eval()
    assert set(model(collate(structures))) == {"energy"}


@pytest.mark.parametrize(
    "settings", [NDeMSettings(), NDeMSettings(clean_forces="zero", head="shared")]
)
def test_otherwise_a_force_head_is_needed(settings):
    with pytest.raises(ModelConfigError, match="clean_forces: zero"):
        two_view_config(without_forces(), settings)


def test_shared_head_may_be_one_of_energy_and_gradient_forces(structures):
    """f' on the second view is what the model itself gives there."""
    model = built(model_of("gemnet_t", **GEMNET), settings=SHARED)
    marked = noised(structures, draw(structures))
    noisy = model(marked)["noisy_forces"]
    second = collate(structures)
    second.pos = second.pos + marked["ndem_eps"]
    alone = outputs(model(second))["forces"]
    assert torch.allclose(noisy, alone, rtol=1e-3, atol=1e-4 * alone.abs().max().item())
    noisy.square().sum().backward()
    assert any(p.grad is not None for p in model.parameters())


def test_shared_head_without_forces_says_what_to_set(structures):
    model = model_of("gemnet_t", **GEMNET, regress_forces=False)
    with pytest.raises(ValueError, match="regress_forces: True"):
        built(model, settings=SHARED)(noised(structures, draw(structures)))


@pytest.mark.parametrize("direct", [False, True])
def test_gradients_through_gemnets_quadruplets_are_warned_of(direct, caplog):
    two_view_config(
        model_of("gemnet_oc", quad_interaction=True, direct_forces=direct), NDeMSettings()
    )
    assert ("quad_interaction: False" in caplog.text) is not direct


# --- a gradient head as auxiliary head -----------------------------------------------------------


def test_a_gradient_head_with_weights_of_its_own_works(structures):
    """Every parameter gets a gradient, as DDP demands, the bias of its energy included."""
    model = built(model_of("esen", **ESEN), {"module": "esen_mlp_efs_head"}).train()
    out = outputs(model(noised(structures, draw(structures))))
    loss = (out["forces"] - out["noisy_forces"]).square().sum() + out["energy"].sum()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_head_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weights of its own"):
        built(model_of("gemnet_t", **GEMNET), {"module": "gemnet_t_energy_and_grad_force_head"})


def test_a_head_that_changes_the_main_forces_is_refused():
    with pytest.raises(ValueError, match="changes the backbone's direct_forces"):
        built(model_of("esen_direct", **ESEN), {"module": "esen_mlp_efs_head"})


# --- forces as the energy's gradient -------------------------------------------------------------


@painn_warns
def test_energy_gradient_head_refuses_what_is_switched_off(structures):
    model = model_of("painn_gradient", hidden_channels=8, num_layers=1, direct_forces=True)
    with pytest.raises(ValueError, match="direct_forces: False"):
        build(model, coefficient=0.0)(collate(structures))


def test_energy_gradient_head_refuses_what_cannot_be_differentiated(structures):
    model = model_of("escn", **ESCN)
    energy = {"module": "ndem_energy_gradient_head", "energy": {"module": "escn_energy_head"}}
    model.update(pass_through_head_outputs=True, heads={"energy": energy})
    with pytest.raises(ValueError, match="The energy of eSCNBackbone has no gradient with"):
        build(model, coefficient=0.0)(collate(structures))


# --- the edge-vector head ------------------------------------------------------------------------

BACKBONE = {"hidden_channels": 8, "cutoff": 4.0, "max_neighbors": 100}


def edge_head(**options) -> EdgeVectorHead:
    torch.manual_seed(0)
    return EdgeVectorHead(SimpleNamespace(**BACKBONE), **options)


def embedding(batch, channels=8):
    generator = torch.Generator().manual_seed(0)
    return {"node_embedding": torch.randn(batch.pos.shape[0], channels, generator=generator)}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_edge_vector_head_starts_at_order_one_or_below(structures, scale):
    batch = collate(structures)
    emb = {"node_embedding": scale * embedding(batch)["node_embedding"]}
    forces = edge_head()(batch, emb)["forces"]
    assert forces.shape == batch.pos.shape
    assert 1e-3 < forces.square().mean().sqrt() < 1


def test_edge_vector_head_is_smooth_where_a_neighbour_leaves(structures):
    """A pair of atoms, moved over the cutoff in small steps."""
    pair = copy.deepcopy(structures[0])
    for key in ("pos", "atomic_numbers", "fixed", "tags", "forces"):
        pair[key] = pair[key][:2]
    pair.natoms, pair.cell, pair.pos = 2, 30 * torch.eye(3)[None], torch.zeros(2, 3)
    head, values = edge_head(), []
    for distance in (3.9, 3.99, 3.999, 4.001):
        pair.pos = torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
        batch = collate([pair])
        values.append(head(batch, embedding(batch))["forces"].abs().max().item())
    assert values[0] > values[1] > values[2] >= values[3] == 0
    assert values[2] < 1e-6 * max(values[0], 1e-3) + 1e-7


def test_edge_vector_head_reads_several_kinds_of_features(structures):
    batch = collate(structures)
    h = embedding(batch)["node_embedding"]
    spherical = torch.stack([h, h + 1, h + 2, h + 3], dim=1)  # (N, 4, C), scalars first
    expected = edge_head()(batch, {"node_embedding": h})["forces"]
    assert torch.equal(edge_head()(batch, {"node_embedding": spherical})["forces"], expected)
    parts = {"blocks": [h[:, :3], h[:, 3:]]}
    assert torch.equal(edge_head(features="blocks")(batch, parts)["forces"], expected)


def test_edge_vector_head_says_what_it_lacks(structures):
    batch = collate(structures)
    with pytest.raises(ValueError, match="output has no 'h'"):
        edge_head(features="h")(batch, embedding(batch))
    with pytest.raises(
        ValueError, match="SimpleNamespace has no channels for ndem_edge_vector_head"
    ):
        EdgeVectorHead(SimpleNamespace(cutoff=4.0, max_neighbors=10))


def test_edge_vector_head_builds_its_graph_for_both_views(structures):
    """Edges of X do not describe X~: on the joint batch each structure has its own."""
    marked = noised(structures, draw(structures))
    joint = join_views(marked).joint
    head, emb = edge_head(), embedding(joint)
    forces = head(joint, emb)["forces"]
    half = joint.pos.shape[0] // 2
    first = collate(structures)
    alone = head(first, {"node_embedding": emb["node_embedding"][:half]})["forces"]
    assert torch.allclose(forces[:half], alone, atol=1e-6)
