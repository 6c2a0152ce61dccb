"""MD17 and QM9 end to end: configs/md17 and configs/qm9 on molecules made here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from fairchem.core.common.utils import load_config

pytest.importorskip("torchmdnet", reason="torchmd-net is not installed (extra: molecules)")

import pretrained_files
from conftest import ROOT, steps, trainer_of
from fairchem_kit.config_names import existing_config
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.sweep_file import SweepError, read_sweep
from fairchem_kit.training.config import ConfigError
from ndem_ocp.cli import main
from ndem_ocp.pretrained import PretrainedError
from test_data_qm9 import npz as qm9_npz

TINY = {"hidden_channels": 16, "num_layers": 1, "num_heads": 2, "num_rbf": 8}
MD17 = ("aspirin", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic_acid")
MD17 += ("toluene", "uracil")
# The carbon of a perfect CH4 has no vector features, which torchmd-net remarks on.
SYMMETRIC = pytest.mark.filterwarnings("ignore:Skipping gradients:UserWarning")
QM9 = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")


def springs(frames: int, seed: int = 0, stiffness: float = 300.0) -> dict[str, np.ndarray]:
    """Methanol whose pairs of atoms are springs, in MD17's layout (kcal/mol, Angstrom)."""
    atoms = molecule("CH3OH")
    rng = np.random.default_rng(seed)
    rest = atoms.get_all_distances()
    positions = atoms.positions + rng.normal(0, 0.06, (frames, len(atoms), 3))
    apart = positions[:, :, None] - positions[:, None]
    length = np.linalg.norm(apart, axis=-1) + np.eye(len(atoms))
    stretch = (length - rest) * (1 - np.eye(len(atoms)))
    energies = 0.25 * stiffness * (stretch**2).sum((1, 2)) - 50_000
    forces = -stiffness * ((stretch / length)[..., None] * apart).sum(2)
    return {"z": atoms.numbers, "R": positions, "E": energies[:, None], "F": forces}


@pytest.fixture(scope="module")
def md17(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("md17")
    np.savez(folder / "methanol.npz", **springs(120))
    sizes = ["--train", "80", "--val", "20", "--test", "20", "--no-progress"]
    assert main(["data", "md17", f"{folder}/methanol.npz", "--out", f"{folder}/set", *sizes]) == 0
    return folder / "set"


@pytest.fixture(scope="module")
def qm9(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qm9")
    source = str(qm9_npz(folder / "qm9.npz"))
    sizes = ["--train", "6", "--val", "2", "--no-progress"]
    assert main(["data", "qm9", source, "--out", str(folder / "set"), *sizes]) == 0
    return folder / "set"


def tiny(path: str, data: Path, **ndem) -> dict:
    """A configuration of the project with a model for seconds."""
    config = load_config(str(ROOT / "configs" / path))[0]
    config["model"]["backbone"].update(TINY)
    for split in ("train", "val"):
        config["dataset"][split]["src"] = str(data / split)
    config["logger"] = {"name": "ndem_ocp.HistoryLogger", "inner": None}
    config["optim"].update(batch_size=4, eval_batch_size=8, num_workers=0, max_epochs=20)
    config["optim"].update(eval_every=10_000, ema_decay=0.9)
    config["optim"]["scheduler_params"]["warmup_epochs"] = 0.2
    config.setdefault("task", {}).setdefault("ndem", {}).update(ndem)
    return config


@pytest.mark.parametrize("coefficient", [1.0, 0.0])
def test_md17_learns(md17, tmp_path, coefficient):
    config = tiny("md17/ethanol.yml", md17, coefficient=coefficient)
    config["model"]["backbone"]["num_layers"] = 2
    config["optim"].update(lr_initial=0.01, max_epochs=15)
    losses = steps(trainer_of(config, tmp_path), 295)
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])


def test_md17_forces_are_the_gradient_of_the_energy_in_raw_units(md17, tmp_path):
    """The head's scale joins std_E and rms_F: raw forces are minus the raw energy's slope."""
    trainer = trainer_of(tiny("md17/ethanol.yml", md17, coefficient=1.0), tmp_path)
    steps(trainer, 5)
    trainer.model.eval()
    batch = next(iter(trainer.val_loader))
    energy, force = (trainer.normalizers[name] for name in ("energy", "forces"))
    assert force.rmsd.item() != pytest.approx(energy.rmsd.item(), rel=0.2)
    out = trainer._forward(batch)
    direction = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    ends = []
    for sign in (1, -1):
        moved = batch.clone()
        moved.pos = (batch.pos + sign * 0.02 * direction).detach()
        ends.append(energy.denorm(trainer._forward(moved)["energy"]).sum())
    slope = (ends[0] - ends[1]) / 0.04
    got = (force.denorm(out["forces"]) * direction).sum()
    torch.testing.assert_close(got, -slope, rtol=0.05, atol=0.05)


