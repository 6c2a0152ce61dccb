"""Predicting one split batch by batch, with fairchem's metrics and values per structure.

The batches are filled in the order of the records, and the last one may be smaller; rank r of n
takes every n-th batch, starting with the r-th. So each record is in exactly one batch, and all
results, including rounding, are the same for any number of ranks: sums are added in the order of
the batches, and a model that draws random numbers gets the batch's number as seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.evaluator import Evaluator
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data

from fairchem_kit.data.reader import loader_options
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.finished import Finished
from fairchem_kit.evaluation.model import LoadedModel
from fairchem_kit.evaluation.samples import Samples, hill, join
from fairchem_kit.units.columns import EFWT, FORCES, forces_in_ev
from fairchem_kit.units.metrics import add_unit_metrics, unit_metrics
from fairchem_kit.words import counted

ENERGY_THRESHOLD, FORCE_THRESHOLD = 0.02, 0.03  # eV, eV/A: thresholds of EFwT in OC20 and fairchem


@dataclass(frozen=True)
class BatchResult:
    """The result of one batch.

    Attributes:
        number: of the batch in its split.
        sums: fairchem's metric -> (total, count).
        samples: its structures.
    """

    number: int
    sums: dict[str, tuple[float, float]]
    samples: Samples


def metrics_of(config: dict[str, Any]) -> dict[str, list[str]]:
    """The metrics that fairchem computes: those of the configuration and those of the tables."""
    given = (config.get("evaluation_metrics") or {}).get("metrics") or {}
    wanted = {name: list(functions) for name, functions in given.items()}
    needed = [(name, "mae") for name in config["outputs"]]
    if (config["outputs"].get(FORCES) or {}).get("level") == "atom":
        needed += [(FORCES, "cosine_similarity"), (FORCES, "magnitude_error")]
    for name, function in needed:
        if function not in wanted.setdefault(name, []):
            wanted[name].append(function)
    if forces_in_ev(config["outputs"]) and not any(EFWT in names for names in wanted.values()):
        wanted.setdefault("misc", []).append(EFWT)
    return wanted


def numbers_of_batches(records: int, batch_size: int, rank: int, ranks: int) -> range:
    """The batches of one rank."""
    return range(rank, -(-records // batch_size), ranks)


def evaluate(
    model: LoadedModel,
    dataset: Any,
    batch_size: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
    finished: Finished | None = None,
) -> list[BatchResult]:
    """Evaluate this rank's batches of a split.

    Args:
        model: from ``load_model``. dataset: from ``open_split``.
        batch_size: structures in a batch. rank, ranks: which batches.
        workers: processes that read. watch: wraps the loop, for a progress bar.
        finished: keeps results for a command that is stopped, and has those of an earlier one.

    Raises:
        DataError: a record cannot be used; the message names it.
    """
    numbers = numbers_of_batches(len(dataset), batch_size, rank, ranks)
    evaluator = Evaluator(task="ocp", eval_metrics=metrics_of(model.config))
    units = unit_metrics(model.outputs)
    finished = finished or Finished()
    with finished.missing(numbers) as missing:
        batches = load_batches(model, dataset, batch_size, missing, workers)
        for number, batch in watch(batches, len(missing)) if watch else batches:
            out, raw = model.predict(batch, seed=number)
            with torch.no_grad():
                measured = model.trainer._compute_metrics(out, batch, evaluator, {})
            add_unit_metrics(measured, units)
            sums = {name: (float(m["total"]), float(m["numel"])) for name, m in measured.items()}
            samples = _samples(model, batch, raw, number * batch_size)
            finished.add(BatchResult(number, sums, samples))
    return finished.of(numbers)


def load_batches(
    model: LoadedModel,
    dataset: Any,
    batch_size: int,
    numbers: Iterable[int],
    workers: int = 0,
    prepare: Callable[[list[Data]], list[Data]] | None = None,
) -> Iterator[tuple[int, Batch]]:
    """The batches with these numbers, in order; ``prepare`` is applied to a batch's records."""
    numbers = list(numbers)
    records = [
        list(range(number * batch_size, min((number + 1) * batch_size, len(dataset))))
        for number in numbers
    ]
    otf_graph = model.config["model"].get("otf_graph", False)
    loader = DataLoader(
        dataset,
        batch_sampler=records,
        collate_fn=partial(_collate, prepare, otf_graph),
        num_workers=workers,
        pin_memory=model.trainer.device.type == "cuda",
        **loader_options(workers),
    )
    yield from zip(numbers, loader)


def _collate(
    prepare: Callable[[list[Data]], list[Data]] | None, otf_graph: bool, records: list[Data]
) -> Batch:
    return data_list_collater(prepare(records) if prepare else records, otf_graph=otf_graph)


