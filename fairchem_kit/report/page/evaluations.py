"""The files of ``ndem eval`` for the runs of a report, and errors by group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.atomic_files import read_json
from fairchem_kit.evaluation import Samples, read_samples
from fairchem_kit.files import existing
from fairchem_kit.report.page.errors import ReportError
from fairchem_kit.report.page.runs import Run

METRICS = "metrics.json"
FEWEST = 10  # atoms in a bin, or it is not shown
MOST_GROUPS = 18  # adsorbates or elements in a figure


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run's checkpoint.

    Attributes:
        run: that was evaluated. folder: of the files. about: its metrics.json, with the splits for
            which no later evaluation of the same model exists.
    """

    run: Run
    folder: Path
    about: dict[str, Any]

    @property
    def splits(self) -> list[str]:
        return [n for n in self.about["splits"] if (self.folder / f"{n}.samples.csv").exists()]

    @property
    def model(self) -> tuple[Any, ...]:
        """What two evaluations of the same weights share, be they of best_checkpoint.pt or of a
        copy or export of it."""
        checkpoint = self.about["checkpoint"]
        step = checkpoint.get("step")
        return checkpoint.get("weights"), checkpoint.get("sha256") if step is None else step

    @property
    def weights(self) -> str:
        return str(self.about["checkpoint"].get("weights"))

    def unit(self, output: str) -> str:
        unit = str((self.about.get("units") or {}).get(output) or "unit of the data")
        return unit.removesuffix("/A") + "/Å" if unit.endswith("/A") else unit

    def samples(self, split: str) -> Samples:
        return read_samples(self.folder, split)


def find_evaluations(
    runs: Sequence[Run], given: Sequence[Path]
) -> tuple[list[Evaluation], list[str]]:
    """The newest evaluation of each run, and the earlier ones of the same model for the splits that
    it lacks. Also a sentence for each folder that is left out.

    The given folders, the run directories and ``./eval`` are searched.

    Raises:
        ReportError: for a given folder without an evaluation.
    """
    found: dict[Path, Evaluation] = {}
    notes = []
    for folder in given:
        existing(folder, ReportError)
        files = sorted(folder.rglob(METRICS))
        if not files:
            raise ReportError(f"{folder}: no {METRICS} of ndem eval was found in it.")
        for path in files:
            if _checkpoint_of(read_json(path) or {}) is None:
                raise ReportError(
                    f"{path}: this is not a {METRICS} of ndem eval, or it is damaged."
                )
        here = {path: _evaluation(path, runs) for path in files}
        found.update({path.resolve(): e for path, e in here.items() if e is not None})
        notes += [
            f"{path.parent} is an evaluation of a checkpoint of another run and is left out."
            for path, e in here.items()
            if e is None
        ]
    nearby = [*Path("eval").glob(f"*/{METRICS}")]
    for run in runs:
        nearby += [*run.run_dir.glob(METRICS), *run.run_dir.glob(f"eval*/**/{METRICS}")]
    for path in nearby:
        evaluation = _evaluation(path, runs)
        if evaluation is not None:
            found.setdefault(path.resolve(), evaluation)
    by_run: dict[Path, list[Evaluation]] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        by_run.setdefault(found[path].run.logs, []).append(found[path])
    shown = []
    for ours in by_run.values():
        kept, older = _of_newest_model(ours)
        shown += kept
        notes += [
            f"{e.folder / name}.samples.csv is missing, so the evaluation of {name} is left out."
            for e in kept
            for name in e.about["splits"]
            if name not in e.splits
        ]
        notes += older
    return shown, notes


