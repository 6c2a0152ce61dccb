"""Our EquiformerV2 against fairchem's: same parameters, outputs and gradients, in every form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from e3nn.o3 import _s2grid
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config
from fairchem.core.datasets import LmdbDataset
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.models.equiformer_v2.so3 import CoefficientMappingModule, SO3_Rotation
from torch_geometric.data import Batch

import grids
from conftest import ROOT
from ndem_ocp.method import NDeMSettings
from ndem_ocp.method.views import as_corrupted
from ndem_ocp.models import two_view_config, with_second_view
from ndem_ocp.models.dens import dens_config
from ndem_ocp.models.equiformer import autograd
from ndem_ocp.models.equiformer.frames import edge_frames
from ndem_ocp.models.equiformer.layout import layout
from ndem_ocp.models.equiformer_names import to_ours, to_upstream

SMALL = {
    "num_layers": 2,
    "sphere_channels": 8,
    "attn_hidden_channels": 6,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 10,
    "edge_channels": 8,
    "max_radius": 4.0,
    "max_neighbors": 12,
    "lmax_list": [3],
    "mmax_list": [2],
    "grid_resolution": 8,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
}
FORMS: dict[str, dict[str, Any]] = {
    "31M": {"lmax_list": [4], "mmax_list": [2], "grid_resolution": 18},
    "153M": {"lmax_list": [6], "mmax_list": [3], "grid_resolution": 18},
    "all orders": {"lmax_list": [2], "mmax_list": [2]},
    "order 0 only": {"mmax_list": [0]},
    "order 1": {"mmax_list": [1]},
    "default grid": {"grid_resolution": None},
    "gates": {"use_gate_act": True, "use_grid_mlp": False},
    "S2 activation": {"use_grid_mlp": False},
    "S2, not separable": {"use_grid_mlp": False, "use_sep_s2_act": False},
    "grid MLP, not separable": {"use_sep_s2_act": False},
    "radial weights shared": {"use_m_share_rad": True},
    "species shared": {"share_atom_edge_embedding": True},
    "no species on edges": {"use_atom_edge_embedding": False},
    "RMS norm, dropout": {"norm_type": "rms_norm_sh", "proj_drop": 0.1},
    "layer norm": {"norm_type": "layer_norm"},
    "no attention norm": {"use_attn_renorm": False},
    "no dropout": {"alpha_drop": 0.0, "drop_path_rate": 0.0},
    "uniform": {"weight_init": "uniform"},
    "checkpointing": {"activation_checkpoint": True},
    "energies by mean": {"mean": True},
}


def model_config(**backbone: Any) -> dict[str, Any]:
    """fairchem's EquiformerV2 as a hydra model."""
    model = copy.deepcopy(load_config(str(ROOT / "configs/oc20/small.yml"))[0]["model"])
    reduce = "mean" if backbone.pop("mean", False) else "sum"
    model = to_upstream(model)
    model["backbone"].update({**SMALL, **backbone})
    model["heads"]["energy"]["reduce"] = reduce
    return model


def build(model: dict[str, Any], weights: dict[str, torch.Tensor] | None = None):
    arguments = dict(model)
    torch.manual_seed(0)
    built = registry.get_model_class(arguments.pop("name"))(**arguments)
    if weights is not None:
        built.load_state_dict(weights)
    return built


