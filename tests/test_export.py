"""``ndem export``: files that plain fairchem loads with this package absent."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from fairchem.core.modules.loss import DDPLoss

import ndem_ocp
import published_files
from conftest import tiny_config
from fairchem_kit.checkpoints import CheckpointError
from ndem_ocp.cli import main
from ndem_ocp.export import export_checkpoint
from ndem_ocp.export.plain_config import plain_config, plain_model
from ndem_ocp.models.equiformer_names import to_ours, to_upstream
from ndem_ocp.testing import trainer_of
from ndem_ocp.testing.runs import PLAIN_TRAINER
from test_calculator import FRAMES, molecules, saved, slab, slabs  # noqa: F401 (fixtures)

# A machine without this package: its import fails, and fairchem's entry for it is not there. The
# stand-ins of torch_scatter and torch_sparse stay, which fairchem cannot do without.
WITHOUT_THE_PACKAGE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ndem_ocp", "fairchem_kit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from fairchem.core.common import utils
utils.setup_experimental_imports = lambda root: None
from ase.io import read
from fairchem.core import OCPCalculator

atoms = read(sys.argv[1])
found = []
for checkpoint in sys.argv[2:]:
    try:
        atoms.calc = OCPCalculator(checkpoint_path=checkpoint, cpu=True, seed=0)
    except Exception as error:
        found.append({"error": str(error)})
        continue
    forces = atoms.get_forces().tolist()
    found.append({"energy": atoms.get_potential_energy(), "forces": forces})
assert not [name for name in sys.modules if name.split(".")[0] in ("ndem_ocp", "fairchem_kit")]
print("FOUND " + json.dumps(found))
"""