def _of_newest_model(evaluations: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """Evaluations of a run, newest first: those of the first one's model, each with the splits that
    no newer one has; a sentence for each that is of another model."""
    newest, seen, kept, notes = evaluations[0], set(), [], []
    for evaluation in evaluations:
        if evaluation.model != newest.model:
            notes.append(
                f"{evaluation.folder} is an evaluation of {_model_text(evaluation)} and is left "
                f"out, because {newest.folder} is a newer one, of {_model_text(newest)}."
            )
            continue
        splits = evaluation.about["splits"]
        own = {name: split for name, split in splits.items() if _data(name, split) not in seen}
        seen |= {_data(name, split) for name, split in own.items()}
        if own:
            kept.append(replace(evaluation, about={**evaluation.about, "splits": own}))
    return kept, notes


def _data(name: str, split: dict[str, Any]) -> tuple[str, Any]:
    return name, split.get("data_hash") or split.get("path")


def _model_text(evaluation: Evaluation) -> str:
    step = evaluation.about["checkpoint"].get("step")
    name = "an unknown step" if step is None else f"step {step}"
    return f"{evaluation.run.name} at {name} with weights {evaluation.weights!r}"


def _evaluation(path: Path, runs: Sequence[Run]) -> Evaluation | None:
    """The evaluation in a metrics.json; None if it is another file or belongs to none of the
    runs."""
    about = read_json(path) or {}
    checkpoint = _checkpoint_of(about)
    if checkpoint is None:
        return None
    given = Path(str(checkpoint.get("path")))
    resolved = given.resolve()
    for run in runs:
        if resolved.is_relative_to((run.run_dir / "checkpoints" / run.run_id).resolve()):
            return Evaluation(run, path.parent, about)
    # model.pt of ndem fit, a run that was moved or copied, or a path from another working
    # directory: matched by its id and name, if only one run has them.
    named = [
        run
        for run in runs
        if checkpoint.get("run") == run.run_id
        and checkpoint.get("identifier") == run.command.get("identifier")
    ]
    inside = [run for run in named if resolved.is_relative_to(run.run_dir.resolve())]
    if not inside and resolved.exists() and (given.is_absolute() or _of_a_run(resolved, named)):
        return None
    fitting = inside or named
    return Evaluation(fitting[0], path.parent, about) if len(fitting) == 1 else None


def _of_a_run(checkpoint: Path, runs: Sequence[Run]) -> bool:
    """Whether a file is in the directory of a run that has the id of these."""
    ids = {run.run_id for run in runs}
    return any((p / "checkpoints" / name).is_dir() for p in checkpoint.parents for name in ids)


def _checkpoint_of(about: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint section of a metrics.json; None if ndem eval did not write the file."""
    splits, checkpoint = about.get("splits"), about.get("checkpoint")
    known = isinstance(splits, dict) and all(map(_is_split, splits.values()))
    known = known and isinstance(about.get("units") or {}, dict)
    return checkpoint if known and isinstance(checkpoint, dict) else None


def _is_split(split: Any) -> bool:
    metrics = split.get("metrics") or {} if isinstance(split, dict) else None
    return isinstance(metrics, dict) and all(
        value is None or isinstance(value, (int, float)) for value in metrics.values()
    )


@dataclass(frozen=True)
class Groups:
    """A mean error by group.

    Attributes:
        names: of the groups, in order. values: (n,) means. counts: (n,) numbers of values. nothing:
            (n,) the error of predicting zero forces, None if not applicable.
    """

    names: list[str]
    values: np.ndarray
    counts: np.ndarray
    nothing: np.ndarray | None = None


def by_element(samples: Samples) -> Groups:
    """Mean |component of the force error| of the free atoms of each element, by atomic number."""
    from ase.data import chemical_symbols

    free = samples.atoms["free"]
    numbers = samples.atoms["atomic_numbers"][free]
    label = np.abs(samples.atoms["force_label"][free]).mean(axis=1)
    names, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return Groups(
        [chemical_symbols[number] for number in names],
        _means(place, samples.force_error[free], len(names)),
        counts,
        _means(place, label, len(names)),
    )


def by_force(samples: Samples) -> Groups:
    """The same by the size of the true force, in steps of 1, 2, 5, 10, ..."""
    free = samples.atoms["free"]
    size = samples.force_magnitude[free]
    edges = np.array([c * 10.0**e for e in range(-3, 3) for c in (1, 2, 5)])
    place = np.searchsorted(edges, size, side="right")
    label = np.abs(samples.atoms["force_label"][free]).mean(axis=1)
    counts = np.bincount(place, minlength=len(edges) + 1)
    shown = [index for index in range(len(edges) + 1) if counts[index] >= FEWEST]
    names = [f"< {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges))]
    names.append(f"> {edges[-1]:g}")
    values = _means(place, samples.force_error[free], len(edges) + 1)
    nothing = _means(place, label, len(edges) + 1)
    return Groups([names[i] for i in shown], values[shown], counts[shown], nothing[shown])


def by_adsorbate(samples: Samples, column: str) -> Groups:
    """A column's mean over the structures of each adsorbate, the most frequent ones."""
    formulas = samples.columns["adsorbate"]
    known = np.array([bool(formula) for formula in formulas], dtype=bool)
    values = np.abs(samples.columns[column].astype(float))
    known &= np.isfinite(values)
    if not known.any():
        return Groups([], np.zeros(0), np.zeros(0, dtype=int))
    names, place, counts = np.unique(
        formulas[known].astype(str), return_inverse=True, return_counts=True
    )
    order = np.sort(np.argsort(-counts, kind="stable")[:MOST_GROUPS])
    means = _means(place, values[known], len(names))
    return Groups([str(names[i]) for i in order], means[order], counts[order])


def _means(place: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    counts = np.bincount(place, minlength=groups)
    sums = np.bincount(place, weights=values.astype(float), minlength=groups)
    return np.divide(sums, counts, out=np.full(groups, np.nan), where=counts > 0)
