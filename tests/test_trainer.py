"""The trainer under fairchem's own loop, in this process."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fairchem.core.trainers import OCPTrainer

from conftest import steps, tiny_config, trainer_of
from fairchem_kit.history.logger import find_history, read_history
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.schedule import ScheduleError
from helpers import state_of
from ndem_ocp.method import SettingsError


def test_coefficient_zero_is_the_plain_equiformer_trainer_bit_for_bit(new_trainer):
    ours = new_trainer(coefficient=0.0)
    ours_losses = steps(ours, 5)
    plain = new_trainer(name="equiformerv2_forces")
    plain_losses = steps(plain, 5)
    assert ours_losses == plain_losses
    assert type(ours._unwrapped_model) is type(plain._unwrapped_model)
    ours_state, plain_state = state_of(ours), state_of(plain)
    assert ours_state.keys() == plain_state.keys()
    for name, value in plain_state.items():
        assert torch.equal(ours_state[name], value), name
    assert ours.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]


def test_a_positive_coefficient_is_not_the_plain_trainer(new_trainer):
    """The test above can fail."""
    assert steps(new_trainer(coefficient=1.0), 3) != steps(new_trainer(coefficient=0.0), 3)


def test_the_total_is_fairchems_loss_plus_the_weighted_ndem_loss(new_trainer):
    trainer = new_trainer(coefficient=3.0)
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    out = trainer._forward(batch)
    plain_out = {name: out[name] for name in ("energy", "forces")}
    plain = OCPTrainer._compute_loss(trainer, plain_out, batch).item()
    total = trainer._compute_loss(out, batch).item()
    ndem = trainer.ndem.log["ndem_loss"].total
    assert ndem > 0
    assert total == pytest.approx(plain + 3.0 * ndem, rel=1e-6)
    share = trainer.ndem.log["ndem_share_of_loss"]
    assert share.total / share.weight == pytest.approx(3 * ndem / total)


def test_a_run_is_reproducible_and_ranks_and_steps_differ(new_trainer):
    assert steps(new_trainer(), 3) == steps(new_trainer(), 3)
    trainer = new_trainer()
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    noises = []
    for trainer.step in (1, 2, 1):
        trainer._forward(batch)
        noises.append(trainer.ndem.noise.eps)
    assert torch.equal(noises[0], noises[2])
    assert not torch.equal(noises[0], noises[1])


def test_noise_never_touches_global_rng_or_the_batch(new_trainer):
    trainer = new_trainer()
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)}
    keys = set(batch.keys())
    trainer._forward(batch)
    assert set(batch.keys()) == keys
    for name, value in before.items():
        assert torch.equal(batch[name], value), name


def test_validation_is_the_same_with_any_noise_setting(new_trainer, demo_data):
    results = []
    for ndem in (
        {"coefficient": 0.0},
        {"coefficient": 1.0},
        {"coefficient": 100.0, "sigma_max": 0.5, "corrupt_ratio": 1.0, "atoms": "all"},
        {"coefficient": 1.0, "head": "shared"},
    ):
        trainer = new_trainer(**ndem)
        torch.manual_seed(4)
        metrics = trainer.validate(split="val", disable_tqdm=True)
        results.append({name: value["metric"] for name, value in metrics.items()})
    assert all(result == results[0] for result in results[1:])
    assert not [name for name in results[0] if name.startswith("ndem")]


@pytest.mark.parametrize("unit", ["eV", "kcal/mol"])
def test_what_is_logged_has_units_and_is_finite(unit, new_trainer, tmp_path):
    def no_units(config):
        for output in config["outputs"].values():
            output.pop("unit", None)
            output.pop("report_unit", None)

    trainer = new_trainer(edit=no_units, energy_unit=unit)
    steps(trainer, 4)
    lines = read_history(find_history(tmp_path), "train")
    names = {
        "ndem_loss",
        "ndem_share_of_loss",
        "ndem_noise_error_A",
        "ndem_noise_size_A",
        "ndem_noise_cosine",
        f"ndem_curvature_{unit.replace('/', '_per_')}_per_A2",
        "ndem_sigma_A",
    }
    assert names | {"forces_mae", "energy_mae", "loss", "lr"} <= lines[-1].keys()
    assert all(math.isfinite(value) for name, value in lines[-1].items() if name != "split")
    assert -1 <= lines[-1]["ndem_noise_cosine"] <= 1
    assert 0 <= lines[-1]["ndem_sigma_A"] <= 0.05


@pytest.mark.parametrize(
    "ndem",
    [
        {"head": "shared"},
        {"clean_forces": "detached"},
        {"clean_forces": "label"},
        {"clean_forces": "zero"},
        {"norm": "squared_l2"},
        {"learned_curvature": True},
        {"curvature": 10.0},
        {"noise_scale": "sigma", "sigma_min": 0.01},
        {"sigma_per": "graph", "sigma_distribution": "log_uniform", "sigma_min": 0.001},
        {"fraction": 0.25},
        {"atoms": "all", "corrupt_ratio": 1.0},
        {"auxiliary_head": {"width": 1.0}},
        {"auxiliary_head": {"module": "equiformerV2_vector_head"}},
    ],
    ids=str,
)
def test_every_setting_trains(new_trainer, ndem):
    trainer = new_trainer(**ndem)
    before = {name: value.clone() for name, value in state_of(trainer).items()}
    losses = steps(trainer, 2)
    assert all(math.isfinite(loss) for loss in losses)
    changed = [n for n, v in state_of(trainer).items() if not torch.equal(before[n], v)]
    assert any(name.startswith("backbone") for name in changed)
    if ndem.get("learned_curvature"):
        assert "output_heads.noisy_forces.log_curvature" in changed


def test_checkpoint_round_trip_and_its_model_configuration(new_trainer, tmp_path):
    trainer = new_trainer()
    steps(trainer, 2)
    path = trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
    saved = torch.load(path, weights_only=True)
    assert saved["config"]["model"]["name"] == "ndem_ocp.TwoViewHydra"
    assert saved["config"]["task"]["ndem"]["sigma_max"] == 0.05
    other = new_trainer(seed=1)
    other.load_checkpoint(path)
    for name, value in state_of(trainer).items():
        assert torch.equal(state_of(other)[name], value), name
    # A checkpoint's own configuration builds the same trainer again.
    config = tiny_config(tmp_path)
    config.update(model=saved["config"]["model"], dataset={})
    again = trainer_of(config, tmp_path)
    assert state_of(again).keys() == state_of(trainer).keys()


@pytest.mark.parametrize("saved", [0.0, 1.0])
def test_a_checkpoint_with_another_head_is_refused_with_what_to_do(new_trainer, saved):
    path = new_trainer(coefficient=saved).save(checkpoint_file="checkpoint.pt")
    with pytest.raises(ConfigError, match="auxiliary head: one of them has none"):
        new_trainer(coefficient=1.0 - saved).load_checkpoint(path)


# --- start and ramp ------------------------------------------------------------------------------


def main_weights(trainer):
    """Weights and moving averages that the plain model has too."""
    state = {name: value.clone() for name, value in state_of(trainer).items()}
    names = [name for name, p in trainer._unwrapped_model.named_parameters() if p.requires_grad]
    state.update({f"ema {n}": v for n, v in zip(names, trainer.ema.shadow_params)})
    return {n: v for n, v in state.items() if "noisy_forces" not in n and "force_embed" not in n}


def structures_seen(trainer):
    """List that grows by the number of structures of each forward of the backbone."""
    seen = []
    trainer._unwrapped_model.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].natoms.numel())
    )
    return seen


@pytest.mark.parametrize("objective", ["ndem", "noisy_nodes", "dens"])
def test_before_start_every_step_is_the_plain_one_bit_for_bit(new_trainer, objective):
    ours = new_trainer(start=0.5, objective=objective)  # of 10 steps
    head = copy.deepcopy(ours._unwrapped_model.output_heads["noisy_forces"].state_dict())
    seen = structures_seen(ours)
    losses = steps(ours, 5)
    plain = new_trainer(name="equiformerv2_forces")
    assert losses == steps(plain, 5)
    assert seen[:5] == [4] * 5, "a plain step's cost"
    expected, got = main_weights(plain), main_weights(ours)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    for name, value in head.items():  # no weight decay either
        now = ours._unwrapped_model.output_heads["noisy_forces"].state_dict()[name]
        assert torch.equal(now, value), name


@pytest.mark.parametrize("objective", ["ndem", "dens"])
def test_after_start_the_auxiliary_task_runs(new_trainer, objective):
    ours = new_trainer(start=0.5, objective=objective)
    seen = structures_seen(ours)
    losses = steps(ours, 8)
    assert seen[5:8] == [8 if objective == "ndem" else 4] * 3
    plain = steps(new_trainer(name="equiformerv2_forces"), 8)
    assert losses[:5] == plain[:5]
    assert losses[5] != plain[5]
    moved = ours.optimizer.state[next(ours._unwrapped_model.output_heads.noisy_forces.parameters())]
    assert moved["step"] == 3


def coefficients(trainer, count):
    used = []
    forward = trainer._forward

    def recording(batch):
        out = forward(batch)
        if trainer.model.training:
            used.append(trainer.ndem.coefficient)
        return out

    trainer._forward = recording
    steps(trainer, count)
    return used[:count]


def test_a_resumed_run_continues_the_schedule(new_trainer):
    settings = {"coefficient": 2.0, "start": 0.2, "ramp": 0.4}
    expected = [0, 0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert coefficients(new_trainer(**settings), 8) == pytest.approx(expected)
    first = new_trainer(**settings)
    assert coefficients(first, 4) == pytest.approx(expected[:4])
    first.step = 4  # the fifth step was begun and not made
    path = first.save(checkpoint_file="checkpoint.pt")
    again = new_trainer(**settings)
    again.load_checkpoint(path)
    assert coefficients(again, 4) == pytest.approx(expected[4:])


def test_a_ramp_is_logged(new_trainer, tmp_path):
    steps(new_trainer(coefficient=3.0, start=0.1, ramp=0.2), 5)
    lines = [x for x in read_history(find_history(tmp_path), "train") if "loss" in x]
    running_means = [line["ndem_coefficient"] for line in lines]
    assert running_means[:4] == pytest.approx([0, 0.75, 1.5, 1.875])
    assert "ndem_loss" not in lines[0]


# --- schedules -----------------------------------------------------------------------------------


def by_steps(config):
    config["optim"] = {
        key: value for key, value in config["optim"].items() if not key.startswith("scheduler")
    }
    config["optim"].update(
        warmup_steps=0, warmup_factor=0.2, lr_milestones=[100, 200], lr_gamma=0.1
    )


def test_both_schedules_survive_a_warmup_shorter_than_a_step(new_trainer):
    def no_warmup(config):
        config["optim"]["scheduler_params"]["warmup_epochs"] = 1e-9

    for edit in (by_steps, no_warmup):
        trainer = new_trainer(edit=edit)
        first = trainer.scheduler.get_lr()
        assert math.isfinite(first)
        steps(trainer, 3)
        assert trainer.scheduler.get_lr() == pytest.approx(0.0015, rel=0.3)


def test_the_epoch_schedule_is_fairchems_and_the_configuration_stays_in_epochs(new_trainer):
    ours = new_trainer()
    plain = new_trainer(name="equiformerv2_forces")
    curve = [
        [trainer.scheduler.scheduler.lr_lambdas[0](step) for step in range(12)]
        for trainer in (ours, plain)
    ]
    assert curve[0] == curve[1]
    assert len(set(curve[0])) > 5
    assert ours.config["optim"]["scheduler_params"]["warmup_epochs"] == 0.2


def test_an_incomplete_schedule_names_what_is_missing(new_trainer):
    def broken(config):
        config["optim"]["scheduler_params"].pop("lr_min_factor")

    with pytest.raises(ScheduleError, match=r"optim.scheduler_params lacks lr_min_factor"):
        new_trainer(edit=broken)


# --- configuration mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda c: c["task"]["ndem"].update(sigma=1), SettingsError, "sigma_max"),
        (lambda c: c["task"].update(ndem=3), SettingsError, "mapping"),
        (lambda c: c["task"]["ndem"].update(auxiliary_head="x"), SettingsError, "auxiliary_head"),
        (lambda c: c["task"]["ndem"].update(auxilary_head={}), SettingsError, "'auxiliary_head'"),
        (lambda c: c["dataset"]["val"].update(src="no/such"), ConfigError, "dataset.val.src"),
        (lambda c: c["outputs"].pop("forces"), ConfigError, "level: atom"),
        (
            lambda c: c["outputs"]["forces"].pop("train_on_free_atoms"),
            ConfigError,
            "train_on_free_atoms",
        ),
        (
            lambda c: c["evaluation_metrics"].update(primary_metric="force_mae"),
            ConfigError,
            "forces_mae",
        ),
    ],
)
def test_mistakes_stop_the_run_at_once_with_what_to_do(new_trainer, edit, error, words):
    with pytest.raises(error) as caught:
        new_trainer(edit=edit)
    assert words in str(caught.value)


def test_a_missing_primary_metric_gets_a_default(new_trainer):
    trainer = new_trainer(edit=lambda c: c["evaluation_metrics"].pop("primary_metric"))
    assert trainer.evaluation_metrics["primary_metric"] == "forces_mae"


def test_runs_that_start_together_get_directories_of_their_own(new_trainer):
    names = {copy.copy(new_trainer().config["cmd"]["checkpoint_dir"]) for _ in range(2)}
    assert len(names) == 2


def test_squared_l2_is_registered_for_the_force_loss(new_trainer):
    def squared(config):
        config["loss_functions"] = [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "squared_l2", "coefficient": 100}},
        ]

    assert all(map(math.isfinite, steps(new_trainer(edit=squared), 2)))
