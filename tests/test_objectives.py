"""Noisy nodes and DeNS in addition to NDeM: their mathematics, the DeNS model, and the trainer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import yaml
from e3nn import o3
from fairchem.core.common.registry import registry
from fairchem.core.datasets import create_dataset, data_list_collater
from fairchem.core.trainers import OCPTrainer

from conftest import ROOT, steps, tiny_config
from fairchem_kit.training.config import ConfigError
from helpers import state_of
from ndem_ocp.method import (
    Forces,
    NDeMSettings,
    Noise,
    SettingsError,
    dens_loss,
    draw_noise,
    forces_of_clean_atoms,
    forces_to_encode,
    ndem_loss,
    noise_target,
    noisy_nodes_loss,
    per_atom_error,
    step_generator,
)
from ndem_ocp.method import registry as registry_module
from ndem_ocp.method.views import as_corrupted
from ndem_ocp.models import ModelConfigError, two_view_config
from ndem_ocp.models.dens import ForceEmbedding, dens_config

OBJECTIVES = ("ndem", "noisy_nodes", "dens")


def test_these_are_all_objectives():
    assert set(registry_module.OBJECTIVES) == set(OBJECTIVES)


def frozen(objective: str, norm: str) -> tuple[NDeMSettings, Noise, torch.Tensor]:
    """Four atoms: corrupted, still, held fixed, and one of a structure that is left alone."""
    settings = NDeMSettings(objective=objective, norm=norm, noise_scale=10.0)
    eps = torch.zeros(4, 3, dtype=torch.float64)
    eps[0] = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64)
    moved = torch.tensor([True, False, False, False])
    viewed = torch.tensor([True, True, True, False])
    noise = Noise(eps, torch.full((4,), 0.1, dtype=torch.float64), moved, viewed)
    return settings, noise, torch.tensor([True, True, False, True])


def random_noise(settings, sizes=(5, 9, 1, 14), step=0):
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pos = torch.zeros(len(index), 3, dtype=torch.float64)
    fixed = (torch.arange(len(index)) % 3 == 0).long()
    noise = draw_noise(pos, index, len(sizes), fixed, settings, step_generator(0, 0, step))
    return noise, fixed, index


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": "DeNS"}, ["objective", "noisy_nodes", "dens"]),
        ({"objective": "dens", "fraction": 0.5}, ["fraction", "objective: dens", "noisy_nodes"]),
        ({"objective": "dens", "curvature": 5}, ["curvature", "ndem"]),
        ({"objective": "noisy_nodes", "clean_forces": "label"}, ["clean_forces", "remove it"]),
        ({"objective": "noisy_nodes", "head": "shared"}, ["head", "ndem"]),
        ({"objective": "noisy_nodes", "learned_curvature": True}, ["learned_curvature"]),
        ({"dens_probability": 0.25}, ["dens_probability", "only with: dens"]),
        ({"objective": "dens", "dens_probability": 0}, ["dens_probability", "(0, 1]"]),
    ],
)
def test_settings_of_another_objective_are_refused(given, words):
    with pytest.raises(SettingsError) as error:
        NDeMSettings.from_mapping(given)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_written_out_defaults_are_accepted_again(objective):
    settings = NDeMSettings(objective=objective)
    assert NDeMSettings.from_mapping(settings.as_dict()) == settings


def test_the_documented_dens_is_accepted():
    shown = (ROOT / "docs/method.md").read_text().split("```yaml\n")[1].split("```")[0]
    settings = NDeMSettings.from_mapping(yaml.safe_load(shown)["task"]["ndem"])
    assert (settings.objective, settings.coefficient) == ("dens", 10)


# --- mathematics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "norm", "expected"),
    [
        # eps* = 10 eps = (3, 0, -4) on atom 0; the prediction is (1, 2, 2) everywhere.
        # Noisy nodes: atoms 0 and 1, |(-2, 2, 6)|^2 = 44 and |(1, 2, 2)|^2 = 9, over 2.
        ("noisy_nodes", "squared_l2", (44 + 9) / 2),
        ("noisy_nodes", "l2mae", (math.sqrt(44) + 3) / 2),
        # DeNS: atom 0 alone, over the counted atoms 0, 1 and 3.
        ("dens", "squared_l2", 44 / 3),
        ("dens", "l2mae", math.sqrt(44) / 3),
        # NDeM with f(X) = (1, 0, 0): difference (0, -2, -2) against (3, 0, -4) and against 0.
        ("ndem", "squared_l2", (9 + 4 + 4 + 8) / 2),
        ("ndem", "l2mae", (math.sqrt(17) + math.sqrt(8)) / 2),
    ],
)
def test_frozen_values(objective, norm, expected):
    settings, noise, counted = frozen(objective, norm)
    predicted = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64).expand(4, 3)
    if objective == "ndem":
        clean = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(4, 3)
        loss = ndem_loss(Forces(clean, predicted, None), noise, counted, settings).loss
    else:
        function = dens_loss if objective == "dens" else noisy_nodes_loss
        loss = function(predicted, noise, counted, settings).loss
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def perfect(objective, noise, settings):
    target = noise_target(noise, settings, 1.0)
    return -target if objective == "ndem" else target


def loss_of(objective, predicted, noise, counted, settings):
    if objective == "ndem":
        forces = Forces(torch.zeros_like(predicted), predicted, None)
        return ndem_loss(forces, noise, counted, settings)
    function = dens_loss if objective == "dens" else noisy_nodes_loss
    return function(predicted, noise, counted, settings)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
@pytest.mark.parametrize("scale", ["sigma_max", "sigma", 7.0])
def test_a_perfect_denoiser_has_zero_loss(objective, norm, scale):
    settings = NDeMSettings(objective=objective, norm=norm, noise_scale=scale, sigma_min=0.01)
    noise, fixed, _ = random_noise(settings)
    assert noise.moved.any()
    result = loss_of(objective, perfect(objective, noise, settings), noise, fixed == 0, settings)
    assert result.loss.item() == pytest.approx(0, abs=1e-12)
    error, cosine = result.log["ndem_noise_error_A"], result.log["ndem_noise_cosine"]
    assert error.total / error.weight == pytest.approx(0, abs=1e-12)
    assert cosine.total / cosine.weight == pytest.approx(1)
    wrong_sign = -perfect(objective, noise, settings)
    assert loss_of(objective, wrong_sign, noise, fixed == 0, settings).loss > 0.05


def test_only_ndem_reports_a_curvature():
    for objective in OBJECTIVES:
        settings = NDeMSettings(objective=objective)
        noise, fixed, _ = random_noise(settings)
        log = loss_of(objective, noise.eps, noise, fixed == 0, settings).log
        assert any("curvature" in name for name in log) == (objective == "ndem")


def test_noisy_nodes_is_ndem_at_equilibrium_with_the_other_sign():
    classical, ndem = NDeMSettings(objective="noisy_nodes"), NDeMSettings(clean_forces="zero")
    noise, fixed, _ = random_noise(ndem)
    predicted = torch.randn(noise.eps.shape, dtype=torch.float64)
    a = noisy_nodes_loss(predicted, noise, fixed == 0, classical).loss
    b = ndem_loss(Forces(None, -predicted, None), noise, fixed == 0, ndem).loss
    assert a == b


def test_dens_counts_corrupted_atoms_only_over_all_counted_ones():
    settings = NDeMSettings(objective="dens")
    noise, fixed, _ = random_noise(settings)
    counted = fixed == 0
    predicted = torch.randn(noise.eps.shape, dtype=torch.float64)
    base = dens_loss(predicted, noise, counted, settings).loss
    error = per_atom_error(predicted - noise_target(noise, settings, 1.0), settings.norm)
    assert base.item() == pytest.approx(float(error[noise.moved].sum() / counted.sum()))
    other = torch.where(noise.moved[:, None], predicted, predicted + 1e6)
    assert dens_loss(other, noise, counted, settings).loss == base


@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
@pytest.mark.parametrize("objective", ["noisy_nodes", "dens"])
def test_gradients_match_finite_differences(objective, norm):
    settings = NDeMSettings(objective=objective, norm=norm)
    noise, fixed, _ = random_noise(settings)
    predicted = torch.randn(noise.eps.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: loss_of(objective, p, noise, fixed == 0, settings).loss, predicted
    )


@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
def test_a_batch_without_corruption_gives_zero_loss_and_a_zero_gradient(norm):
    settings = NDeMSettings(objective="dens", norm=norm)
    noise, fixed, _ = random_noise(settings)
    still = noise._replace(
        eps=torch.zeros_like(noise.eps),
        moved=torch.zeros_like(noise.moved),
        viewed=torch.zeros_like(noise.viewed),
    )
    predicted = torch.randn(noise.eps.shape, requires_grad=True)
    result = dens_loss(predicted, still, fixed == 0, settings)
    result.loss.backward()
    assert result.loss == 0
    assert predicted.grad.abs().max() == 0
    assert all(tally.weight == 0 for tally in result.log.values())


@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
def test_the_force_loss_of_dens_leaves_corrupted_atoms_out(norm):
    noise, _, _ = random_noise(NDeMSettings(objective="dens"))
    label = torch.randn(noise.eps.shape, dtype=torch.float64)
    predicted = torch.randn(noise.eps.shape, dtype=torch.float64, requires_grad=True)
    error = per_atom_error(forces_of_clean_atoms(predicted, label, noise) - label, norm)
    error.mean().backward()
    expected = per_atom_error(predicted - label, norm)[~noise.moved].sum() / len(label)
    assert error.mean().item() == pytest.approx(expected.item())
    assert predicted.grad[noise.moved].abs().max() == 0
    assert (predicted.grad[~noise.moved].abs().sum(-1) > 0).all()
    half = forces_of_clean_atoms(predicted.half(), label.float(), noise)
    assert torch.equal(half[noise.moved], label.float()[noise.moved])
    told = forces_to_encode(label, noise)
    assert torch.equal(told[noise.moved], label[noise.moved])
    assert told[~noise.moved].abs().max() == 0


def test_structures_are_corrupted_with_their_probability():
    settings = NDeMSettings(objective="dens", dens_probability=0.3)
    sizes, count = [3] * 10, 0
    for step in range(200):
        noise, _, index = random_noise(settings, sizes, step)
        for graph in range(10):
            assert noise.viewed[index == graph].unique().numel() == 1
        count += int(noise.viewed.sum()) // 3
        assert not (noise.moved & ~noise.viewed).any()
    assert count / 2000 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 2000) ** 0.5)


def test_shapes_are_checked():
    settings, noise, counted = frozen("noisy_nodes", "l2mae")
    with pytest.raises(ValueError, match="predicted noise has shape"):
        noisy_nodes_loss(torch.zeros(4, 1), noise, counted, settings)


# --- the model that encodes forces ---------------------------------------------------------------


@pytest.fixture(scope="module")
def batch(demo_data):
    keys = {"y": "energy", "force": "forces"}
    source = {"src": str(demo_data / "train"), "format": "lmdb", "key_mapping": keys}
    dataset = create_dataset(source, "train")
    return data_list_collater([dataset[i] for i in range(3)], otf_graph=True)


def built(config):
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    return registry.get_model_class(config.pop("name"))(**config)


@pytest.fixture
def plain_section(demo_data):
    return tiny_config(demo_data)["model"]


DENS = NDeMSettings(objective="dens")


def corrupted(batch, ratio=0.5):
    noise = draw_noise(
        batch.pos, batch.batch, 3, None, NDeMSettings(corrupt_ratio=ratio), step_generator(0, 0, 0)
    )
    told = forces_to_encode(batch.forces, noise)
    return as_corrupted(batch, noise.eps, told), noise


def test_input_forces_rotate_with_the_structure():
    embedding = ForceEmbedding(4, 3, "uniform").double()
    forces = torch.randn(6, 3, dtype=torch.float64)
    forces[2] = 0
    turn = o3.rand_matrix(dtype=torch.float64)
    wigner = o3.Irreps.spherical_harmonics(4, p=1).D_from_matrix(turn)
    a = torch.einsum("ij,njc->nic", wigner, embedding(forces))
    assert torch.allclose(a, embedding(forces @ turn.T), atol=1e-5)
    assert embedding(forces)[2].abs().max() == 0, "no force, no change"
    degree_1 = embedding(forces)[:, 1:4, 0] / embedding.weight[1, 0, 0]
    assert torch.allclose(degree_1, forces), "degree 1 is the force itself"


def test_the_backbone_is_fairchems_dens_backbone(batch, plain_section):
    """Against fairchem's own class with the same weights, on the same partly corrupted batch."""
    # One choice less for chance: gate activations make the random edge frames a gauge.
    plain_section["backbone"].update(use_gate_act=True, use_grid_mlp=False)
    ours = built(dens_config(plain_section, DENS)).backbone.eval()
    arguments = {k: v for k, v in plain_section["backbone"].items() if k != "model"}
    theirs = registry.get_model_class("equiformer_v2_dens_backbone")(**arguments).eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing.missing_keys == ["force_embedding.bias", "force_embedding.expand_index"]
    assert not missing.unexpected_keys
    marked, noise = corrupted(batch)
    same = copy.copy(batch)
    same.pos, same.noise_mask, same.denoising_pos_forward = marked.pos, noise.moved, True
    a = ours(marked)["node_embedding"].embedding
    b = theirs(same)["node_embedding"].embedding
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    untold = as_corrupted(batch, noise.eps, torch.zeros_like(batch.forces))
    assert not torch.allclose(a, ours(untold)["node_embedding"].embedding, atol=1e-2)


