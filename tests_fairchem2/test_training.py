"""Training through the shipped configurations: the paper's objective and what may not change."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from fairchem.core._cli import get_hydra_config_from_yaml
from small import FINE_TUNED, SAVING, config_of, run, train, without_times

from fairchem_kit.history.file import read_history

MODELS = ("direct", "conserving", "experts")
WRONG = [-20.0] * 100  # references of another method, eV


@pytest.mark.parametrize("model", MODELS)
def test_coefficient_0_is_fairchems_unit_to_the_last_digit(model, demo, tmp_path):
    words = [f"model={model}", "steps=2"]
    ours, lines, _ = train("plain.yaml", demo, tmp_path / "a", *words)
    target = "fairchem.core.units.mlip_unit.mlip_unit.MLIPTrainEvalUnit"
    unit = "runner.train_eval_unit"
    words += [f"{unit}._target_={target}", f"~{unit}.ndem"]
    theirs = run(config_of("plain.yaml", demo, tmp_path / "b", *words)).train_eval_unit
    assert lines[-1]["loss"] == float(theirs.last_loss)
    for (name, mine), (_, other) in zip(
        ours.model.state_dict().items(), theirs.model.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("model", MODELS)
def test_ndem_trains_and_every_loss_is_logged(model, demo, tmp_path):
    unit, lines, _ = train("ndem.yaml", demo, tmp_path, f"model={model}", "steps=2")
    assert [line["step"] for line in lines] == [0, 1]
    for line in lines:
        parts = line["loss_energy"] + line["loss_forces"] + line["ndem_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
        assert line["ndem_share_of_loss"] == pytest.approx(line["ndem_loss"] / line["loss"])
        assert 0.01 <= line["ndem_sigma_A"] <= 0.1
        rms = float(unit.tasks[1].normalizer.rmsd)
        assert line["forces_l2norm_eV_per_A"] == pytest.approx(line["loss_forces"] / 10 * rms)
        for name in ("energy_per_atom_mae_eV_per_atom", "ndem_curvature_eV_per_A2"):
            assert math.isfinite(line[name])
    head = unit.model.module.output_heads["noisy_forces"]
    assert all(unit.optimizer.state[p]["step"] == 2 for p in head.parameters())


@pytest.mark.parametrize("model", ["conserving", "experts"])
def test_resumed_is_uninterrupted(model, demo, tmp_path):
    words = [f"model={model}", "+runner.train_eval_unit.ndem.start=0.5", SAVING % 2]
    whole, lines, folder = train("ndem.yaml", demo, tmp_path / "a", *words)
    assert ["ndem_loss" in line for line in lines] == [False, False, True, True]
    # In the same folder, as resume.yaml does: fairchem writes step_2 anew before it goes on.
    resume = folder / "checkpoints/step_2/resume.yaml"
    again = run(get_hydra_config_from_yaml(str(resume), [])).train_eval_unit
    assert '"resumed": 1' in (folder / "logs/history.jsonl").read_text()
    resumed = read_history(folder / "logs", "train")
    assert without_times(resumed) == without_times(lines)
    for (name, mine), (_, other) in zip(
        whole.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, other), name


def test_steps_before_the_start_are_plain(demo, tmp_path):
    start = "+runner.train_eval_unit.ndem.start=0.75"
    unit, lines, _ = train("ndem.yaml", demo, tmp_path / "a", start)
    _, plain_lines, _ = train("plain.yaml", demo, tmp_path / "b", "steps=4")
    assert [line["loss"] for line in lines[:3]] == [line["loss"] for line in plain_lines[:3]]
    assert lines[3]["loss"] != plain_lines[3]["loss"]
    head = unit.model.module.output_heads["noisy_forces"]
    assert all(unit.optimizer.state[p]["step"] == 1 for p in head.parameters())


def test_the_inference_checkpoint_is_the_plain_models(demo, tmp_path):
    _, _, folder = train("ndem.yaml", demo, tmp_path, "steps=1", SAVING % 10)
    file = torch.load(folder / "checkpoints/final/inference_ckpt.pt", weights_only=False)
    assert not [n for n in [*file.model_state_dict, *file.ema_state_dict] if "noisy_forces" in n]
    assert file.model_config["_target_"] == "fairchem.core.models.base.HydraModel"
    assert [task["name"] for task in file.tasks_config] == ["energy", "forces"]
    assert "ndem_ocp" not in str(file.model_config) + str(file.tasks_config)

    from ase.build import fcc111
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit

    path = str(folder / "checkpoints/final/inference_ckpt.pt")
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7.0, periodic=True)
    atoms.calc = FAIRChemCalculator(load_predict_unit(path, "traineval", device="cpu"))
    assert atoms.get_forces().shape == (12, 3)


def test_direct_first_then_conserving(demo, tmp_path):
    first, _, folder = train("pretrain.yaml", demo, tmp_path / "a", "steps=1", SAVING % 10)
    checkpoint = folder / "checkpoints/final/inference_ckpt.pt"
    words = [f"starting_checkpoint={checkpoint}", "steps=2", SAVING % 1]
    config = config_of("conserve.yaml", demo, tmp_path / "b", *words, small=FINE_TUNED)
    import hydra

    model = hydra.utils.instantiate(config.runner.train_eval_unit.model)
    old = first.model.module
    new = model.output_heads["efs"].energy_block.state_dict()
    for name, weight in old.output_heads["energy"].energy_block.state_dict().items():
        assert torch.equal(weight, new[name])
    assert torch.equal(model.backbone.sphere_embedding.weight, old.backbone.sphere_embedding.weight)
    unit = run(config).train_eval_unit
    assert not unit.model.module.backbone.regress_config.direct_forces
    # its own checkpoint goes on without the first part's
    resume = tmp_path / "b/runs/first/checkpoints/step_1/resume.yaml"
    checkpoint.unlink()
    config = get_hydra_config_from_yaml(str(resume), ["job.timestamp_id=again"])
    again = run(config).train_eval_unit
    for mine, other in zip(unit.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["+runner.train_eval_unit.ndem.sigma=1"], "ndem.sigma is not a setting of NDeM"),
        (["runner.train_eval_unit.ndem.curvature=-1"], "ndem.curvature = -1.0: must be > 0"),
        (["+runner.train_eval_unit.ndem.objective=dens"], "'dens' does not run with fairchem 2"),
        (["model.backbone.otf_graph=False"], "set otf_graph: True"),
        (["+runner.train_eval_unit.train_strategy=fsdp"], "use ddp"),
        (["+runner.train_eval_unit.ndem.auxiliary_head={module: a.B}"], "a.B cannot be built"),
        (["data.elem_refs=[0, 1]"], "end at atomic number 1"),
        ([], "eV per atom"),
    ],
)
def test_what_cannot_be_ends_with_a_sentence_and_status_2(words, sentence, demo, tmp_path, capsys):
    words = words or [f"data.elem_refs={WRONG}"]
    with pytest.raises(SystemExit) as ended:
        train("ndem.yaml", demo, tmp_path, *words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ndem: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_references_that_do_not_fit_may_be_trained_on(demo, tmp_path):
    check = "+runner.train_eval_unit.ndem.check_references=false"
    train("ndem.yaml", demo, tmp_path, f"data.elem_refs={WRONG}", check, "steps=1")


def test_nothing_of_fairchem_1_is_imported():
    assert not [name for name in sys.modules if name.startswith("fairchem_kit.training")]