def merge(results: list[BatchResult], records: int) -> tuple[dict[str, float], Samples]:
    """The metrics and structures of a whole split from the batches of all ranks.

    Args:
        results: in any order. records: of the split.

    Returns:
        fairchem's metric -> its mean over the split (NaN over nothing), and the structures.

    Raises:
        EvaluationError: if a record is missing or appears twice.
    """
    results = sorted(results, key=lambda result: result.number)
    samples = join([result.samples for result in results])
    if not np.array_equal(samples.columns["index"], np.arange(records)):
        raise EvaluationError(
            f"evaluated: {counted(len(samples), 'structure')}, but the split has {records}: a rank "
            "is missing, or the data were changed meanwhile. Start the command again."
        )
    names = sorted({name for result in results for name in result.sums})
    metrics = {}
    for name in names:
        sums = [result.sums.get(name, (0.0, 0.0)) for result in results]
        total, count = (sum(values) for values in zip(*sums))
        metrics[name] = total / count if count else float("nan")
    return metrics, samples


def _samples(model: LoadedModel, batch: Batch, raw: dict[str, Tensor], first: int) -> Samples:
    """The rows of one batch, from outputs in the data's units."""
    count = batch.natoms.numel()
    natoms = _array(batch.natoms).reshape(-1).astype(np.int64)
    structure = np.repeat(np.arange(count), natoms)
    free = _array(batch.fixed).reshape(-1) == 0
    numbers = _array(batch.atomic_numbers).reshape(-1).astype(np.int64)
    tags = _tags(batch, len(numbers))
    columns: dict[str, np.ndarray] = {
        "index": np.arange(first, first + count),
        "sid": ids_of(batch, "sid", count),
        "fid": ids_of(batch, "fid", count),
        "natoms": natoms,
        "free_atoms": np.bincount(structure, weights=free, minlength=count).astype(np.int64),
        **_formulas(numbers, tags, natoms),
    }
    for name, output in model.outputs.items():
        if output["level"] != "system" or raw[name].numel() != count:
            continue
        label, prediction = (_array(v).reshape(-1) for v in (batch[name], raw[name]))
        columns |= {
            f"{name}_label": label,
            f"{name}_prediction": prediction,
            f"{name}_error": prediction - label,
        }
    forces = model.outputs.get(FORCES)
    if forces is None or forces["level"] != "atom":
        return Samples(columns, {})
    label, prediction = (_array(v).reshape(-1, 3) for v in (batch[FORCES], raw[FORCES]))
    counted = free if forces.get("eval_on_free_atoms", True) else np.ones_like(free)
    columns |= _force_columns(label, prediction, counted, structure, count)
    if forces_in_ev(model.outputs):
        columns["efwt"] = _within_threshold(columns)
    atoms = {
        "structure": structure,
        "atomic_numbers": numbers.astype(np.uint8),
        "tags": tags,
        "free": free,
        "force_label": label,
        "force_prediction": prediction,
    }
    return Samples(columns, atoms)


def _force_columns(
    label: np.ndarray,
    prediction: np.ndarray,
    counted: np.ndarray,
    structure: np.ndarray,
    count: int,
) -> dict[str, np.ndarray]:
    """Means over the counted atoms of each structure, NaN if there are none."""
    label, prediction, rows = label[counted], prediction[counted], structure[counted]
    error = np.abs(label - prediction)
    number = np.bincount(rows, minlength=count)
    cosine = torch.cosine_similarity(torch.tensor(prediction), torch.tensor(label)).numpy()
    largest = np.full(count, -np.inf, dtype=error.dtype)
    np.maximum.at(largest, rows, error.max(axis=1, initial=0.0))

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(rows, weights=values, minlength=count)
        return np.divide(sums, number, out=np.full(count, np.nan), where=number > 0)

    return {
        "force_mae": mean(error.mean(axis=1, dtype=np.float64)),
        "force_cosine": mean(cosine),
        "force_max_error": np.where(number > 0, largest, np.nan),
        "force_rms": np.sqrt(mean((label.astype(np.float64) ** 2).mean(axis=1))),
    }


def _within_threshold(columns: dict[str, np.ndarray]) -> np.ndarray:
    """OC20's EFwT of each structure: 1 or 0, NaN if no atom counts."""
    largest = columns["force_max_error"]
    within = (np.abs(columns["energy_error"]) < ENERGY_THRESHOLD) & (largest < FORCE_THRESHOLD)
    return np.where(np.isnan(largest), np.nan, within.astype(float))


def _formulas(numbers: np.ndarray, tags: np.ndarray, natoms: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum(natoms)[:-1]
    formulas, adsorbates = [], []
    for z, tag in zip(np.split(numbers, ends), np.split(tags, ends)):
        surface = bool(((tag >= 0) & (tag < 2)).any())
        formulas.append(hill(z))
        adsorbates.append(hill(z[tag == 2]) if surface else "")
    return {
        "formula": np.array(formulas, dtype=object),
        "adsorbate": np.array(adsorbates, dtype=object),
    }


def _tags(batch: Batch, count: int) -> np.ndarray:
    if "tags" not in batch:
        return np.full(count, -1, dtype=np.int8)
    return _array(batch.tags).reshape(-1).astype(np.int8)


def ids_of(batch: Batch, key: str, count: int) -> np.ndarray:
    """sid or fid as text."""
    if key not in batch:
        return np.full(count, "", dtype=object)
    values = batch[key]
    values = values.reshape(-1).tolist() if isinstance(values, Tensor) else list(values)
    return np.array([str(value) for value in values], dtype=object)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
