"""``ndem vibrations``: a model's vibrational frequencies at its own minimum, and a reference's.

A model can have accurate forces and a wrong curvature. Frequencies show this in familiar numbers:
nu^2 are the eigenvalues of the mass-weighted Hessian H_ij = -dF_i/dx_j.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.commands.options import add_cpu, add_unsafe, describe
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.evaluation.frequencies import (
    FMAX,
    Vibrations,
    distance,
    free_atoms,
    internal_motions,
    vibrations,
)
from fairchem_kit.files import existing_file, writable_folder, write_text
from fairchem_kit.words import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem vibrations``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint.pt or best_checkpoint.pt")
    add("structure", type=Path, help="any file that ASE can read; its last frame is relaxed")
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument(
        "--calculator", metavar="SPEC", help="reference: an ASE calculator as MODULE:CALL"
    )
    reference.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="reference: a file with one frequency in cm^-1 per line",
    )
    add(
        "--fmax",
        type=float,
        default=FMAX,
        metavar="F",
        help="largest force after the relaxation, eV/A (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    add_cpu(parser)
    add_unsafe(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Relax, compute the frequencies, compare them in increasing order, print."""
    for path in filter(None, (args.checkpoint, args.structure, args.reference)):
        existing_file(path, EvaluationError)
    if args.json is not None:
        writable_folder(args.json.resolve().parent)
    if args.fmax <= 0:
        raise EvaluationError("--fmax must be above 0 eV/A.")

    from fairchem_kit.inference import calculator

    atoms = _read(args.structure)
    free_atoms(atoms)
    given = None if args.reference is None else _numbers(args.reference, atoms)
    device = "cpu" if args.cpu else None
    model = calculator(args.checkpoint, device=device, unsafe=args.unsafe)
    if "forces" not in model.implemented_properties:
        raise EvaluationError(f"{args.checkpoint} predicts no forces, and frequencies need them.")
    found = vibrations(atoms, model, args.fmax)
    other = None if args.calculator is None else _with_calculator(atoms, args)
    if other is not None:
        given = other.frequencies
    about = _about(found, given, other)
    print(_table(found, given, other, about))
    if args.json is not None:
        write_text(args.json, json.dumps(about, indent=1) + "\n")
    return 0


def _read(path: Path) -> Any:
    import ase.io

    try:
        atoms = ase.io.read(path, do_not_split_by_at_sign=True)
    except Exception as error:  # whatever ASE's readers raise
        raise EvaluationError(f"{path}: ASE cannot read it ({error}).") from None
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
        raise EvaluationError(f"{path}: a position or the cell is NaN or infinite.")
    return atoms


def _numbers(path: Path, atoms: Any) -> np.ndarray:
    try:
        found = np.sort(np.loadtxt(path, ndmin=1, dtype=float))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: give one frequency in cm^-1 per line ({error}).") from None
    if not np.isfinite(found).all():
        raise EvaluationError(f"{path}: a frequency is not a finite number.")
    if found.shape != (expected := len(internal_motions(atoms)),):
        raise EvaluationError(
            f"{path}: the reference has {found.size} frequencies, but the structure {expected}: "
            "leave out translations and rotations of a structure without fixed atoms, and give all "
            "others, one per line."
        )
    return found


def _with_calculator(atoms: Any, args: argparse.Namespace) -> Vibrations:
    from fairchem_kit.calculators.spec import calculator_of

    calculator = calculator_of(args.calculator)
    try:
        return vibrations(atoms, calculator, args.fmax)
    except EvaluationError:
        raise
    except Exception as error:  # whatever it raises, for example for an unknown element
        raise EvaluationError(
            f"--calculator {args.calculator!r} fails on {args.structure} "
            f"({type(error).__name__}: {error})."
        ) from error


def _about(found: Vibrations, given: np.ndarray | None, other: Vibrations | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "frequencies_invcm": found.frequencies.tolist(),
        "imaginary": found.imaginary,
        "fmax_eV_per_A": found.fmax,
        "converged": found.converged,
        "relaxation_steps": found.steps,
        "moved_A": found.moved,
    }
    if given is None:
        return about
    if len(given) != len(found.frequencies):
        raise EvaluationError(
            f"the reference has {len(given)} frequencies, but the model's relaxed structure "
            f"{len(found.frequencies)}: one of them is linear."
        )
    error = found.frequencies - given
    about |= {
        "reference_invcm": given.tolist(),
        "mae_invcm": float(np.abs(error).mean()),
        "mean_error_invcm": float(error.mean()),
        "largest_error_invcm": float(np.abs(error).max()),
    }
    if other is not None:
        about |= {
            "reference_imaginary": other.imaginary,
            "reference_fmax_eV_per_A": other.fmax,
            "reference_converged": other.converged,
            "distance_of_minima_A": distance(found.atoms, other.atoms),
        }
    return about


def _table(
    found: Vibrations, given: np.ndarray | None, other: Vibrations | None, about: dict[str, Any]
) -> str:
    lines = [
        f"relaxed in {counted(found.steps, 'step')} to {found.fmax:.3g} eV/A, "
        f"{found.moved:.4f} A (rms) from the given structure; frequencies in cm^-1, "
        "imaginary ones negative"
    ]
    if given is None:
        lines += [f"{value:10.1f}" for value in found.frequencies]
    else:
        lines.append(f"{'model':>10s} {'reference':>10s} {'error':>8s}")
        lines += [f"{f:10.1f} {g:10.1f} {f - g:8.1f}" for f, g in zip(found.frequencies, given)]
        lines.append(
            f"mean |error| {about['mae_invcm']:.1f}, mean error {about['mean_error_invcm']:+.1f}, "
            f"largest {about['largest_error_invcm']:.1f} cm^-1"
        )
    if other is not None:
        lines.append(f"the two minima are {about['distance_of_minima_A']:.4f} A apart (rms)")
    lines += _warnings("the model", found)
    lines += _warnings("the reference", other) if other is not None else []
    return "\n".join(lines)


def _warnings(name: str, found: Vibrations) -> list[str]:
    """What keeps the relaxed structure from being a minimum."""
    lines = []
    if not found.converged:
        lines.append(
            f"The relaxation with {name} stopped after {counted(found.steps, 'step')} at "
            f"{found.fmax:.3g} eV/A: this is not a minimum, so its numbers are not "
            "vibrational frequencies."
        )
    if found.imaginary:
        lines.append(
            f"{found.imaginary} imaginary with {name}: a saddle point, unless they are numerical "
            "noise."
        )
    return lines