def test_without_input_forces_the_model_is_the_plain_one_to_the_bit(batch, plain_section):
    plain, dens = built(plain_section), built(dens_config(plain_section, DENS))
    names = dict(plain.named_parameters())
    extra = {name for name, _ in dens.named_parameters()} - names.keys()
    assert all("noisy_forces" in name or "force_embedding" in name for name in extra)
    for name, value in plain.state_dict().items():
        assert torch.equal(dens.state_dict()[name], value), name
    for mode in (False, True):
        outputs = []
        for model in (plain, dens):
            torch.manual_seed(3)
            outputs.append(model.train(mode)(batch))
        assert outputs[0].keys() == outputs[1].keys()
        for name, value in outputs[0].items():
            assert torch.equal(value[name], outputs[1][name][name])


def test_every_parameter_gets_a_gradient_even_if_nothing_is_corrupted(batch, plain_section):
    """DDP waits for all of them."""
    model = built(dens_config(plain_section, DENS)).train()
    zero = torch.zeros_like(batch.pos)
    out = model(as_corrupted(batch, zero, zero))
    sum(value[name].sum() for name, value in out.items()).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None}
    plain = built(plain_section).train()
    sum(value[name].sum() for name, value in plain(batch).items()).backward()
    assert missing <= {name for name, p in plain.named_parameters() if p.grad is None}


