"""Vibrational frequencies of ethanol from the models of second_views.py, against DFT:

    python -m ndem_ocp.bench.experiments.vibrations_reference
    python -m ndem_ocp.bench.experiments.vibrations --calculator SPEC

The first command needs PySCF and may run in an environment of its own; any other file with the
same keys will do (``--reference FILE``). The second computes with the trained models in runs/, and
with the potential of their second views, what ``ndem vibrations`` computes, from the same initial
structures as the reference. It writes results/vibrations_ethanol.json. Frequencies of models are
kept in runs/vibrations and not computed again, so they may be there before the reference is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from fairchem_kit.calculators.spec import calculator_of, provenance_of
from fairchem_kit.evaluation.frequencies import STEP, distance, vibrations
from fairchem_kit.inference import calculator
from fairchem_kit.launch.sweep_file import DONE, RUN_ID, run_directory
from fairchem_kit.provenance import config_hash, data_hash, git_commit, provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.experiments.second_views_cases import CASES, Case, Molecule
from ndem_ocp.bench.experiments.vibrations_reference import DIHEDRALS, OUT, start

RESULTS = ROOT / "results/vibrations_ethanol.json"
MOLECULE = "ethanol"
ARMS = ("plain", "instead")
FMAX = 0.002  # eV/A; the torsions are soft
#: name -> lowest and highest frequency of the reference in cm^-1
BANDS = {"all": (0, 1e9), "low": (0, 1000), "middle": (1000, 2700), "stretches": (2700, 1e9)}


def kept(name: str, model: str | None, make: Callable[[], Any], conformer: str) -> dict[str, Any]:
    """The minimum of a conformer and its frequencies, from runs/vibrations or computed.

    Args:
        name: of the calculator. model: hash of its weights, which a kept result must have.
        make: makes the calculator of ASE. conformer: key of ``DIHEDRALS``.

    Returns:
        ``symbols``, ``positions_A``, ``frequencies_invcm``, ``imaginary``, ``converged``,
        ``fmax_eV_per_A``, ``commit``, ``model``.
    """
    path = OUT.parent / f"{MOLECULE}_{name}_{conformer}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["model"] == model:
            return found
    print(name, conformer, flush=True)
    own = vibrations(start(conformer), make(), FMAX)
    found = {
        "symbols": list(own.atoms.symbols),
        "positions_A": own.atoms.positions.tolist(),
        "frequencies_invcm": own.frequencies.tolist(),
        "imaginary": own.imaginary,
        "converged": own.converged,
        "fmax_eV_per_A": own.fmax,
        "commit": git_commit(ROOT),
        "model": model,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def compared(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The conformers of a calculator with their errors.

    Args:
        found, reference: {conformer: symbols, positions_A, frequencies_invcm, ...}.

    Returns:
        ``conformers``: those of ``found``, with the rms distance of the minima
        ``distance_of_minima_A``; ``mae_invcm``: {band: mean absolute error over the modes of all
        conformers, compared in increasing order}.
    """
    conformers, own, wanted = {}, [], []
    for name, given in reference.items():
        first, second = (Atoms(x["symbols"], x["positions_A"]) for x in (given, found[name]))
        conformers[name] = {**found[name], "distance_of_minima_A": distance(first, second)}
        own.append(found[name]["frequencies_invcm"])
        wanted.append(np.sort(given["frequencies_invcm"]))
    return {"conformers": conformers, "mae_invcm": errors(*map(np.concatenate, (own, wanted)))}


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


def with_models(case: str, arm: str, paths: dict[int, Path], names: list[str]) -> dict[int, Any]:
    """{seed: {conformer: frequencies}} of the models of an arm."""
    found: dict[int, Any] = {}
    for seed, path in paths.items():
        make, model = partial(calculator, path, "cpu"), data_hash(path)
        found[seed] = {each: kept(f"{case}_{arm}_{seed}", model, make, each) for each in names}
    return found


def over_seeds(models: dict[int, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Every run of an arm; mean and standard deviation of the errors of those with ``minima``.

    Where a relaxation does not converge, or a frequency is imaginary, the numbers are not
    vibrational frequencies; their error is in ``runs`` alone.
    """
    runs = [{"seed": seed, **compared(found, reference)} for seed, found in models.items()]
    minima = [run for run in runs if all(map(_is_minimum, run["conformers"].values()))]
    summary = {}
    for band in BANDS if minima else ():
        values = [run["mae_invcm"][band] for run in minima]
        spread = statistics.stdev(values) if values[1:] else None
        summary[band] = {"mean": statistics.mean(values), "stdev": spread}
    return {"runs": runs, "minima": [run["seed"] for run in minima], "summary": summary}


def _is_minimum(conformer: dict[str, Any]) -> bool:
    return conformer["converged"] and not conformer["imaginary"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calculator", required=True, help="potential of the second views")
    parser.add_argument("--reference", type=Path, default=OUT)
    parser.add_argument("--conformers", nargs="+", choices=DIHEDRALS, default=list(DIHEDRALS))
    args = parser.parse_args()
    cases = {each.name: each for each in CASES
             if isinstance(each, Molecule) and each.molecule == MOLECULE}  # fmt: skip
    paths = {name: {arm: finished(case, arm) for arm in ARMS} for name, case in cases.items()}
    paths = {name: arms for name, arms in paths.items() if all(arms.values())}
    if not paths:
        parser.error("runs/second_views has no finished runs of ethanol; second_views makes them")
    models = {
        name: {arm: with_models(name, arm, each, args.conformers) for arm, each in arms.items()}
        for name, arms in paths.items()
    }
    potential = calculator_of(args.calculator)
    made_of = provenance_of(potential, args.calculator).as_dict()
    alone = {
        each: kept("potential", made_of["weights"], lambda: potential, each)
        for each in args.conformers
    }
    if not args.reference.exists():
        parser.error(
            f"--reference: {args.reference} does not exist; vibrations_reference writes it"
        )
    reference = json.loads(args.reference.read_text(encoding="utf-8"))
    wanted = {each: reference["conformers"][each] for each in args.conformers}
    seeds = {seed for arms in paths.values() for each in arms.values() for seed in each}
    found = {
        **provenance(ROOT),
        "about": "Harmonic frequencies of ethanol, small ET of second_views.py, against DFT",
        "units": {"frequencies": "cm^-1", "distance_of_minima": "A"},
        "data": {name: data_hash(ROOT / cases[name].data / "train") for name in paths},
        "seeds": sorted(seeds),
        "config_hash": config_hash({"bands": BANDS, "fmax": FMAX, "step": STEP}),
        "bands_invcm": BANDS,
        "reference": {**reference, "conformers": wanted},
        "potential": {"made_of": made_of, **compared(alone, wanted)},
        "cases": {
            name: {arm: over_seeds(each, wanted) for arm, each in arms.items()}
            for name, arms in models.items()
        },
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