@pytest.fixture(scope="module")
def records(demo_data) -> list[Any]:
    data = LmdbDataset({"src": str(demo_data / "train")})
    return [data[index] for index in (0, 15, 39)]


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """A default type; in float64 both sides agree to rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.param))
    yield torch.get_default_dtype()
    torch.set_default_dtype(before)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def batch_of(records: list[Any], dtype: torch.dtype) -> Batch:
    batch = Batch.from_data_list(copy.deepcopy(records))
    batch.natoms = torch.tensor([len(record.pos) for record in records])
    batch.pos = batch.pos.to(dtype)
    return batch


def flat(out: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: next(iter(value.values())) if isinstance(value, dict) else value
        for name, value in out.items()
    }


def outputs_and_gradients(model, batch, seed=3):
    torch.manual_seed(seed)  # edge frames, dropout
    out = flat(model(batch))
    weights = {name: torch.sin(torch.arange(v.numel()) + 1.0).view_as(v) for name, v in out.items()}
    sum((out[name] * weights[name]).sum() for name in out).backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(upstream, ours, tolerance):
    """Relative errors of each output and of the whole gradient; of each parameter's, whose sums
    may cancel, ten times as much."""
    for what, found, expected in zip(("outputs", "gradient"), ours, upstream):
        assert found.keys() == expected.keys()
        missing = {name for name, value in expected.items() if value is None}
        assert {name for name, value in found.items() if value is None} == missing
        total = total_error = 0.0
        for name in expected.keys() - missing:
            size = float(expected[name].detach().norm())
            error = float((found[name] - expected[name]).detach().norm())
            allowed = tolerance if what == "outputs" else 10 * tolerance
            assert error < allowed * max(size, 1e-6), f"{name}: {error / max(size, 1e-6):.1e}"
            total, total_error = total + size**2, total_error + error**2
        assert total_error**0.5 < tolerance * total**0.5, what


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_are_upstreams(records, dtype, form, training):
    config = model_config(**FORMS[form])
    # fairchem's checkpointing loses the gradient in eval mode
    upstream = build(model_config(**{**FORMS[form], "activation_checkpoint": False}))
    upstream.train(training)
    ours = build(to_ours(config)).train(training)
    batch = batch_of(records, dtype)
    expected = outputs_and_gradients(upstream, batch)
    found = outputs_and_gradients(ours, batch)  # the same seed gave it the same weights
    assert expected[0]["forces"].abs().max() > 1e-6
    assert_same(expected, found, 1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_at_full_width_float32_agrees_to_five_digits(records, training):
    """One layer of the 31M model; narrow ones, above, have sums that cancel."""
    model = to_upstream(load_config(str(ROOT / "configs/oc20/31M.yml"))[0]["model"])
    model["backbone"].update(num_layers=1, max_neighbors=8)
    batch = batch_of(records[:1], torch.float32)
    results = [
        outputs_and_gradients(build(config).train(training), batch)
        for config in (model, to_ours(model))
    ]
    assert_same(*results, 1e-5)


def test_the_grids_of_the_tests_are_e3nns(dtype):
    for given in ((3, 8, 8), (2, 6, 5)):
        for _ in range(2):
            found = grids.remembered(*given, device="cpu")
            for tensor, expected in zip(found, grids.made(*given, device="cpu"), strict=True):
                assert tensor.dtype == dtype
                assert torch.equal(tensor, expected)
                tensor.zero_()  # one's own


def test_grids_are_derived_once_for_each_degree(monkeypatch):
    asked = []

    def counted(lmax, *others, **named):
        asked.append(lmax)
        return grids.made(lmax, *others, **named)

    monkeypatch.setattr(_s2grid, "spherical_harmonics_s2_grid", counted)
    config = model_config()
    upstream = build(config).backbone.SO3_grid
    assert len(asked) > len(set(asked))
    asked.clear()
    ours = build(to_ours(config)).backbone.SO3_grid
    assert sorted(asked) == list(range(len(upstream)))
    assert _s2grid.spherical_harmonics_s2_grid is counted
    for expected, found in zip(upstream, ours, strict=True):
        for grid, of_ours in zip(expected, found, strict=True):
            assert torch.equal(of_ours.to_grid_mat, grid.to_grid_mat)
            assert torch.equal(of_ours.from_grid_mat, grid.from_grid_mat)


def test_parameters_are_upstreams():
    config = model_config()
    upstream, ours = build(config), build(to_ours(config))
    expected = {name: value.shape for name, value in upstream.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected
    assert set(ours.backbone.no_weight_decay()) == set(upstream.backbone.no_weight_decay())
    for name, value in upstream.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_pieces_do_not_change_the_result(records, float64, monkeypatch):
    batch, config = batch_of(records, torch.float64), to_ours(model_config())
    whole = outputs_and_gradients(build(config), batch)
    for name in ("CPU_BYTES", "CPU_GRID_BYTES"):
        monkeypatch.setattr(autograd, name, 1)  # 16 rows each
    assert_same(whole, outputs_and_gradients(build(config), batch), 1e-12)


@pytest.mark.parametrize("viewed", [(0, 1, 2), (1,), ()], ids=["all", "one", "none"])
def test_two_views_are_upstreams(records, float64, viewed):
    """The heads of ours see one view each, upstream's both; the result is the same."""
    batch = batch_of(records, torch.float64)
    has_view = torch.isin(batch.batch, torch.tensor(viewed, dtype=torch.long))
    eps = 0.05 * torch.sin(torch.arange(len(batch.pos) * 3.0).view(-1, 3)) * has_view[:, None]
    plain = model_config(drop_path_rate=0.0, alpha_drop=0.0)
    models = [build(two_view_config(config, NDeMSettings())) for config in (plain, to_ours(plain))]
    assert [model._heads_take_one_view() for model in models] == [False, True]
    results = [outputs_and_gradients(m, with_second_view(batch, eps, has_view)) for m in models]
    assert_same(*results, 1e-12)
    assert bool(results[1][0]["noisy_forces"].abs().sum()) == bool(viewed)