@SYMMETRIC
@pytest.mark.parametrize("path", ["md17/ethanol.yml", "qm9/gap.yml"])
def test_a_plain_file_trains_without_a_second_view(md17, qm9, tmp_path, path):
    trainer = trainer_of(tiny(path, md17 if "md17" in path else qm9), tmp_path)
    steps(trainer, 2)
    assert not trainer.ndem.settings.active
    assert "noisy_forces" not in trainer._unwrapped_model.output_heads


def test_normalizer_from_the_data(md17, tmp_path):
    trainer = trainer_of(tiny("md17/ethanol.yml", md17), tmp_path)
    statistics = json.loads((md17 / "dataset.json").read_text())["conversions"][-1]["statistics"]
    train = statistics["train"]
    assert trainer.normalizers["forces"].rmsd.item() == pytest.approx(train["force_rms"])
    assert trainer.normalizers["energy"].rmsd.item() == pytest.approx(train["energy_stdev"])
    head = trainer.config["model"]["heads"]["energy_and_forces"]
    assert head["force_scale"] == pytest.approx(train["energy_stdev"] / train["force_rms"])


def test_normalizer_from_the_data_names_what_is_missing(md17, tmp_path):
    config = tiny("md17/ethanol.yml", md17)
    shutil.copytree(md17 / "train", tmp_path / "bare/train")  # of a link, the target is known
    config["dataset"]["train"]["src"] = str(tmp_path / "bare/train")
    with pytest.raises(ConfigError, match=r"bare.dataset\.json"):
        trainer_of(config, tmp_path)
    config["dataset"]["train"]["src"] = str(md17 / "train")
    config["outputs"]["gap"] = {"property": "gap", "level": "system"}
    with pytest.raises(ConfigError, match="no statistics of the output 'gap'"):
        trainer_of(config, tmp_path)


def test_gradient_forces_need_normalizers_in_numbers(md17, tmp_path):
    config = tiny("md17/ethanol.yml", md17)
    numbers = {"energy": {"mean": 0.0, "rmsd": 4.0}}
    config["dataset"]["train"]["transforms"]["normalizer"] = numbers
    with pytest.raises(ConfigError, match="force_scale"):
        trainer_of(config, tmp_path)
    config["model"]["heads"] = {"both": {"module": "esen_mlp_efs_head"}}
    numbers["forces"] = {"mean": 0.0, "rmsd": 20.0}
    with pytest.raises(ConfigError, match="Give both the same rmsd"):
        trainer_of(config, tmp_path)


def last(run_dir: Path, split: str) -> dict:
    (history,) = run_dir.rglob("history.jsonl")
    records = [json.loads(line) for line in history.read_text().splitlines()]
    return [r for r in records if r["split"] == split and "loss" in r][-1]


def test_metrics_carry_the_tables_units(md17, qm9, tmp_path):
    trainer = trainer_of(tiny("md17/ethanol.yml", md17, coefficient=1.0), tmp_path / "a")
    trainer.validate(split="val", disable_tqdm=True)
    found = last(tmp_path / "a", "val")
    assert found["forces_mae_kcal_per_mol_A"] == found["forces_mae"]
    trainer = trainer_of(tiny("qm9/gap.yml", qm9, coefficient=1.0), tmp_path / "b")
    trainer.validate(split="val", disable_tqdm=True)
    found = last(tmp_path / "b", "val")
    assert found["gap_mae_meV"] == pytest.approx(1000 * found["gap_mae"])


@pytest.mark.parametrize(
    ("output", "message"),
    [({"report_unit": "meV"}, "unit beside it"), ({"unit": "eV", "report_unit": "D"}, "convert")],
)
def test_units_that_do_not_convert_are_named(qm9, tmp_path, output, message):
    config = tiny("qm9/gap.yml", qm9, coefficient=1.0)
    config["outputs"]["gap"] = {"property": "gap", "level": "system", **output}
    with pytest.raises(ConfigError, match=message):
        trainer_of(config, tmp_path)


