"""``ndem data curvature``: which calculator predicts changes of forces, up to which distance."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import add_seed, add_unsafe, at_least
from fairchem_kit.data.errors import DataError
from fairchem_kit.files import existing, existing_file, write_text
from fairchem_kit.words import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem data curvature``."""
    parser.description = (
        "Relative error of F(X2) - F(X1) over pairs of near frames of the data, for the best "
        "isotropic c (Eq. 16), for ASE calculators with their best scale s and with a correction "
        "fitted to the data's forces, and for trained checkpoints. It shows which calculator is "
        "good enough for second views, and up to which displacement."
    )
    add = parser.add_argument
    add("path", metavar="DIR", help="a split (its folder, or one .lmdb file)")
    add(
        "--calculator",
        action="append",
        default=[],
        metavar="SPEC",
        help="an ASE calculator, such as 'ase.calculators.emt:EMT()'; may be repeated",
    )
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FILE",
        help="a trained model; may be repeated",
    )
    add_unsafe(parser)
    add(
        "--pairs",
        type=at_least(1),
        default=100,
        metavar="N",
        help="number of pairs of frames (default: 100)",
    )
    add(
        "--displacement",
        type=float,
        nargs=2,
        default=(0.02, 0.3),
        metavar=("MIN", "MAX"),
        help="range of the largest displacement of a free atom, A (default: 0.02 0.3)",
    )
    add_seed(parser, "the choice of pairs")
    add("--json", metavar="FILE", help="write all numbers to this file")
    add("--figure", metavar="FILE.png", help="plot errors over displacements to this file")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    existing(args.path)
    for path in args.checkpoint:
        existing_file(path)
    from fairchem_kit.data.records import iter_structures
    from fairchem_kit.data.units import force_in_ev, units_of

    from .correction import corrected_error
    from .measure import agreement_of, isotropic
    from .pairs import MOST_READ, near_pairs

    for option, file in (("--json", args.json), ("--figure", args.figure)):
        if file and not Path(file).resolve().parent.is_dir():  # before a long calculation
            raise DataError(f"{option} {file}: its folder does not exist; create it first")
    structures = list(itertools.islice(iter_structures(args.path), MOST_READ))
    pairs = near_pairs(structures, args.pairs, tuple(args.displacement), args.seed)
    if not pairs:
        raise DataError(
            f"{args.path}: no two frames of one system are {args.displacement[0]:g} to "
            f"{args.displacement[1]:g} A apart (largest displacement of a free atom). Curvature "
            "needs such pairs: give another --displacement, or trajectories"
        )
    found = [isotropic(structures, pairs)]
    for name, forces in _predictors(args, structures):
        agreement = agreement_of(name, structures, pairs, forces)
        if len(found) <= len(args.calculator):  # a trained model needs no correction
            ev = force_in_ev(units_of(Path(args.path)))
            error = corrected_error(agreement, structures, pairs, forces, ev)
            agreement = replace(agreement, corrected_error=error)
        found.append(agreement)
    unit = units_of(Path(args.path)).get("force", "eV/A")
    print(_table(found, structures, pairs, unit))
    if args.calculator:
        print(f"\n{_verdict(args, found)}")
    if args.json:
        _write(args, found, unit)
    if args.figure:
        from fairchem_kit.curvature.figure import draw

        draw(found, Path(args.figure))
    return 0


def _write(args: argparse.Namespace, found: Any, unit: str) -> None:
    """Write the JSON: the printed numbers and more, with their origin."""
    from fairchem_kit.provenance import files_hash, provenance

    path = Path(args.path)
    folder, pattern = (path, "*.lmdb") if path.is_dir() else (path.parent, path.name)
    content = {
        **provenance(Path(__file__).resolve().parents[2]),
        "data": {"path": str(path), "hash": files_hash(folder, pattern)},
        "unit": unit,
        "displacement_A": list(args.displacement),
        "seed": args.seed,
        "found": [each.as_dict() for each in found],
    }
    write_text(args.json, json.dumps(content, indent=1) + "\n")


