"""Relaxing initial structures with a model and comparing with the relaxed ones (IS2RE, IS2RS).

fairchem's batched L-BFGS and its metrics:

    energy MAE, EwT   predicted final energy relative to the true relaxed energy: mean error, and
                      share of systems below 0.02 eV (IS2RE)
    ADwT              mean over thresholds from 0.01 to 0.5 A of the share of systems whose free
                      atoms are on average closer to their relaxed positions (IS2RS)

OC20's FbT and AFbT need DFT forces at the model's final structure, so they are not computed; the
largest remaining force according to the model, ``fmax``, is in the file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common.relaxation.ml_relaxation import ml_relax
from fairchem.core.modules.evaluator import Evaluator, min_diff
from torch import Tensor
from torch_geometric.data import Batch, Data

from fairchem_kit.evaluation.batches import ids_of, load_batches, numbers_of_batches
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.finished import Finished
from fairchem_kit.evaluation.model import LoadedModel
from fairchem_kit.evaluation.samples import cells, hill
from fairchem_kit.files import replacing
from fairchem_kit.training.relaxations import ENERGY, allow_relaxations
from fairchem_kit.units.columns import Column
from fairchem_kit.words import counted

#: OC20's relaxations (fairchem's TRAIN.md); a run's own task.relax_opt takes precedence
LBFGS = {"maxstep": 0.04, "memory": 50, "damping": 1.0, "alpha": 70.0}
STEPS, FMAX = 300, 0.02  # fairchem's; eV/A
ADWT = "positions_average_distance_within_threshold"
COLUMNS = (
    Column("energy_mae_eV", "energy MAE (eV)", "energy_mae", 1.0, "eV", 4),
    Column("ewt_percent", "EwT (%)", "energy_within_threshold", 100.0, "%", 2),
    Column("adwt_percent", "ADwT (%)", ADWT, 100.0, "%", 2),
    Column("start_adwt_percent", "ADwT of the start (%)", "start_adwt", 100.0, "%", 2),
    Column("converged_percent", "converged (%)", "converged", 100.0, "%", 1),
)


@dataclass(frozen=True)
class Settings:
    """Settings of a relaxation.

    Attributes:
        steps: maximum number. fmax: converged if no force on a free atom is larger, eV/A. options:
            of fairchem's L-BFGS. trajectories: directory for SID.traj, or None.
    """

    steps: int
    fmax: float
    options: dict[str, float]
    trajectories: Path | None = None


@dataclass(frozen=True)
class RelaxedBatch:
    """The result of one batch.

    Attributes:
        number: of the batch. sums: metric -> (total, count).
        columns: name -> (structures,) values for the file. positions: of each structure, (n, 3) A.
    """

    number: int
    sums: dict[str, tuple[float, float]]
    columns: dict[str, np.ndarray]
    positions: list[np.ndarray]


def relax(
    model: LoadedModel,
    dataset: Any,
    batch_size: int,
    settings: Settings,
    *,
    rank: int = 0,
    ranks: int = 1,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    finished: Finished | None = None,
) -> list[RelaxedBatch]:
    """Relax this rank's batches of a split and compare with labels, if there are any.

    ``finished`` keeps results for a command that is stopped, and has those of an earlier one.
    """
    allow_relaxations()
    numbers = numbers_of_batches(len(dataset), batch_size, rank, ranks)
    finished = finished or Finished()
    with finished.missing(numbers) as missing:
        batches = load_batches(model, dataset, batch_size, missing, prepare=_mark)
        for number, batch in watch(batches, len(missing)) if watch else batches:
            finished.add(_relax_batch(model, batch, number, number * batch_size, settings))
    return finished.of(numbers)


class PredictingInEv:
    """A trainer whose predicted energies and forces are in eV and eV/A, as relaxations need them.

    Args:
        trainer: fairchem's. per_ev: the unit of its predictions per eV.
    """

    def __init__(self, trainer: Any, per_ev: float) -> None:
        self._trainer, self._per_ev = trainer, per_ev

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        predicted = self._trainer.predict(*args, **kwargs)
        return {
            name: value / self._per_ev if name in ("energy", "forces") else value
            for name, value in predicted.items()
        }


def _mark(records: list[Data]) -> list[Data]:
    """Store each record's index and start: fairchem halves and reorders a batch too large for the
    GPU."""
    for row, record in enumerate(records):
        record.row, record.pos_start = row, record.pos.clone()
    return records


def _relax_batch(
    model: LoadedModel, batch: Batch, number: int, first: int, settings: Settings
) -> RelaxedBatch:
    device = model.trainer.device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)  # see LoadedModel.predict
        relaxed = ml_relax(
            batch=batch,
            model=PredictingInEv(model.trainer, model.per_ev()),
            steps=settings.steps,
            fmax=settings.fmax,
            relax_opt={**settings.options, "traj_dir": settings.trajectories},
            save_full_traj=True,
        )
    count = relaxed.natoms.numel()
    natoms = relaxed.natoms.reshape(-1).cpu()
    free = relaxed.fixed.reshape(-1).cpu() == 0
    positions = relaxed.pos.cpu()
    energy = relaxed.energy.reshape(-1).cpu()
    columns = {
        "index": first + relaxed.row.reshape(-1).cpu().numpy(),
        "sid": ids_of(relaxed, "sid", count),
        "natoms": natoms.numpy(),
        "free_atoms": np.array([int(part.sum()) for part in free.split(natoms.tolist())]),
        "formula": np.array(
            [hill(z.cpu()) for z in relaxed.atomic_numbers.split(natoms.tolist())], dtype=object
        ),
        "energy_prediction": energy.numpy(),
        "fmax": _largest(relaxed.forces.cpu().norm(dim=1), free, natoms),
    }
    columns["converged"] = (columns["fmax"] < settings.fmax).astype(float)
    sums = {"converged": (float(columns["converged"].sum()), float(count))}
    if "pos_relaxed" in relaxed and ENERGY in relaxed:
        ends = {"end": positions[free], "start": relaxed.pos_start.cpu()[free]}
        sums |= _compare(relaxed, ends, energy, free, columns)
    return RelaxedBatch(
        number, sums, columns, [p.numpy() for p in positions.split(natoms.tolist())]
    )


def _compare(
    relaxed: Batch,
    ends: dict[str, Tensor],
    energy: Tensor,
    free: Tensor,
    columns: dict[str, np.ndarray],
) -> dict[str, tuple[float, float]]:
    """fairchem's metrics of a batch; adds labels, errors and distances to ``columns``."""
    label = relaxed[ENERGY].reshape(-1).cpu()
    target = {
        "positions": relaxed.pos_relaxed.cpu()[free],
        "cell": relaxed.cell.cpu(),
        "pbc": relaxed.pbc.reshape(-1, 3)[0].cpu() if "pbc" in relaxed else torch.ones(3).bool(),
        "natoms": torch.tensor(columns["free_atoms"]),
    }
    has_free = target["natoms"] > 0
    if not bool(has_free.all()):  # nothing to compare: fairchem's mean would be NaN
        target = {**target, "cell": target["cell"][has_free], "natoms": target["natoms"][has_free]}
    columns["energy_label"] = label.numpy()
    columns["energy_error"] = (energy - label).numpy()
    sums = {}
    for name, positions in ends.items():
        measured = Evaluator(task="is2rs").eval({**target, "positions": positions}, target)
        distance = np.full(len(has_free), np.nan)
        distance[has_free.numpy()] = distances(positions, target)
        columns[f"{name}_distance"] = distance
        sums[f"{name}_distance"] = (float(np.nansum(distance)), float(has_free.sum()))
        if name == "start":
            measured = {"start_adwt": measured[ADWT]}
        sums |= {k: (float(m["total"]), float(m["numel"])) for k, m in measured.items()}
    is2re = Evaluator(task="is2re").eval({"energy": energy}, {"energy": label})
    return sums | {k: (float(m["total"]), float(m["numel"])) for k, m in is2re.items()}


