"""The two-view model: what it adds, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config
from fairchem.core.datasets import create_dataset, data_list_collater
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.drop import GraphDropPath

from conftest import ROOT, tiny_config
from helpers import default_dtype, on_meta_device, use_float64_graphs
from ndem_ocp.method import Forces, NDeMSettings, Noise, draw_noise, ndem_loss, step_generator
from ndem_ocp.models import ModelConfigError, join_views, two_view_config, with_second_view
from ndem_ocp.models.views import JOINT

KEYS = {"y": "energy", "force": "forces"}
# Gate instead of S2 activations, which a finite grid resolves only approximately, and no choice
# among equally distant neighbours: what is left of EquiformerV2 is equivariant to rounding.
EXACT = {"use_gate_act": True, "use_grid_mlp": False, "max_neighbors": 100, "max_radius": 3.3}


@pytest.fixture(scope="module")
def batch(demo_data):
    source = {"src": str(demo_data / "train"), "format": "lmdb", "key_mapping": KEYS}
    dataset = create_dataset(source, "train")
    return data_list_collater([dataset[i] for i in range(3)], otf_graph=True)


@pytest.fixture
def float64():
    with default_dtype(torch.float64):
        yield


def build(demo_data, dtype=torch.float32, backbone=None, auxiliary_head=None, **ndem):
    model = tiny_config(demo_data)["model"]
    model["backbone"].update(backbone or {})
    config = two_view_config(model, NDeMSettings.from_mapping(ndem), auxiliary_head)
    torch.manual_seed(0)
    model = registry.get_model_class(config.pop("name"))(**config).to(dtype)
    if dtype == torch.float64:
        use_float64_graphs(model.backbone)
    return model


def perturbed(batch, dtype=torch.float32, step=0, **ndem):
    settings = NDeMSettings.from_mapping({"sigma_max": 0.1, **ndem})
    noise = draw_noise(
        batch.pos.to(dtype), batch.batch, 3, batch.fixed, settings, step_generator(0, 0, step)
    )
    clean = copy.copy(batch)
    clean.pos = batch.pos.to(dtype)
    clean.cell = batch.cell.to(dtype)
    return with_second_view(clean, noise.eps, noise.viewed), clean, noise, settings


def snapshot(batch):
    return {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}


# --- joining and parting -------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_joint_batch_is_what_the_collater_would_make(batch, fraction):
    """Against torch_geometric's own collation of clean and perturbed structures."""
    marked, clean, noise, _ = perturbed(batch, fraction=fraction)
    views = join_views(marked)
    moved = [g for g in range(3) if bool(noise.viewed[batch.batch == g].all())]
    data = clean.to_data_list()
    for g in moved:
        copy_of = data[g].clone()
        copy_of.pos = copy_of.pos + noise.eps[batch.batch == g]
        data.append(copy_of)
    expected = data_list_collater(data, otf_graph=True)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(views.joint[key], value), key
    assert torch.equal(views.joint.batch, expected.batch)
    assert torch.equal(views.joint.ptr, expected.ptr)
    assert views.joint.num_graphs == 3 + len(moved)
    for index, part in enumerate(views.joint.to_data_list()):
        assert torch.equal(part.pos, data[index].pos)


def test_clean_batch_is_never_written_to(batch, demo_data):
    before = snapshot(batch)
    marked, *_ = perturbed(batch)
    build(demo_data)(marked)["noisy_forces"].sum().backward()
    after = snapshot(batch)
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key


def test_two_views_in_one_forward_equal_two_forwards(batch, demo_data, float64):
    """Each structure of a joint batch is computed as it would be alone."""
    model = build(demo_data, torch.float64, backbone=EXACT).eval()
    marked, clean, noise, _ = perturbed(batch, torch.float64)
    joint = model(marked)
    plain = model(clean)
    second = copy.copy(clean)
    second.pos = clean.pos + noise.eps
    second[JOINT] = True  # wakes the auxiliary head
    alone = HydraModel.forward(model, second)["noisy_forces"]["noisy_forces"]
    for a, b in (
        (joint["energy"]["energy"], plain["energy"]["energy"]),
        (joint["forces"]["forces"], plain["forces"]["forces"]),
        (joint["noisy_forces"], alone),
    ):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_structures_without_second_view_have_zero_noisy_forces(batch, demo_data):
    marked, _, noise, _ = perturbed(batch, fraction=0.3)
    noisy = build(demo_data)(marked)["noisy_forces"]
    assert (noisy[~noise.viewed] == 0).all()
    assert (noisy[noise.viewed].abs().sum(-1) > 0).all()