def test_dens_is_upstreams(records, float64):
    batch = batch_of(records, torch.float64)
    told = batch.force.double()
    plain = model_config(drop_path_rate=0.0)
    settings = NDeMSettings(objective="dens")
    models = [build(dens_config(config, settings)) for config in (plain, to_ours(plain))]
    shown = as_corrupted(batch, 0.01 * torch.ones_like(batch.pos), told)
    assert_same(*(outputs_and_gradients(model, shown) for model in models), 1e-12)


def test_two_forwards_before_a_backward_with_checkpointing(records, float64):
    """fairchem's backbone keeps the frames on its modules, and this gives wrong gradients there."""
    batches = [batch_of(records[:1], torch.float64), batch_of(records[1:], torch.float64)]
    gradients = []
    for checkpointing in (False, True):
        model = build(to_ours(model_config(activation_checkpoint=checkpointing)))
        torch.manual_seed(0)
        sum(value.sum() for batch in batches for value in flat(model(batch)).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_same((gradients[0],), (gradients[1],), 1e-12)


@pytest.mark.parametrize(("lmax", "mmax"), [(6, 3), (4, 2), (3, 0), (2, 2)])
def test_frames_are_upstreams_wigner_matrices_by_order(float64, lmax, mmax):
    vectors = torch.randn(30, 3)
    rotation = SO3_Rotation(lmax)
    torch.manual_seed(1)
    rotation.set_wigner(init_edge_rot_mat(vectors))
    kept = rotation.wigner[:, rotation.mapping.coefficient_idx(lmax, mmax)]
    by_order = CoefficientMappingModule([lmax], [mmax]).to_m
    torch.manual_seed(1)
    found = edge_frames(vectors, layout(lmax, mmax))
    assert torch.allclose(found, torch.einsum("ba,eak->ebk", by_order, kept), atol=1e-13, rtol=0)


def test_bfloat16_autocast_loses_no_more_than_upstreams(records):
    config = model_config(drop_path_rate=0.0, alpha_drop=0.0)
    batch, errors = batch_of(records, torch.float32), []
    for model in (build(config), build(to_ours(config))):
        exact = outputs_and_gradients(model, batch)[0]
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, gradients = outputs_and_gradients(model, batch)
        assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)
        loss = {name: (rounded[name] - exact[name]).detach().norm() for name in exact}
        errors.append({name: float(value) for name, value in loss.items()})
    upstream, ours = errors
    for name, error in ours.items():
        assert 0 < error < 1.5 * upstream[name], (name, errors)


def test_evaluation_keeps_nothing_for_a_gradient(records):
    model = build(to_ours(model_config())).eval()
    with torch.no_grad():
        out = flat(model(batch_of(records, torch.float32)))
    assert not any(value.requires_grad for value in out.values())


def test_several_resolutions_are_refused():
    config = to_ours(model_config(lmax_list=[2, 3], mmax_list=[1, 1]))
    with pytest.raises(ValueError, match=r"one resolution.*equiformer_v2_backbone"):
        build(config)


def test_a_head_of_fairchem_that_rotates_is_refused(records):
    config = to_ours(model_config())
    config["heads"]["forces"]["module"] = "equiformerV2_vector_head"
    with pytest.raises(ValueError, match=r"use ndem_ocp\.EquiformerV2ForceHead"):
        build(config)(batch_of(records, torch.float32))


def test_an_auxiliary_head_of_fairchem_becomes_ours():
    settings, head = NDeMSettings(), {"module": "equiformerV2_vector_head"}
    config = two_view_config(to_ours(model_config()), settings, head)
    assert config["auxiliary_head"]["module"] == "ndem_ocp.EquiformerV2ForceHead"
    assert two_view_config(model_config(), settings, head)["auxiliary_head"] == head


def test_graph_parallelism_is_refused_with_what_to_do(records, monkeypatch):
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    with pytest.raises(ValueError, match=r"graph-parallel.*equiformer_v2_backbone"):
        build(to_ours(model_config()))(batch_of(records, torch.float32))


def test_an_element_out_of_range_is_named(records):
    batch = batch_of(records, torch.float32)
    batch.atomic_numbers[0] = 95
    with pytest.raises(ValueError, match=r"atomic number 95.*max_num_elements: 90"):
        build(to_ours(model_config()))(batch)


def test_names_go_both_ways():
    config = model_config()
    assert to_upstream(to_ours(config)) == config
    assert to_ours(config)["backbone"]["model"] == "ndem_ocp.EquiformerV2Backbone"
    assert config["backbone"]["model"] == "equiformer_v2_backbone"