def plain_fairchem(folder, atoms, *checkpoints) -> list[dict]:
    """What OCPCalculator gives in a process that cannot import this package."""
    write(folder / "structure.traj", atoms)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, "structure.traj", *map(str, checkpoints)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def texts(value) -> list[str]:
    """Every text in a tree, keys included."""
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in texts(item))]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.slow
def test_plain_fairchem_loads_it_with_this_package_absent(slabs, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "model.pt"
    assert main(["export", slabs.last, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "weights: the moving average (EMA)" in printed
    assert "left out: output_heads.noisy_forces" in printed
    assert "model.name ndem_ocp.TwoViewHydra -> hydra" in printed
    old, old_out = tmp_path / "old.pt", tmp_path / "old_plain.pt"
    published_files.single_class(old, slabs.config["model"]["backbone"])
    export_checkpoint(old, old_out)
    exported, single_class, own = plain_fairchem(tmp_path, slab(), out, old_out, slabs.last)
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(slabs.last, device="cpu")
    forces = atoms.get_forces()
    assert exported["energy"] == pytest.approx(atoms.get_potential_energy(), rel=FRAMES)
    np.testing.assert_allclose(exported["forces"], forces, atol=FRAMES * np.abs(forces).max())
    atoms.calc = ndem_ocp.calculator(old, device="cpu")
    assert single_class["energy"] == pytest.approx(atoms.get_potential_energy(), rel=FRAMES)
    assert "ndem_ocp" in own["error"]  # the checkpoint itself cannot be loaded there


def test_what_is_in_the_file(slabs, tmp_path):  # noqa: F811
    report = export_checkpoint(slabs.last, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert (report.weights, report.step) == ("ema", slabs.step)
    assert not {"optimizer", "ema", "scheduler", "rng", "step", "epoch"} & content.keys()
    names = content["state_dict"].keys()
    assert not [name for name in names if "noisy" in name or name.startswith("module.")]
    state = slabs._unwrapped_model.state_dict()  # the fixture's model holds the average
    assert all(torch.equal(value, state[name]) for name, value in content["state_dict"].items())
    config, data = content["config"], Path(slabs.config["dataset"]["src"]).parent
    assert config["trainer"] == "equiformerv2_forces"
    assert config["model"] == to_upstream(tiny_config(data)["model"])
    assert config["dataset"]["format"] == config["val_dataset"]["format"] == "lmdb"
    assert config["dataset"]["src"] == str(data / "train")
    assert config["logger"] == {"name": "tensorboard"}
    assert not [text for text in texts(config) if "ndem" in text and "/" not in text]
    assert (tmp_path / "model.pt").stat().st_size < 0.5 * os.path.getsize(slabs.last)


def test_fairchems_trainer_validates_it_with_the_same_numbers(slabs, tmp_path):  # noqa: F811
    out = tmp_path / "model.pt"
    export_checkpoint(slabs.last, out)
    config = tiny_config(Path(slabs.config["dataset"]["src"]).parent)
    config["task"].pop("ndem")
    plain = trainer_of(config, tmp_path, PLAIN_TRAINER)
    plain.load_checkpoint(str(out))
    assert plain.ema is None
    found = plain.validate(disable_tqdm=True)
    expected = slabs.validate(disable_tqdm=True)
    # the fixture holds its average in the place of the weights, where validate puts it itself
    for name in ("energy_mae", "forces_mae", "loss"):
        assert found[name]["metric"] == pytest.approx(expected[name]["metric"], rel=FRAMES)


def test_weights_of_the_last_step(slabs, tmp_path):  # noqa: F811
    report = export_checkpoint(slabs.last, tmp_path / "raw.pt", weights="last")
    assert "those of the last step (no EMA)" in str(report)
    saved_raw = torch.load(slabs.last, weights_only=True)["state_dict"]
    for name, value in torch.load(tmp_path / "raw.pt", weights_only=True)["state_dict"].items():
        assert torch.equal(value, saved_raw[name])
    assert ndem_ocp.calculator(tmp_path / "raw.pt", device="cpu").weights == "last"


def test_an_export_is_exported_again_to_the_same(slabs, tmp_path):  # noqa: F811
    export_checkpoint(slabs.best, tmp_path / "one.pt")
    report = export_checkpoint(tmp_path / "one.pt", tmp_path / "two.pt")
    assert report.dropped == {}
    assert report.weights == "ema"
    one, two = (torch.load(tmp_path / n, weights_only=True) for n in ("one.pt", "two.pt"))
    assert one["config"] == two["config"]
    assert all(torch.equal(v, two["state_dict"][n]) for n, v in one["state_dict"].items())


def test_other_objectives_become_plain(demo_data, tmp_path):
    config = tiny_config(demo_data, objective="dens")
    trainer = saved(config, tmp_path, 1)
    report = export_checkpoint(trainer.last, tmp_path / "plain.pt")
    assert set(report.dropped) == {"output_heads.noisy_forces", "backbone.force_embedding"}
    content = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert content["config"]["model"]["backbone"]["model"] == "equiformer_v2_backbone"
    shared = saved(tiny_config(demo_data, head="shared"), tmp_path / "shared", 1)
    report = export_checkpoint(shared.last, tmp_path / "shared.pt")
    assert report.dropped == {}


def test_our_equiformer_v2_gets_its_upstream_name(slabs):  # noqa: F811
    """Also where the run itself was written with fairchem's names."""
    for rename in (to_ours, to_upstream):
        config = copy.deepcopy(slabs.config)
        config["model"] = rename(config["model"])
        model = plain_model(config, "model.pt")
        assert model["name"] == "hydra"
        assert model["backbone"]["model"] == "equiformer_v2_backbone"
        modules = [head["module"] for head in model["heads"].values()]
        assert modules == ["equiformerV2_scalar_head", "equiformerV2_vector_head"]


def test_a_network_that_fairchem_does_not_have_is_refused(molecules, tmp_path, capsys):  # noqa: F811
    assert main(["export", molecules.last, str(tmp_path / "model.pt")]) == 2
    said = capsys.readouterr().err
    assert "ndem_ocp.TorchMDETBackbone is not in plain fairchem" in said
    assert "With it installed the checkpoint works as it is: ndem_ocp.calculator" in said
    assert not list(tmp_path.iterdir())


def test_losses_and_metrics_get_fairchems_names(slabs):  # noqa: F811
    config = copy.deepcopy(slabs.config)
    config["loss_functions"] = [{"forces": {"fn": "squared_l2", "coefficient": 10}}]
    config["outputs"]["forces"] |= {"unit": "kcal/mol/A", "report_unit": "kcal/mol/A"}
    config["evaluation_metrics"]["primary_metric"] = "forces_mae_kcal_per_mol_A"
    plain, changed = plain_config(config, plain_model(config, "model.pt"))
    assert plain["loss_functions"] == [{"forces": {"fn": "mse", "coefficient": 30}}]
    assert plain["evaluation_metrics"]["primary_metric"] == "forces_mae"
    assert "loss of forces: squared_l2 -> mse, its coefficient times 3" in changed
    found, target = torch.randn(2, 5, 3).unbind()
    loss = {name: DDPLoss(name, reduction=None) for name in ("mse", "squared_l2")}
    natoms = torch.tensor([5])
    torch.testing.assert_close(
        3 * loss["mse"](found, target, natoms), loss["squared_l2"](found, target, natoms)
    )


def test_a_file_is_not_overwritten_and_must_be_a_checkpoint(slabs, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "model.pt"
    out.write_text("mine")
    assert main(["export", slabs.last, str(out)]) == 2
    assert "exists: give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["export", slabs.last, str(out), "--overwrite"]) == 0
    for source, target, words in (
        (out, out, "exists"),
        (tmp_path / "none.pt", tmp_path / "b.pt", "no such file"),
        (out, tmp_path / "no" / "b.pt", "its folder does not exist"),
    ):
        with pytest.raises(CheckpointError, match=words):
            export_checkpoint(source, target, overwrite=True)
    content = torch.load(slabs.last, weights_only=True)
    content["config"]["model"]["backbone"]["sphere_channels"] = 16
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not those of the network in its configuration"):
        export_checkpoint(tmp_path / "other.pt", tmp_path / "c.pt", weights="last")