@SYMMETRIC
@pytest.mark.parametrize("target", QM9)
def test_every_qm9_target_trains_with_ndem(qm9, tmp_path, target):
    trainer = trainer_of(tiny(f"qm9/{target}.yml", qm9, coefficient=1.0), tmp_path)
    losses = steps(trainer, 3)
    assert all(map(math.isfinite, losses))
    assert trainer.ndem.log["ndem_loss"].total > 0
    assert f"{target}_mae" == trainer.evaluation_metrics["primary_metric"]
    noisy = trainer._unwrapped_model.output_heads["noisy_forces"]
    assert any(parameter.grad.abs().max() > 0 for parameter in noisy.parameters())


@pytest.mark.parametrize("name", [*MD17, "small"])
def test_md17_is_plain_and_one_setting_makes_it_ndem(name):
    config = load_config(str(ROOT / f"configs/md17/{name}.yml"))[0]
    assert config["task"] == {
        "ndem": {"coefficient": 0, "sigma_max": 0.05, "energy_unit": "kcal/mol"}
    }
    folder = "ethanol" if name == "small" else name
    assert config["dataset"]["train"]["src"] == f"data/md17/{folder}/train"


@pytest.mark.parametrize("name", [*QM9, "small"])
def test_qm9_is_plain_and_one_setting_makes_it_ndem(name):
    config = load_config(str(ROOT / f"configs/qm9/{name}.yml"))[0]
    assert config["task"]["ndem"] == {"coefficient": 0, "clean_forces": "zero", "sigma_max": 0.05}


@pytest.mark.parametrize("name", ["md17/aspirin", "md17/small", "qm9/gap", "qm9/small"])
def test_a_file_with_ndem_is_the_plain_one_with_that_setting(name):
    plain, ndem = (load_config(str(ROOT / f"configs/{n}.yml"))[0] for n in (name, f"{name}_ndem"))
    assert ndem["task"]["ndem"].pop("coefficient") == 1.0
    assert plain["task"]["ndem"].pop("coefficient") == 0
    assert plain == ndem


