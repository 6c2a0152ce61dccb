"""One file of second views for both hosts; the structures are found although fairchem 2 wraps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import write
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch
from fairchem.core.datasets.mt_concat_dataset import create_concat_dataset
from omegaconf import OmegaConf
from small import NDEM, SAVING, train
from test_data import frames

from fairchem_kit.data.errors import DataError
from ndem_ocp.cli import main
from ndem_ocp.fairchem2.conserving import conserving_model
from ndem_ocp.fairchem2.model import conserving
from ndem_ocp.fairchem2.second_views import AseViewSource, record_digest, shown_digest
from ndem_ocp.method import NDeMSettings, step_generator

SETTINGS = NDeMSettings(target="second_views", share=1.0, sigma_max=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same frames as S2EF LMDB and as aselmdb, and views made of the former."""
    folder = tmp_path_factory.mktemp("views")
    write(folder / "slab.traj", frames(8))
    quiet = ["--no-progress"]
    for form in ("lmdb", "aselmdb"):
        words = [str(folder / "slab.traj"), "--out", str(folder / form), "--format", form]
        assert (
            main(["data", "ase", *words, "--val-fraction", "0.25", "--split-by", "frame", *quiet])
            == 0
        )
    words = ["--calculator", "ase.calculators.emt:EMT()", "--out", str(folder / "views.lmdb")]
    words += ["--draws", "3", "--scale", "1", *quiet]
    assert main(["data", "second-views", str(folder / "lmdb/train"), *words]) == 0
    return folder


def dataset(source, name="own", split="train"):
    config = {
        "splits": {split: {"src": str(source)}},
        "format": "ase_db",
        "a2g_args": {"r_forces": True},
        "transforms": {"common_transform": {"dataset_name": name}},
    }
    sampling = {"sampling": {"type": "temperature", "temperature": 1.0}}
    return create_concat_dataset(OmegaConf.create({name: config}), sampling)


def batch_of(data, rows):
    batch = atomicdata_list_to_batch([data[row] for row in rows])
    return batch


def test_a_view_of_a_wrapped_structure_is_that_of_its_record(folder):
    data = dataset(folder / "aselmdb/train")
    part = data.datasets[0]
    assert any(shown_digest(part[i]) != record_digest(part, i) for i in range(len(part)))
    source = AseViewSource(folder / "views.lmdb", data, SETTINGS)
    batch = batch_of(data, range(len(data)))
    noise = source.draw(batch, step_generator(0, 0, 1))
    assert noise.viewed.all()
    assert not noise.eps[batch.fixed == 1].any()
    for number in range(len(data)):
        here = batch.batch == number
        atoms = Atoms(
            batch.atomic_numbers[here].numpy(),
            (batch.pos + noise.eps)[here].double().numpy(),
            cell=batch.cell[number].double().numpy(),
            pbc=True,
            calculator=EMT(),
        )
        wanted = torch.tensor(atoms.get_forces(), dtype=torch.float32)
        found = (batch.forces + noise.labels.force_change)[here]
        assert torch.allclose(found, wanted, atol=2e-3)
        work = (batch.forces * noise.eps)[here].sum()
        energy = batch.energy[number] - work + noise.labels.energy_remainder[number]
        assert energy.item() == pytest.approx(atoms.get_potential_energy(), abs=1e-3)


def test_the_same_step_draws_the_same(folder):
    data = dataset(folder / "aselmdb/train")
    source = AseViewSource(folder / "views.lmdb", data, SETTINGS)
    batch = batch_of(data, (0, 1))
    first, again, other = (source.draw(batch, step_generator(0, 0, n)).eps for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_views_of_other_records_are_refused(folder):
    with pytest.raises(DataError, match=r"has no second views for own\.val"):
        AseViewSource(folder / "views.lmdb", dataset(folder / "aselmdb/val", split="val"), SETTINGS)


def test_views_can_be_made_of_aselmdb(folder):
    words = ["--calculator", "ase.calculators.emt:EMT()", "--out", str(folder / "own.lmdb")]
    words += ["--draws", "3", "--scale", "1", "--no-progress"]
    assert main(["data", "second-views", str(folder / "aselmdb/train"), *words]) == 0
    data = dataset(folder / "aselmdb/train")
    batch = batch_of(data, (0, 1))
    draws = [
        AseViewSource(folder / name, data, SETTINGS).draw(batch, step_generator(0, 0, 1))
        for name in ("views.lmdb", "own.lmdb")
    ]
    assert torch.equal(draws[0].eps, draws[1].eps)
    assert np.allclose(*(d.labels.force_change for d in draws), atol=1e-4)


def test_training_in_place_then_conserving(folder, tmp_path):
    words = [f"views={folder / 'views.lmdb'}", "steps=2", "max_atoms=40", SAVING % 10]
    unit, lines, run = train("second_views.yaml", folder / "aselmdb", tmp_path, *words)
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_energy"] + line["loss_forces"], rel=1e-6)
        assert 0.0 <= line["ndem_share_of_atoms"] <= 1.0
    assert any("ndem_change_error_eV_per_A" in line for line in lines)
    assert not [name for name, _ in unit.model.named_parameters() if "noisy" in name]
    # the first of eSEN's two parts may be this one, too
    second = conserving_model(str(run / "checkpoints/final/inference_ckpt.pt"))
    assert conserving(second.backbone)
    old = unit.model.module.output_heads["energy"].energy_block.state_dict()
    for name, weight in second.output_heads["efs"].energy_block.state_dict().items():
        assert torch.equal(weight, old[name])


def test_beside_the_auxiliary_head_learns_the_change_of_forces(folder, tmp_path):
    words = [f"views={folder / 'views.lmdb'}", "steps=2", "max_atoms=40", "model=conserving"]
    words += [f"+{NDEM}.place=beside", f"~{NDEM}.share"]
    _, lines, _ = train("second_views.yaml", folder / "aselmdb", tmp_path, *words)
    for line in lines:
        parts = line["loss_energy"] + line["loss_forces"] + line["ndem_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)
        assert line["ndem_change_error_eV_per_A"] > 0.0
