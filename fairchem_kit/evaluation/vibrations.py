"""``ndem vibrations``: a model's vibrational frequencies at its own minimum, and a reference's.

A model can have accurate forces and a wrong curvature. Frequencies show this in familiar numbers:
nu^2 are the eigenvalues of the mass-weighted Hessian H_ij = -dF_i/dx_j.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.commands.options import add_cpu, add_unsafe, describe
from fairchem_kit.evaluation.errors import EvaluationError
from fairchem_kit.files import existing_file, write_text

STEP = 0.01  # A, of the central differences
FMAX, STEPS = 0.01, 500  # relaxation: eV/A, maximum number of steps


@dataclass(frozen=True)
class Vibrations:
    """Frequencies at a minimum.

    Attributes:
        atoms: the relaxed structure (ase.Atoms).
        frequencies: cm^-1, increasing; imaginary ones are negative. There are 3 n for n free atoms,
            minus the six (five) translations and rotations of a free molecule. fmax: eV/A, largest
            remaining force on a free atom. steps: of the relaxation.
    """

    atoms: Any
    frequencies: np.ndarray
    fmax: float
    steps: int


def vibrations(atoms: Any, calculator: Any, fmax: float = FMAX) -> Vibrations:
    """Relax a structure with a calculator and compute the frequencies at the minimum.

    Args:
        atoms: ase.Atoms, not changed; atoms under FixAtoms do not move. calculator: of ASE, with
            energies and forces. fmax: eV/A, convergence of the relaxation.

    Raises:
        EvaluationError: no free atom.
    """
    from ase.optimize import BFGS

    atoms = atoms.copy()
    atoms.calc = calculator
    optimizer = BFGS(atoms, logfile=None)
    optimizer.run(fmax=fmax, steps=STEPS)
    left = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    return Vibrations(atoms, frequencies_of(atoms), left, optimizer.get_number_of_steps())


def frequencies_of(atoms: Any) -> np.ndarray:
    """cm^-1, see :class:`Vibrations`, without relaxing; 6 force calculations per atom."""
    from ase import units
    from ase.constraints import FixAtoms

    fixed = [i for c in atoms.constraints if isinstance(c, FixAtoms) for i in c.get_indices()]
    free = np.setdiff1d(np.arange(len(atoms)), fixed)
    if not free.size:
        raise EvaluationError("all atoms are fixed, so there are no vibrations.")
    columns = []
    for atom in free:
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[atom, axis] += sign * STEP
                forces.append(moved.get_forces(apply_constraint=False)[free])
            columns.append(-(forces[0] - forces[1]).ravel() / (2 * STEP))
    hessian = np.array(columns)
    weight = np.repeat(atoms.get_masses()[free], 3) ** -0.5
    squared = np.linalg.eigvalsh((hessian + hessian.T) / 2 * np.outer(weight, weight))
    energies = np.sign(squared) * np.sqrt(np.abs(squared))
    energies *= units._hbar * 1e10 / np.sqrt(units._e * units._amu)
    found = energies / units.invcm
    own = 0 if len(free) < len(atoms) or atoms.pbc.any() else _own_motions(atoms)
    keep = np.sort(np.argsort(np.abs(found))[own:])
    return np.sort(found[keep])


def _own_motions(atoms: Any) -> int:
    """Translations and rotations of a free molecule: 3, 5 (linear) or 6."""
    if len(atoms) == 1:
        return 3
    return 5 if np.sort(atoms.get_moments_of_inertia())[0] < 1e-3 else 6


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem vibrations``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint.pt or best_checkpoint.pt")
    add("structure", type=Path, help="any file that ASE can read; its last frame is relaxed")
    add("--calculator", metavar="SPEC", help="reference: an ASE calculator as MODULE:CALL")
    add(
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

    from fairchem_kit.calculators.spec import calculator_of
    from fairchem_kit.inference import calculator

    atoms = _read(args.structure)
    given = None if args.reference is None else _numbers(args.reference)
    device = "cpu" if args.cpu else None
    model = calculator(args.checkpoint, device=device, unsafe=args.unsafe)
    found = vibrations(atoms, model, args.fmax)
    other = None
    if args.calculator is not None:
        other = vibrations(atoms, calculator_of(args.calculator), args.fmax)
        given = other.frequencies
    about = _about(found, given, other)
    print(_table(found, given, about, args.fmax))
    if args.json is not None:
        write_text(args.json, json.dumps(about, indent=1) + "\n")
    return 0


def _read(path: Path) -> Any:
    import ase.io

    try:
        return ase.io.read(path)
    except Exception as error:  # whatever ASE's readers raise
        raise EvaluationError(f"{path}: ASE cannot read it ({error}).") from None


def _numbers(path: Path) -> np.ndarray:
    try:
        return np.sort(np.loadtxt(path, ndmin=1, dtype=float))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: give one frequency in cm^-1 per line ({error}).") from None


def _about(found: Vibrations, given: np.ndarray | None, other: Vibrations | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "frequencies_invcm": found.frequencies.tolist(),
        "imaginary": int((found.frequencies < 0).sum()),
        "fmax_eV_per_A": found.fmax,
        "relaxation_steps": found.steps,
    }
    if given is None:
        return about
    if len(given) != len(found.frequencies):
        raise EvaluationError(
            f"the reference has {len(given)} frequencies, but the structure "
            f"{len(found.frequencies)}: leave out translations and rotations of a free molecule, "
            "and give all others."
        )
    error = found.frequencies - given
    about |= {
        "reference_invcm": given.tolist(),
        "mae_invcm": float(np.abs(error).mean()),
        "mean_error_invcm": float(error.mean()),
        "largest_error_invcm": float(np.abs(error).max()),
    }
    if other is not None:
        about["distance_of_minima_A"] = _distance(found.atoms, other.atoms)
    return about


def _distance(first: Any, second: Any) -> float:
    """rms distance in A over atoms after the best rotation (molecules) or lattice translation."""
    from ase.build import minimize_rotation_and_translation
    from ase.geometry import find_mic

    second = second.copy()
    if not first.pbc.any():
        minimize_rotation_and_translation(first, second)
        moved = second.positions - first.positions
    else:
        moved, _ = find_mic(second.positions - first.positions, first.cell, first.pbc)
    return float(np.sqrt(np.square(moved).sum(1).mean()))


def _table(found: Vibrations, given: np.ndarray | None, about: dict[str, Any], fmax: float) -> str:
    lines = [f"relaxed in {found.steps} steps to {found.fmax:.3g} eV/A; frequencies in cm^-1"]
    if found.fmax > fmax:
        lines.append(
            f"The relaxation stopped above {fmax:g} eV/A: this is not a minimum, so these numbers "
            "are not vibrational frequencies."
        )
    if given is None:
        lines += [f"{value:10.1f}" for value in found.frequencies]
    else:
        lines.append(f"{'model':>10s} {'reference':>10s} {'error':>8s}")
        lines += [f"{f:10.1f} {g:10.1f} {f - g:8.1f}" for f, g in zip(found.frequencies, given)]
        lines.append(
            f"mean |error| {about['mae_invcm']:.1f}, mean error {about['mean_error_invcm']:+.1f}, "
            f"largest {about['largest_error_invcm']:.1f} cm^-1"
        )
    if about["imaginary"]:
        lines.append(f"{about['imaginary']} imaginary (printed as negative)")
    if "distance_of_minima_A" in about:
        lines.append(f"the two minima are {about['distance_of_minima_A']:.4f} A apart (rms)")
    return "\n".join(lines)