def test_marking_changes_neither_batch_nor_backbone(batch, plain_section):
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    model = built(dens_config(plain_section, DENS)).eval()
    model(corrupted(batch)[0])
    assert not model.backbone.edge_degree_embedding._forward_hooks
    assert {k for k, v in batch.items() if isinstance(v, torch.Tensor)} == before.keys()
    for name, value in before.items():
        assert torch.equal(batch[name], value), name


def test_errors_say_what_other_backbones_lack(plain_section):
    section = copy.deepcopy(plain_section)
    section["backbone"]["model"] = "escn_backbone"
    with pytest.raises(ModelConfigError, match=r"the backbone 'escn_backbone' cannot do this"):
        dens_config(section, DENS)
    with pytest.raises(ModelConfigError, match="objective: ndem or noisy_nodes and cannot"):
        dens_config(two_view_config(plain_section, NDeMSettings()), DENS)
    section = copy.deepcopy(plain_section)
    section["backbone"].update(lmax_list=[2, 1], mmax_list=[1, 1])
    with pytest.raises(ValueError, match="one resolution"):
        built(dens_config(section, DENS))


# --- the trainer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_zero_is_the_plain_trainer(new_trainer, objective):
    trainer = new_trainer(objective=objective)
    before = {name: value.clone() for name, value in state_of(trainer).items()}
    losses = steps(trainer, 3)
    assert all(map(math.isfinite, losses))
    changed = {n for n, v in state_of(trainer).items() if not torch.equal(before[n], v)}
    assert any("noisy_forces" in name for name in changed)
    assert ("backbone.force_embedding.weight" in changed) == (objective == "dens")
    plain = steps(new_trainer(name="equiformerv2_forces"), 3)
    assert steps(new_trainer(objective=objective, coefficient=0.0), 3) == plain
    assert losses != plain


