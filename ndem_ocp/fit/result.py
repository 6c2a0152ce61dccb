"""The result of a fit: errors next to those of the simplest guess, and the model file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairchem_kit.atomic_files import read_json
from fairchem_kit.checkpoints import read_checkpoint, write_checkpoint
from fairchem_kit.evaluation.evaluation import file_hash
from fairchem_kit.evaluation.samples import read_samples
from fairchem_kit.launch.console import short_messages
from fairchem_kit.words import counted
from ndem_ocp.commands.parser import build_parser
from ndem_ocp.fit.config import parse
from ndem_ocp.fit.dataset import subtracted
from ndem_ocp.fit.errors import FitError
from ndem_ocp.fit.folder import Folder

_CLEARLY = 0.9  # of the guess's error: below this the model has learned something


def evaluate_and_report(folder: Folder, cpu: bool) -> None:
    """Evaluate, write model.pt and the report, and print how to use the model.

    Raises:
        FitError: if there is no checkpoint of a validation.
    """
    if not folder.best.is_file():
        raise FitError(
            f"{folder.best} is missing, because training ended before the first validation. Lower "
            f"optim.eval_every in {folder.config} and train with ndem train."
        )
    coefficients = subtracted(folder.data)
    best = file_hash(folder.best)
    done = folder.read("evaluated") == best and folder.model.exists() and folder.report.exists()
    if not done:
        _evaluate(folder, cpu)
        write_model(folder.best, folder.model, folder.read("elements"), coefficients)
    config = parse(folder.config.read_text(encoding="utf-8"))
    mean = config["dataset"]["train"]["transforms"]["normalizer"]["energy"]["mean"]
    errors = [errors_of(folder.eval, name, mean) for name in folder.splits()]
    print(f"\n{table(errors)}\n\n{verdict(errors[-1])}")
    if useful(errors[-1]):
        views = config["task"]["ndem"].get("second_views") is not None
        print(advice(*folder.steps(), views))
    print()
    if not done:
        _report(folder)
        folder.note("evaluated", best)
    files = ", ".join(folder.shown(path) for path in (folder.model, folder.config, folder.report))
    energies = "relative to each system's last frame" if coefficients is None else "total"
    print(
        f"wrote {files}\n\nIn ASE, with forces in eV/A and {energies} energies in eV:\n\n"
        "    import ndem_ocp\n"
        f'    atoms.calc = ndem_ocp.calculator("{folder.shown(folder.model)}")'
    )


def _evaluate(folder: Folder, cpu: bool) -> None:
    """``ndem eval``; its table is printed later, next to the errors of the simplest guesses."""
    splits = [f"{name}={folder.data / name}" for name in folder.splits()]
    words = ["eval", str(folder.best), "--data", *splits, "--out", str(folder.eval)]
    _quietly([*words, "--workers", "0", *(["--cpu"] if cpu else [])])


def _report(folder: Folder) -> None:
    """``ndem report``."""
    words = ["report", str(folder.path), "--out", str(folder.report), "--eval", str(folder.eval)]
    _quietly([*words, f"--title={folder.path.name}"])


def _quietly(words: list[str]) -> None:
    """Run another command of ndem in this process, without its output.

    Its own parser is used, so that options added to it later work here too.
    """
    args = build_parser(words).parse_args(words)
    args.given = words
    with short_messages(), contextlib.redirect_stdout(io.StringIO()):
        args.func(args)


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
        first = f"Training stopped after {steps:,} of {counted(planned, 'step')}, because the "
        first += "force error on val no longer fell."
    else:
        ways = ["a longer --time", "more frames"]
        first = f"Training took its full length, {counted(planned, 'step')} within --time."
    if not second_views:
        ways.append(
            "where frames are few, second views (--second-views data, or a potential; "
            "docs/second_views.md)"
        )
    listed = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
    text = f"{first} For lower errors try {listed}, with another --out."
    if second_views:
        text += (
            " Second views can also make errors larger: compare with a fit without them, at the "
            "same --time."
        )
    return text


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