# --- the auxiliary head --------------------------------------------------------------------------


def test_evaluation_never_runs_the_auxiliary_head(batch, demo_data):
    model = build(demo_data).eval()
    plain_config = tiny_config(demo_data)["model"]
    torch.manual_seed(0)
    plain = registry.get_model_class(plain_config.pop("name"))(**plain_config).eval()

    def fail(*_):
        raise AssertionError("the auxiliary head ran")

    model.output_heads["noisy_forces"].head.register_forward_pre_hook(fail)
    torch.manual_seed(3)
    ours = model(batch)
    torch.manual_seed(3)
    theirs = plain(batch)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name][name], theirs[name][name])


def test_auxiliary_head_leaves_initial_weights_and_rng_alone(demo_data):
    config = tiny_config(demo_data)["model"]
    torch.manual_seed(0)
    plain = registry.get_model_class(config.pop("name"))(**config)
    state = torch.random.get_rng_state()
    model = build(demo_data)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_shared_head_is_the_main_head_on_the_second_view(batch, demo_data):
    model = build(demo_data, head="shared")
    assert "noisy_forces" not in model.output_heads
    marked, _, _, _ = perturbed(batch)
    out = model(marked)
    out["noisy_forces"].square().sum().backward()
    assert any(p.grad is not None for p in model.output_heads["forces"].parameters())


def test_the_learned_curvature_factor_is_a_parameter_of_the_head(demo_data):
    assert build(demo_data).curvature_factor is None
    model = build(demo_data, learned_curvature=True)
    assert model.curvature_factor.item() == 1.0
    assert any("log_curvature" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update(name="equiformer_v2"), ["hydra", "equiformer_v2", "docs/configs.md"]),
        (lambda m: m["heads"].pop("forces"), ["heads", "forces", "energy", "pass_through"]),
        (lambda m: m.update(name="schnet"), ["hydra", "configs/backbones/schnet.yml"]),
        (
            lambda m: m.update(name="gp_gemnet_t"),
            ["distance_vec", "configs/backbones/gemnet_t.yml"],
        ),
        (lambda m: m.update(name="escn_export"), ["torch.export", "configs/backbones/escn.yml"]),
        (lambda m: m.update(name="my_model"), ["my_model", "docs/backbones.md"]),
    ],
)
def test_models_that_cannot_train_are_refused_with_what_to_do(demo_data, edit, words):
    model = tiny_config(demo_data)["model"]
    edit(model)
    with pytest.raises(ModelConfigError) as error:
        two_view_config(model, NDeMSettings())
    for word in words:
        assert word in str(error.value)


def test_precomputed_graphs_are_refused(demo_data):
    with pytest.raises(ValueError, match="otf_graph: True"):
        build(demo_data, backbone={"otf_graph": False})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [("153M.yml", 153.60), ("153M_ndem.yml", 157.49), ("153M_energy2_ndem.yml", 157.49)],
)
def test_parameter_counts_are_the_papers(name, millions):
    config = load_config(str(ROOT / "configs/oc20" / name))[0]
    model = config["model"]
    if "ndem" in name:
        model = two_view_config(model, NDeMSettings.from_mapping(config["task"]["ndem"]))
    # Weights on the meta device; fairchem's constructors fill some buffers from numpy.
    parameters = meta_parameters(model)
    assert sum(parameters) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.slow
def test_a_full_width_head_gives_the_dens_count():
    config = load_config(str(ROOT / "configs/oc20/153M_ndem.yml"))[0]
    model = two_view_config(config["model"], NDeMSettings(), {"width": 1.0})
    assert sum(meta_parameters(model)) / 1e6 == pytest.approx(160.5, abs=0.05)


def meta_parameters(model: dict) -> list[int]:
    model = copy.deepcopy(model)
    with on_meta_device():
        built = registry.get_model_class(model.pop("name"))(**model)
    return [p.numel() for p in built.parameters()]


# --- symmetry and gradients ----------------------------------------------------------------------