def one_step(trainer, number=1):
    trainer.model.train()
    trainer.step = number
    batch = next(iter(trainer.train_loader))
    out = trainer._forward(batch)
    return batch, out


@pytest.mark.parametrize("objective", ["noisy_nodes", "dens"])
def test_the_total_is_the_sum_of_its_parts(new_trainer, objective):
    trainer = new_trainer(objective=objective, coefficient=3.0)
    batch, out = one_step(trainer)
    noise = trainer.ndem.noise
    assert noise.moved.any()
    main = {name: out[name] for name in ("energy", "forces")}
    if objective == "dens":
        assert not noise.moved[batch.fixed == 0].all()
        main["forces"] = torch.where(
            noise.moved[:, None],
            trainer.normalizers["forces"].norm(batch.forces),
            main["forces"],
        )
    plain = OCPTrainer._compute_loss(trainer, main, batch).item()
    function = dens_loss if objective == "dens" else noisy_nodes_loss
    free, settings = batch.fixed == 0, trainer.ndem.settings
    auxiliary = function(out["noisy_forces"], noise, free, settings).loss.item()
    total = trainer._compute_loss(out, batch).item()
    assert auxiliary > 0
    assert total == pytest.approx(plain + 3 * auxiliary, rel=1e-6)


def test_training_metrics_of_dens_are_over_atoms_that_were_not_corrupted(new_trainer):
    trainer = new_trainer(objective="dens", dens_probability=0.8)
    batch, out = one_step(trainer)
    trainer._compute_loss(out, batch)
    kept = (batch.fixed == 0) & ~trainer.ndem.noise.moved
    raw = trainer.normalizers["forces"](out["forces"])
    expected = (raw - batch.forces)[kept].abs().mean().item()
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    assert metrics["forces_mae"]["metric"] == pytest.approx(expected)
    assert metrics["forces_mae"]["numel"] == 3 * int(kept.sum())
    assert trainer.output_targets["forces"] == trainer.config["outputs"]["forces"]