def test_a_file_for_ndem_that_is_gone_says_what_to_type(tmp_path):
    gone = ROOT / "configs/md17/benzene_ndem.yml"
    said = r"NDeM is a setting of .*md17/benzene\.yml: .*task\.ndem\.coefficient=1"
    with pytest.raises(LaunchError, match=said):
        existing_config(gone, LaunchError)
    path = tmp_path / "sweep.yml"
    path.write_text(f"{{config: {gone}, test: x, metrics: [m], grid: {{a: [1]}}}}")
    with pytest.raises(SweepError, match=said):
        read_sweep(path)
    with pytest.raises(LaunchError, match="no such file or directory"):
        existing_config(ROOT / "configs/md17/water_ndem.yml", LaunchError)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/sweeps/*.yml")), ids=lambda p: p.stem
)
def test_sweep_files_of_the_project(path):
    sweep = read_sweep(path)
    config = load_config(str(sweep.config))[0]
    for changes in sweep.arms.values():
        for key in changes:
            section = key.split(".")[0]
            assert section in config or section in ("hide_eval_progressbar",), key
    changes = next(iter(sweep.arms.values()))
    source = changes.get("dataset.train.src", config["dataset"]["train"]["src"])
    folder = Path(source).parent
    assert sweep.test == str(folder / "test")


def test_tables_4_and_5_are_the_papers():
    arms = read_sweep(ROOT / "configs/md17/sweeps/table4.yml").arms
    assert [arm["task.ndem.coefficient"] for arm in arms.values()] == [0, 0.1, 1, 10, 100]
    arms = read_sweep(ROOT / "configs/md17/sweeps/table5.yml").arms
    assert [arm["task.ndem.sigma_max"] for arm in arms.values()] == [0.005, 0.05, 0.1, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not valid YAML"),
        ("3", "must be a mapping"),
        ("{confg: a}", "unknown key 'confg'"),
        ("{config: a.yml, test: x}", "'metrics' is missing"),
        ("{config: a.yml, test: x, metrics: [m], grid: {a: [1]}}", "no such file"),
        ("{config: b.yml, test: x, metrics: [m]}", "either grid: or arms:"),
    ],
)
def test_a_bad_sweep_file_is_named(tmp_path, content, message):
    (tmp_path / "b.yml").write_text("{}")
    path = tmp_path / "sweep.yml"
    path.write_text(content)
    with pytest.raises(SweepError, match=message) as error:
        read_sweep(path)
    assert str(path) in str(error.value)


@pytest.mark.slow
def test_a_sweep_end_to_end(md17, tmp_path, capsys):
    """Two arms through stock fairchem; a second call trains nothing; a third only the new arm."""
    config = tiny("md17/small_ndem.yml", md17)
    config["optim"].update(max_epochs=2)
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    sweep = {
        "config": "c.yml",
        "seeds": [0],
        "test": str(md17 / "test"),
        "metrics": ["forces_mae_kcal_per_mol_A", "energy_mae_kcal_per_mol"],
        "arms": {"plain": {"task.ndem.coefficient": 0}, "ndem": {}},
    }
    path, out = tmp_path / "s.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(sweep))
    options = ["--out", str(out), "--seeds", "0", "--arms", "plain", "ndem"]
    assert main(["sweep", str(path), *options, "--", "optim.eval_every=20"]) == 0
    result = json.loads((out / "sweep.json").read_text())
    assert (out / "curves.png").stat().st_size > 10_000
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    for name in ("plain", "ndem"):
        arm = result["arms"][name]
        (run,) = arm["runs"]
        assert run["steps"] == 40
        assert [point["step"] for point in run["validation"]] == [20, 40]
        mean = arm["summary"]["forces_mae_kcal_per_mol_A"]["mean"]
        assert mean == run["test"]["forces_mae_kcal_per_mol_A"] > 0
        assert f"| {name} | 1 | 40 |" in table
    assert len(set(result["config_hash"].values())) == 2
    assert result["units"]["forces_mae_kcal_per_mol_A"] == "kcal_per_mol_A"
    assert set(result["data"]) == {"train", "val", "test"}

    logs = {log: log.stat().st_mtime_ns for log in out.glob("*/train.log")}
    assert main(["sweep", str(path), *options, "--", "optim.eval_every=20"]) == 0
    assert {log: log.stat().st_mtime_ns for log in out.glob("*/train.log")} == logs

    # as `ndem submit` leaves a run: trained under an id of its own, not judged yet
    where = out / "plain-seed0"
    for folder in ("checkpoints", "logs/ndem_ocp.HistoryLogger"):
        (where / folder / "train").rename(where / folder / "submitted")
    (where / "finished.json").unlink()
    (where / "status").mkdir()
    (where / "status" / "submitted.json").write_text('{"state": "finished"}')
    assert main(["sweep", str(path), *options, "--", "optim.eval_every=20"]) == 0
    assert {log: log.stat().st_mtime_ns for log in out.glob("*/train.log")} == logs
    again = json.loads((out / "sweep.json").read_text())["arms"]["plain"]["runs"]
    assert again == result["arms"]["plain"]["runs"]

    assert main(["sweep", str(path), "--out", str(out), "--", "optim.max_epochs=1"]) == 2
    assert "made with other settings" in capsys.readouterr().err

    sweep["arms"] = {"broken": {"optim.optimizer": "Nonsense"}}
    path.write_text(yaml.safe_dump(sweep))
    assert main(["sweep", str(path), "--out", str(out)]) == 2
    assert "Nonsense" in capsys.readouterr().err


def test_training_starts_from_a_pretrained_checkpoint(md17, tmp_path):
    """task.init_from: the weights of the file are those of the first step."""
    content = pretrained_files.torchmd_layout()
    torch.save(content, tmp_path / "net.ckpt")
    hyper = content["hyper_parameters"]
    config = tiny("md17/ethanol.yml", md17, coefficient=1.0)
    config["model"]["backbone"].update(
        hidden_channels=hyper["embedding_dimension"],
        num_layers=hyper["num_layers"],
        num_heads=hyper["num_heads"],
        num_rbf=hyper["num_rbf"],
        cutoff=hyper["cutoff_upper"],
        max_z=hyper["max_z"],
    )
    config["task"]["init_from"] = {"checkpoint": str(tmp_path / "net.ckpt")}
    trainer = trainer_of(config, tmp_path)
    seen = {}
    forward = trainer._forward

    def recording(batch):
        if not seen:
            weight = trainer._unwrapped_model.backbone.representation_model.embedding.weight
            seen["first"] = weight.detach().clone()
        return forward(batch)

    trainer._forward = recording
    steps(trainer, 2)
    weights = content["state_dict"]
    expected = next(
        v for k, v in weights.items() if k.endswith("representation_model.embedding.weight")
    )
    torch.testing.assert_close(seen["first"], expected, rtol=0, atol=0)

    config["task"]["init_from"] = str(tmp_path / "absent.ckpt")
    with pytest.raises(PretrainedError, match=r"absent\.ckpt"):
        steps(trainer_of(config, tmp_path / "again"), 1)