def rotated(marked, turn):
    out = copy.copy(marked)
    out.pos = marked.pos @ turn
    out.cell = marked.cell @ turn
    out["ndem_eps"] = marked["ndem_eps"] @ turn
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_both_heads_and_the_loss_are_equivariant(batch, demo_data, dtype, tolerance):
    with default_dtype(dtype):
        check_equivariance(batch, demo_data, dtype, tolerance)


def check_equivariance(batch, demo_data, dtype, tolerance):
    model = build(demo_data, dtype, backbone=EXACT).eval()
    marked, _, noise, settings = perturbed(batch, dtype)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turn = (turn * torch.linalg.det(turn)).to(dtype)  # a rotation, not a reflection
    turned_batch = rotated(marked, turn)
    out, turned = model(marked), model(turned_batch)

    def close(a, b):
        return (a - b).abs().max() <= tolerance * a.abs().max()

    assert close(out["energy"]["energy"], turned["energy"]["energy"])
    assert close(out["forces"]["forces"] @ turn, turned["forces"]["forces"])
    assert close(out["noisy_forces"] @ turn, turned["noisy_forces"])
    free = batch.fixed == 0
    losses = [
        ndem_loss(Forces(o["forces"]["forces"], o["noisy_forces"], None), n, free, settings).loss
        for o, n in ((out, noise), (turned, noise._replace(eps=noise.eps @ turn)))
    ]
    assert close(*losses)


def loss_of(model, marked, noise: Noise, settings, free):
    out = model(marked)
    forces = Forces(out["forces"]["forces"], out["noisy_forces"], None)
    return ndem_loss(forces, noise, free, settings).loss


def test_gradients_reach_backbone_and_both_heads(batch, demo_data):
    model = build(demo_data).train()
    marked, _, noise, settings = perturbed(batch)
    loss_of(model, marked, noise, settings, batch.fixed == 0).backward()
    reached = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().sum() > 0:
            parts = name.split(".")
            reached.add(parts[0] if parts[0] == "backbone" else parts[1])
    assert {"backbone", "forces", "noisy_forces"} <= reached


def test_parameter_gradients_match_finite_differences(batch, demo_data, float64):
    model = build(demo_data, torch.float64).train()
    marked, _, noise, settings = perturbed(batch, torch.float64)
    free = batch.fixed == 0

    def value():
        torch.manual_seed(11)  # the same edge frames and dropout in each evaluation
        return loss_of(model, marked, noise, settings, free)

    value().backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("backbone.blocks.0.ga.proj.weight", "output_heads.forces.force_block.proj.weight",
                 "output_heads.noisy_forces.head.force_block.proj.weight"):  # fmt: skip
        parameter = dict(model.named_parameters())[name]
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        analytic = (parameter.grad * direction).sum().item()
        h, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * h * direction)
                values.append(value().item())
                parameter.sub_(sign * h * direction)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(analytic, rel=1e-5), name


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(batch, demo_data, float64, drop):
    """Recomputation sees the state of the one forward, also with stochastic depth and dropout."""
    gradients = []
    for checkpoint in (False, True):
        options = {"activation_checkpoint": checkpoint, "drop_path_rate": drop, "alpha_drop": drop}
        model = build(demo_data, torch.float64, backbone=options).train()
        marked, _, noise, settings = perturbed(batch, torch.float64)
        torch.manual_seed(5)
        loss_of(model, marked, noise, settings, batch.fixed == 0).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-9, atol=1e-12), name


def test_stochastic_depth_treats_both_views_as_structures_of_their_own(batch, demo_data):
    """With a drop rate near one half, the two views of a structure are not dropped together."""
    marked, *_ = perturbed(batch)
    joint = join_views(marked).joint
    drop = GraphDropPath(0.5).train()
    torch.manual_seed(0)
    ones = torch.ones(joint.pos.shape[0], 1)
    together = []
    for _ in range(40):
        kept = drop(ones, joint.batch)[joint.ptr[:-1], 0] > 0
        together.append(torch.equal(kept[:3], kept[3:]))
    assert not all(together)


def test_autocast_runs_and_keeps_the_loss_in_float32(batch, demo_data):
    model = build(demo_data).train()
    marked, _, noise, settings = perturbed(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, marked, noise, settings, batch.fixed == 0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