def test_a_fully_corrupted_batch_is_allowed(new_trainer):
    trainer = new_trainer(objective="dens", dens_probability=1.0, corrupt_ratio=1.0)
    assert all(map(math.isfinite, steps(trainer, 2)))


def test_dens_draws_noise_again_and_validates_as_the_plain_model(new_trainer):
    assert steps(new_trainer(objective="dens"), 2) == steps(new_trainer(objective="dens"), 2)
    results = []
    for ndem in ({"coefficient": 0.0}, {"objective": "dens"}, {"objective": "noisy_nodes"}):
        trainer = new_trainer(**ndem)
        torch.manual_seed(4)
        metrics = trainer.validate(split="val", disable_tqdm=True)
        results.append({name: value["metric"] for name, value in metrics.items()})
    assert results[0] == results[1] == results[2]


def test_checkpoints_of_dens(new_trainer, demo_data):
    trainer = new_trainer(objective="dens")
    steps(trainer, 1)
    path = trainer.save(checkpoint_file="checkpoint.pt")
    again = new_trainer(seed=1, objective="dens")
    again.load_checkpoint(path)
    for name, value in state_of(trainer).items():
        assert torch.equal(state_of(again)[name], value), name
    section = torch.load(path)["config"]["model"]
    assert state_of(new_trainer(objective="dens", edit=lambda c: c.update(model=section)))
    for objective in ("ndem", "noisy_nodes"):
        with pytest.raises(ConfigError, match="was trained with"):
            new_trainer(objective=objective).load_checkpoint(path)
    plain = new_trainer(coefficient=0.0).save(checkpoint_file="checkpoint.pt")
    with pytest.raises(ConfigError, match="one of them has none"):
        new_trainer(objective="dens").load_checkpoint(plain)

    def lenient(config):
        config["task"]["strict_load"] = False

    started = new_trainer(objective="dens", seed=1, edit=lenient)
    started.load_checkpoint(plain, inference_only=True)
    for name, value in torch.load(plain)["state_dict"].items():
        assert torch.equal(state_of(started)[name], value), name


