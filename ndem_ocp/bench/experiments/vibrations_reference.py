"""Harmonic frequencies of ethanol from DFT, in an environment with PySCF and geomeTRIC:

    python -m ndem_ocp.bench.experiments.vibrations_reference [--conformers trans gauche]

PBE is the functional of MD17's labels, which also have a dispersion correction (TS). What D3(BJ)
would change is computed if the package dftd3 is installed. The conformers, trans and gauche, are
relaxed from ASE's structure; the Hessian is analytic. runs/vibrations/ethanol.json is what
``ndem_ocp.bench.experiments.vibrations`` reads. It is written after each conformer, and a conformer
in it is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule

from fairchem_kit.evaluation.frequencies import force_constants, frequencies_of
from ndem_ocp.bench.checkout import ROOT, in_checkout

OUT = ROOT / "runs/vibrations/ethanol.json"
MOLECULE = "CH3CH2OH"  # trans; its atoms 0 to 3 are C, C, O, H
DIHEDRALS = {"trans": 180.0, "gauche": 60.0}
FUNCTIONAL, BASIS, GRID = "PBE", "def2-TZVP", 3
ENERGY_TOLERANCE = 1e-10  # Hartree, of the self-consistent field
RELAXATION = {"convergence_energy": 1e-6, "convergence_grms": 5e-5, "convergence_gmax": 1e-4,
              "convergence_drms": 1e-3, "convergence_dmax": 2e-3}  # fmt: skip


def start(conformer: str) -> Atoms:
    """ASE's ethanol with the dihedral C-C-O-H of a conformer."""
    atoms = molecule(MOLECULE)
    atoms.set_dihedral(0, 1, 2, 3, DIHEDRALS[conformer], indices=[3])
    return atoms


def field_of(atoms: Atoms) -> Any:
    """PySCF's Kohn-Sham calculation."""
    from pyscf import dft, gto

    pairs = [(atom.symbol, atom.position) for atom in atoms]
    made = dft.RKS(gto.M(atom=pairs, basis=BASIS, verbose=0), xc=FUNCTIONAL).density_fit()
    made.grids.level, made.conv_tol = GRID, ENERGY_TOLERANCE
    return made


def relaxed(atoms: Atoms) -> Atoms:
    """The nearest minimum."""
    from pyscf.geomopt.geometric_solver import optimize

    found = optimize(field_of(atoms), verbose=0, **RELAXATION)
    return Atoms(atoms.symbols, found.atom_coords(unit="Angstrom"))


def reference(conformer: str) -> dict[str, Any]:
    """Structure, energy and frequencies of a conformer at its minimum."""
    began = time.process_time()
    atoms = relaxed(start(conformer))
    field = field_of(atoms)
    energy = field.kernel() * units.Hartree
    forces = -field.nuc_grad_method().kernel() * units.Hartree / units.Bohr
    second = field.Hessian().kernel().transpose(0, 2, 1, 3).reshape(3 * len(atoms), -1)
    second *= units.Hartree / units.Bohr**2
    found = frequencies_of(atoms, second)
    dispersion = _dispersion(atoms)
    shifts = None if dispersion is None else frequencies_of(atoms, second + dispersion) - found
    return {
        "symbols": list(atoms.symbols),
        "positions_A": atoms.positions.tolist(),
        "dihedral_degrees": atoms.get_dihedral(0, 1, 2, 3),
        "energy_eV": energy,
        "fmax_eV_per_A": float(np.linalg.norm(forces, axis=1).max()),
        "frequencies_invcm": found.tolist(),
        "d3_shifts_invcm": None if shifts is None else shifts.tolist(),
        "process_s": time.process_time() - began,
    }


def _dispersion(atoms: Atoms) -> np.ndarray | None:
    """eV/A^2, second derivatives of D3(BJ)'s energy; None without the package."""
    try:
        from dftd3.ase import DFTD3
    except ImportError:
        return None
    atoms = atoms.copy()
    atoms.calc = DFTD3(method=FUNCTIONAL, damping="d3bj")
    return force_constants(atoms)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--conformers", nargs="+", choices=DIHEDRALS, default=list(DIHEDRALS))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = {
        "command": " ".join(["python -m", __spec__.name, *sys.argv[1:]]),
        "method": f"{FUNCTIONAL}/{BASIS}, density fitting, grid level {GRID}, no dispersion",
        "packages": {name: version(name) for name in ("pyscf", "geometric", "ase")},
        "conformers": {},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.out.exists():
        old = json.loads(args.out.read_text(encoding="utf-8"))
        if all(old[key] == found[key] for key in ("method", "packages")):
            found["conformers"] = old["conformers"]
    for conformer in args.conformers:
        if conformer not in found["conformers"]:
            found["conformers"][conformer] = reference(conformer)
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