def _predictors(args: argparse.Namespace, structures: Any) -> Any:
    """(name, function from a structure's index to (N, 3) forces in the data's unit)."""
    from fairchem_kit.calculators.potential import Potential
    from fairchem_kit.calculators.spec import calculator_of, provenance_of
    from fairchem_kit.data.units import force_in_ev, units_of

    unit = force_in_ev(units_of(Path(args.path)))
    made = []
    for spec in args.calculator:
        calculator = calculator_of(spec)
        made.append((provenance_of(calculator, spec).expression, calculator))
    for file in args.checkpoint:
        from fairchem_kit.inference import calculator as trained

        made.append((Path(file).name, trained(file, unsafe=args.unsafe)))
    for name, calculator in made:
        potential = Potential(calculator)
        yield name, cache(lambda index, of=potential: of(structures[index])[1] / unit)


def _table(found: Any, structures: Any, pairs: Any, unit: str) -> str:
    import numpy as np

    from .measure import force_changes

    sizes = [pair.rms for pair in pairs]
    change = np.concatenate([np.abs(each).ravel() for each in force_changes(structures, pairs)])
    systems = len({structures[pair.first].sid for pair in pairs})
    lines = [
        f"{counted(len(pairs), 'pair')} of near frames, {counted(systems, 'system')}; "
        f"displacement (rms of an atom) {min(sizes):.3f} to {max(sizes):.3f} A, median "
        f"{np.median(sizes):.3f}; mean |change of a force component| {change.mean():.4g} {unit}",
        "",
        "relative error |dF_predicted - dF| / |dF|, with the best scale:",
        f"{'':34s} {'scale':>9s} {'all':>7s} {'median':>7s} {'s = 1':>7s} "
        f"{'corrected':>9s} {'F itself':>9s}   "
        + "  ".join(f"{low:.2f}-{high:.2f} A" for low, high, *_ in found[0].by_displacement),
    ]
    for each in found:
        ones = "" if each.unscaled_error is None else f"{each.unscaled_error:.3f}"
        own = "" if each.forces_error is None else f"{each.forces_error:.3f}"
        better = "" if each.corrected_error is None else f"{each.corrected_error:.3f}"
        parts = "  ".join(f"{row[-1]:11.3f}" for row in each.by_displacement)
        lines.append(
            f"{each.name[:34]:34s} {each.scale:9.4g} {each.relative_error:7.3f} {each.median:7.3f} "
            f"{ones:>7s} {better:>9s} {own:>9s}   {parts}"
        )
    lines.append(
        f"(scale: c in {unit}^2, or the calculator's s; s = 1: its error without a scale; "
        "corrected: with an energy of pairs and triples fitted to the forces, over pairs left "
        "out of the fit; F itself: the relative error of its forces)"
    )
    elements = sorted({z for each in found for z in each.by_element})
    if len(elements) > 1:
        lines += ["", f"{'by element':34s} " + " ".join(f"{z:>6s}" for z in elements)]
        for each in found:
            values = (each.by_element.get(z) for z in elements)
            lines.append(
                f"{each.name[:34]:34s} "
                + " ".join("     -" if v is None else f"{v:6.3f}" for v in values)
            )
    return "\n".join(lines)


def _verdict(args: argparse.Namespace, found: Any) -> str:
    """Whether the best calculator can label second views, and the command that lets it."""
    from .measure import USABLE

    simple, *given = found[: 1 + len(args.calculator)]
    best = min(given, key=lambda each: each.lowest_error)
    corrected = "" if best.corrected_error is None else ", with a correction,"
    text = (
        f"{best.name}{corrected} predicts the change of forces with an error of "
        f"{best.lowest_error:.0%} (isotropic c: {simple.relative_error:.0%})."
    )
    if best.lowest_error > USABLE:
        return f"{text} That is too much for second views: above {USABLE:.0%} they are refused."
    command = ["ndem", "data", "second-views", args.path, "--calculator"]
    command += [args.calculator[given.index(best)], "--out", "views.lmdb"]
    return f"{text} It can label second views:\n  {shlex.join(command)}"