def distances(positions: Tensor, target: dict[str, Tensor]) -> list[float]:
    """Mean distance of each structure's free atoms from the target, A, by the nearest image."""
    natoms = target["natoms"].tolist()
    found = []
    for mine, theirs, cell in zip(
        positions.split(natoms), target["positions"].split(natoms), target["cell"]
    ):
        apart = min_diff(mine.numpy(), theirs.numpy(), cell.numpy(), target["pbc"].tolist())
        found.append(float(np.linalg.norm(apart, axis=1).mean()))
    return found


def merge(
    results: Sequence[RelaxedBatch], records: int
) -> tuple[dict[str, float], dict[str, np.ndarray], list[np.ndarray]]:
    """Metrics, columns and positions of a whole split.

    Raises:
        EvaluationError: if a record is missing or appears twice.
    """
    results = sorted(results, key=lambda result: result.number)
    columns = {
        name: np.concatenate([result.columns[name] for result in results])
        for name in results[0].columns
    }
    order = np.argsort(columns["index"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    if not np.array_equal(columns["index"], np.arange(records)):
        raise EvaluationError(
            f"relaxed: {counted(len(columns['index']), 'structure')}, but the split has {records}."
        )
    metrics = {}
    for name in results[0].sums:
        total, count = (sum(v) for v in zip(*(r.sums[name] for r in results)))
        metrics[name] = total / count if count else float("nan")
    positions = [part for result in results for part in result.positions]
    return metrics, columns, [positions[i] for i in order]


def write(
    folder: Path, name: str, columns: dict[str, np.ndarray], positions: list[np.ndarray]
) -> list[str]:
    """Write ``NAME.relaxations.csv``, and ``NAME.relaxed_positions.npz`` in fairchem's format.

    The npz has ids, pos (all atoms of all structures, A) and chunk_idx, where pos is split;
    fairchem's make_submission_file makes the IS2RS submission from four of them.

    Raises:
        OutputError: if writing fails.
    """
    table, stored = folder / f"{name}.relaxations.csv", folder / f"{name}.relaxed_positions.npz"
    with replacing(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(cells(values) for values in columns.values())))
    order = np.argsort(columns["sid"].astype(str), kind="stable")  # as in fairchem
    with replacing(stored) as temporary:
        np.savez_compressed(
            temporary,
            ids=columns["sid"].astype(str)[order],
            pos=np.concatenate([positions[i] for i in order]),
            chunk_idx=np.cumsum([len(positions[i]) for i in order])[:-1],
        )
    return [table.name, stored.name]


def _largest(values: Tensor, free: Tensor, natoms: Tensor) -> np.ndarray:
    """The largest value on a free atom of each structure, 0 if it has none."""
    parts = zip(values.split(natoms.tolist()), free.split(natoms.tolist()))
    return np.array([float(v[f].max()) if bool(f.any()) else 0.0 for v, f in parts])