# --- structures without force labels -------------------------------------------------------------


def energies_only(config):
    """QM9: one property of the molecule, no forces anywhere."""
    config["outputs"].pop("forces")
    config["model"]["heads"].pop("forces")
    config["loss_functions"] = [{"energy": {"fn": "mae", "coefficient": 1}}]
    config["evaluation_metrics"] = {}
    config["dataset"]["train"]["transforms"]["normalizer"].pop("forces")


@pytest.mark.parametrize("ndem", [{"clean_forces": "zero"}, {"objective": "noisy_nodes"}], ids=str)
def test_without_force_labels(new_trainer, ndem):
    trainer = new_trainer(edit=energies_only, norm="squared_l2", **ndem)
    assert trainer.evaluation_metrics["primary_metric"] == "energy_mae"
    assert all(map(math.isfinite, steps(trainer, 3)))
    metrics = trainer.validate(split="val", disable_tqdm=True)
    assert metrics.keys() == {"energy_mae", "energy_mae_meV", "loss"}
    batch, out = one_step(trainer)
    auxiliary = out["noisy_forces"].clone()
    trainer._compute_loss(out, batch)
    counted = batch.fixed == 0
    sign = -1 if trainer.ndem.settings.objective == "ndem" else 1
    residual = sign * auxiliary - trainer.ndem.noise.eps / trainer.ndem.settings.sigma_max
    expected = residual[counted].square().sum(-1).mean().item()
    assert trainer.ndem.log["ndem_loss"].total == pytest.approx(expected, rel=1e-5)


def test_what_needs_forces_says_so(new_trainer):
    for ndem in ({}, {"objective": "dens"}, {"clean_forces": "detached"}):
        with pytest.raises(ConfigError, match="needs the output 'forces' with level: atom"):
            new_trainer(edit=energies_only, **ndem)
    with pytest.raises(ConfigError, match=r"curvature is divided by rms_F.*noise_scale"):
        new_trainer(edit=energies_only, clean_forces="zero", curvature=5.0)


def test_a_misspelt_argument_of_the_auxiliary_head_is_named(new_trainer):
    for objective in OBJECTIVES:
        with pytest.raises(ConfigError, match=r"auxiliary_head\.widht .* Did you mean 'width'"):
            new_trainer(objective=objective, auxiliary_head={"widht": 0.5})
    with pytest.raises(SettingsError, match=r"Valid: .*sigma_max.*, auxiliary_head, second"):
        new_trainer(edit=lambda c: c["task"]["ndem"].update(nonsense=1))


def test_the_objective_that_the_documentation_adds_trains(new_trainer, monkeypatch):
    page = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    diff = page[page.index("+++ b/ndem_ocp/method/moved_nodes.py") :]
    lines = diff[: diff.index("\n--- a/")].splitlines()[1:]
    monkeypatch.setitem(registry_module.OBJECTIVES, "moved_nodes", None)  # gone after the test
    exec("\n".join(line[1:] for line in lines), {"__name__": "moved_nodes"})
    trainer = new_trainer(objective="moved_nodes", fraction=0.5)
    steps(trainer, 2)
    log = trainer.ndem.log
    assert log["ndem_noise_size_A"].total > 0
    assert log["ndem_loss"].total > 0
    with pytest.raises(SettingsError, match="moved_nodes"):
        NDeMSettings(objective="moved_nodes", dens_probability=0.3)
