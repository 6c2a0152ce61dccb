"""Vibrational frequencies of ethanol from the models of second_views.py, against DFT:

    python -m ndem_ocp.bench.experiments.vibrations_reference
    python -m ndem_ocp.bench.experiments.vibrations --calculator SPEC

The first command needs PySCF and may run in an environment of its own; any other file with the
same keys will do (``--reference FILE``). The second takes the trained models from runs/, and from
the calculator, the potential of their second views, the same frequencies. It computes what
``ndem vibrations`` computes, from DFT's minimum of each conformer, and writes
results/vibrations_ethanol.json. Modes are compared in increasing order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_kit.calculators.spec import calculator_of, provenance_of
from fairchem_kit.evaluation.frequencies import STEP, vibrations
from fairchem_kit.inference import calculator
from fairchem_kit.launch.sweep_file import DONE, RUN_ID, run_directory
from fairchem_kit.provenance import config_hash, data_hash, provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.experiments.second_views_cases import CASES, Case, Molecule

RESULTS = ROOT / "results/vibrations_ethanol.json"
MOLECULE = "ethanol"
ARMS = ("plain", "instead")
FMAX = 0.002  # eV/A; the torsions are soft
#: name -> lowest and highest frequency of the reference in cm^-1
BANDS = {"all": (0, 1e9), "low": (0, 1000), "middle": (1000, 2700), "stretches": (2700, 1e9)}


def measured(calculator: Any, reference: dict[str, Any]) -> dict[str, Any]:
    """Frequencies of all conformers, and their errors.

    Args:
        calculator: of ASE. reference: {conformer: symbols, positions_A, frequencies_invcm}.

    Returns:
        ``conformers``: {name: frequencies_invcm, imaginary, converged, fmax_eV_per_A, moved_A},
        where ``moved_A`` is the rms distance of the minima; ``mae_invcm``: {band: mean absolute
        error over the modes of all conformers}.
    """
    found, wanted, conformers = [], [], {}
    for name, given in reference.items():
        atoms = Atoms(given["symbols"], given["positions_A"])
        own = vibrations(atoms, calculator, FMAX)
        conformers[name] = {
            "frequencies_invcm": own.frequencies.tolist(),
            "imaginary": own.imaginary,
            "converged": own.converged,
            "fmax_eV_per_A": own.fmax,
            "moved_A": own.moved,
        }
        found.append(own.frequencies)
        wanted.append(np.sort(given["frequencies_invcm"]))
    return {"conformers": conformers, "mae_invcm": errors(*map(np.concatenate, (found, wanted)))}


def errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """{band: mean absolute error in cm^-1}; a band's modes are those of ``wanted`` in it."""
    return {
        band: float(np.abs(found - wanted)[(low <= wanted) & (wanted < high)].mean())
        for band, (low, high) in BANDS.items()
    }


def finished(case: Case, arm: str) -> dict[int, Path]:
    """{seed: best checkpoint} of the finished runs of an arm."""
    found = {}
    for seed in range(3):
        where = run_directory(ROOT / "runs/second_views" / case.name, arm, seed)
        if (where / DONE).exists():
            found[seed] = where / "checkpoints" / RUN_ID / "best_checkpoint.pt"
    return found


def over_seeds(checkpoints: dict[int, Path], reference: dict[str, Any]) -> dict[str, Any]:
    """Every run of an arm, and mean and standard deviation of its errors."""
    runs = []
    for seed, path in checkpoints.items():
        print(path.relative_to(ROOT), flush=True)
        runs.append({"seed": seed, **measured(calculator(path, device="cpu"), reference)})
    summary = {}
    for band in BANDS:
        values = [run["mae_invcm"][band] for run in runs]
        spread = statistics.stdev(values) if values[1:] else None
        summary[band] = {"mean": statistics.mean(values), "stdev": spread}
    return {"runs": runs, "summary": summary}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calculator", required=True, help="potential of the second views")
    parser.add_argument("--reference", type=Path, default=ROOT / "runs/vibrations/ethanol.json")
    args = parser.parse_args()
    if not args.reference.exists():
        parser.error(
            f"--reference: {args.reference} does not exist; vibrations_reference writes it"
        )
    cases = [case for case in CASES if isinstance(case, Molecule) and case.molecule == MOLECULE]
    models = {case.name: {arm: finished(case, arm) for arm in ARMS} for case in cases}
    models = {name: arms for name, arms in models.items() if all(arms.values())}
    if not models:
        parser.error("runs/second_views has no finished runs of ethanol; second_views makes them")
    reference = json.loads(args.reference.read_text(encoding="utf-8"))
    conformers = reference["conformers"]
    seeds = {seed for arms in models.values() for paths in arms.values() for seed in paths}
    potential = calculator_of(args.calculator)
    found = {
        **provenance(ROOT),
        "about": "Harmonic frequencies of ethanol, small ET of second_views.py, against DFT",
        "units": {"frequencies": "cm^-1", "moved": "A"},
        "data": {
            case.name: data_hash(ROOT / case.data / "train")
            for case in cases if case.name in models
        },
        "seeds": sorted(seeds),
        "config_hash": config_hash({"bands": BANDS, "fmax": FMAX, "step": STEP}),
        "bands_invcm": BANDS,
        "reference": reference,
        "potential": {
            "made_of": provenance_of(potential, args.calculator).as_dict(),
            **measured(potential, conformers),
        },
        "cases": {
            name: {arm: over_seeds(paths, conformers) for arm, paths in arms.items()}
            for name, arms in models.items()
        },
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
