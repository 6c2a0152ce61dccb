"""Settings beyond the defaults, through the shipped configurations; where a step's numbers go."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from fairchem.core.modules.loss import MAELoss
from fairchem.core.units.mlip_unit import mlip_unit
from fairchem.core.units.mlip_unit.mlip_unit import compute_loss
from models import hydra
from small import NDEM, train

from ndem_ocp.fairchem2.model import add_second_view
from ndem_ocp.fairchem2.objectives import Beside, logged
from ndem_ocp.method import NDeMSettings
from test_objectives import labelled, losses_of, noise_of, task


def test_fraction_start_and_ramp(demo, tmp_path):
    words = [f"+{NDEM}.fraction=0.5", f"+{NDEM}.start=0.25", f"+{NDEM}.ramp=0.5"]
    unit, lines, _ = train("ndem.yaml", demo, tmp_path, *words)
    assert [line.get("ndem_coefficient") for line in lines] == [None, 0.5, 1.0, 1.0]
    for line in lines[1:]:
        parts = line["loss_energy"] + line["loss_forces"]
        parts += line["ndem_coefficient"] * line["ndem_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
    viewed = unit._objective._losses[0].noise.viewed
    assert viewed.any()
    assert not viewed.all()


def test_first_order_labels_are_energies_alone(demo, tmp_path):
    words = [f"~{NDEM}", f"+{NDEM}={{target: first_order, sigma_max: 0.05, share: 1.0}}"]
    _, lines, _ = train("plain.yaml", demo, tmp_path, *words, "steps=2")
    for line in lines:
        assert line["ndem_share_of_atoms"] == 1.0
        assert line["loss_forces"] == 0.0
        assert line["loss"] == pytest.approx(line["loss_energy"], rel=1e-6)
        assert line["loss"] > 0.0


def test_noisy_nodes_train(demo, tmp_path):
    words = [f"~{NDEM}", f"+{NDEM}={{objective: noisy_nodes, sigma_max: 0.05}}"]
    _, lines, _ = train("plain.yaml", demo, tmp_path, *words, "steps=1", "model=conserving")
    parts = lines[0]["loss_energy"] + lines[0]["loss_forces"] + lines[0]["ndem_loss"]
    assert lines[0]["loss"] == pytest.approx(parts, rel=1e-6)


def test_energy_forces_and_stress_have_their_losses_on_x():
    names = ("energy", "forces", "stress")
    tasks = [task(name, loss=MAELoss() if name == "stress" else None) for name in names]
    settings = NDeMSettings(curvature=5.0)
    torch.manual_seed(0)
    plain = hydra("stress")
    model = add_second_view(copy.deepcopy(plain), settings, None, ["forces"])
    data, other = labelled(names), labelled(names)
    torch.manual_seed(1)
    wanted = compute_loss(tasks, plain.train()(other), other)
    torch.manual_seed(1)
    objective = Beside(settings, logged(tasks), model)
    _, found = losses_of(objective, model, data, noise_of(data, settings))
    for name in names:
        assert found[name].item() == pytest.approx(wanted[name].item(), rel=1e-5), name
    assert found["ndem_forces"].item() > 0.0
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in model.auxiliary)


def test_wandb_gets_every_number_of_a_step(demo, tmp_path, monkeypatch):
    seen = []
    wandb = SimpleNamespace(
        log=lambda values, step=None, commit=True: seen.append((step, values)),
        log_summary=lambda values: None,
    )
    singleton = SimpleNamespace(get_instance=lambda: wandb)
    monkeypatch.setattr(mlip_unit, "WandBSingletonLogger", singleton)
    words = ["job.debug=False", "job.logger={name: wandb}", "steps=2"]
    _, lines, _ = train("ndem.yaml", demo, tmp_path, *words)
    steps = [(step, values) for step, values in seen if "train/loss" in values]
    assert [step for step, _ in steps] == [0, 1]
    names = ("loss_energy", "forces_l2norm_eV_per_A", "ndem_loss", "ndem_noise_cosine")
    for (_, values), line in zip(steps, lines, strict=True):
        for name in names:
            assert values[f"train/{name}"] == line[name]
    assert any("val/loss" in values for _, values in seen)
