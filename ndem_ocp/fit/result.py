"""The result of a fit: errors next to those of the simplest guess, and the model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairchem_kit.atomic_files import read_json
from fairchem_kit.checkpoints import read_checkpoint, write_checkpoint
from fairchem_kit.evaluation.samples import read_samples

_CLEARLY = 0.9  # of the guess's error: below this the model has learned something


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors on one split, in meV and meV/A, and those of predicting the training
    frames' mean energy and zero forces."""

    split: str
    structures: int
    energy: float
    energy_guess: float
    force: float
    force_guess: float


def errors_of(folder: Path, split: str, mean_energy: float) -> Errors:
    """Read the files of ``ndem eval`` (free atoms, per component).

    Args:
        folder: of the evaluation. mean_energy: of the training frames, eV.
    """
    samples = read_samples(folder, split)
    free = samples.atoms["free"]
    metrics = (read_json(folder / "metrics.json") or {})["splits"][split]["metrics"]
    guess = np.abs(samples.columns["energy_label"] - mean_energy).mean()
    return Errors(
        split=split,
        structures=len(samples),
        energy=1e3 * metrics["energy_mae"],
        energy_guess=1e3 * float(guess),
        force=1e3 * metrics["forces_mae"],
        force_guess=1e3 * float(np.abs(samples.atoms["force_label"][free]).mean()),
    )


def table(errors: Sequence[Errors]) -> str:
    """One line per split."""
    head = (
        f"{'':<6}{'frames':>8}{'force MAE':>12}{'no force':>12}{'energy MAE':>14}"
        f"{'mean energy':>14}   (meV/A; meV per structure)"
    )
    rows = [
        f"{e.split:<6}{e.structures:>8}{e.force:>12.1f}{e.force_guess:>12.1f}{e.energy:>14.1f}"
        f"{e.energy_guess:>14.1f}"
        for e in errors
    ]
    return "\n".join([head, *rows])


def useful(errors: Errors) -> bool:
    """Whether the forces are clearly better than none."""
    return errors.force < _CLEARLY * errors.force_guess


def verdict(errors: Errors) -> str:
    """Whether the model is better than guessing, plainly."""
    parts = []
    for name, value, guess, what in (
        ("forces", errors.force, errors.force_guess, "zero forces"),
        ("energies", errors.energy, errors.energy_guess, "the mean energy"),
    ):
        if value < _CLEARLY * guess:
            parts.append(
                f"the errors of its {name} are {1 - value / guess:.0%} below those of {what}"
            )
        else:
            parts.append(f"its {name} are no better than {what} ({value:.1f} against {guess:.1f})")
    sentence = f"On {errors.split}, {'; '.join(parts)}."
    if not useful(errors):
        sentence += (
            " Do not use this model yet. These help: more frames (from more systems, if it is to "
            "work on new ones), a longer --time, a GPU."
        )
    return sentence


def advice(steps: int, planned: int, second_views: bool) -> str:
    """What may lower the errors of a useful model; of another, ``verdict`` says it.

    Args:
        steps: taken. planned: of the whole schedule; more than ``steps`` after early stopping.
        second_views: whether they were used.
    """
    if steps < planned:
        ways = ["more frames"]
        first = f"Training stopped after {steps:,} of {planned:,} steps, because the force error "
        first += "on val no longer fell."
    else:
        ways = ["a longer --time", "more frames"]
        first = f"Training took all {planned:,} steps that fit into --time."
    if not second_views:
        ways.append("second views from a potential (--second-views, docs/second_views.md)")
    listed = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
    return f"{first} For lower errors try {listed}, with another --out."


def write_model(
    best: Path, out: Path, elements: Sequence[int], coefficients: np.ndarray | None
) -> None:
    """Write the best checkpoint, with the elements and the energy reference of the data.

    Args:
        best: the checkpoint. out: the file to write.
        elements: atomic numbers of the training frames; ``ndem_ocp.calculator`` refuses others.
        coefficients: (119,) eV per atom by atomic number, subtracted from the energies and added
            back by the calculator (``energy_reference``); None: no such reference.
    """
    content = read_checkpoint(best)
    content["elements"] = [int(z) for z in elements]
    if coefficients is not None:
        content["energy_reference"] = [float(value) for value in coefficients]
    write_checkpoint(content, out)
