"""``ndem data curvature``: which calculator predicts changes of forces, up to which distance."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from fairchem_kit.calculators.spec import DATA
from fairchem_kit.commands.options import add_seed, add_unsafe, at_least
from fairchem_kit.data.errors import DataError
from fairchem_kit.files import existing, existing_file, writable_folder, write_text
from fairchem_kit.words import counted

ALONE = "fitted to the data alone"


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

    from .measure import agreement_of, isotropic
    from .pairs import MOST_READ, near_pairs

    for option, file in (("--json", args.json), ("--figure", args.figure)):
        if file and not Path(file).resolve().parent.is_dir():  # before a long calculation
            raise DataError(f"{option} {file}: its folder does not exist; create it first")
        if file:
            writable_folder(Path(file).resolve().parent)
    read = itertools.islice(iter_structures(args.path), MOST_READ)
    structures = [structure.with_usable_forces() for structure in read]
    pairs = near_pairs(structures, args.pairs, tuple(args.displacement), args.seed)
    if not pairs:
        raise DataError(
            f"{args.path}: no two frames of one system are {args.displacement[0]:g} to "
            f"{args.displacement[1]:g} A apart (largest displacement of a free atom). Curvature "
            "needs such pairs: give another --displacement, or trajectories"
        )
    found = [isotropic(structures, pairs)]
    labels: dict[str, str] = {}  # what can label second views, and how it is called there
    ev = force_in_ev(units_of(Path(args.path)))
    for name, forces, spec in _predictors(args, structures, ev):
        plain = agreement_of(name, structures, pairs, forces)
        rows = [plain] if spec is None else [plain, _fitted(plain, structures, pairs, forces, ev)]
        rows = [row for row in rows[spec == DATA :] if row is not None]  # data alone has no T
        found += rows
        labels |= {row.name: spec for row in rows if spec is not None}
    unit = units_of(Path(args.path)).get("force", "eV/A")
    print(_table(found, structures, pairs, unit))
    if labels:
        print(f"\n{_verdict(args, found, labels)}")
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


def _predictors(args: argparse.Namespace, structures: Any, ev: float) -> Any:
    """Name, function from a structure's index to (N, 3) forces in the data's unit, and SPEC.

    SPEC is None for a trained model.
    """
    from fairchem_kit.calculators.potential import Potential
    from fairchem_kit.calculators.spec import DATA, calculator_of, provenance_of

    made = []
    for spec in (DATA, *args.calculator):
        calculator = calculator_of(spec)
        made.append((provenance_of(calculator, spec).expression, calculator, spec))
    for file in args.checkpoint:
        from fairchem_kit.inference import calculator as trained

        made.append((Path(file).name, trained(file, unsafe=args.unsafe), None))
    for name, calculator, spec in made:
        potential = Potential(calculator)
        yield name, cache(lambda index, of=potential: of(structures[index])[1] / ev), spec


def _fitted(plain: Any, structures: Any, pairs: Any, forces: Any, ev: float) -> Any:
    """The agreement with a correction, over pairs left out of its fit; None if none helps."""
    from .correction import MOST_FRAMES, fit_correction, frames_to_fit
    from .measure import agreement

    pairs = pairs[: MOST_FRAMES // 2]
    chosen = frames_to_fit(structures, pairs)
    true = {i: structures[i].forces * ev for i in chosen}
    scale = plain.scale or 1.0
    found = fit_correction(structures, true, {i: scale * ev * forces(i) for i in chosen}, pairs)
    if found is None:
        return None
    changes = [change / ev for change in found[1]]
    name = ALONE if plain.name == DATA else f"{plain.name}, fitted"
    return agreement(name, structures, pairs, changes, None)


def _table(found: Any, structures: Any, pairs: Any, unit: str) -> str:
    import numpy as np

    from .measure import force_changes

    width = min(60, max(len(each.name) for each in found))
    sizes = [pair.rms for pair in pairs]
    change = np.concatenate([np.abs(each).ravel() for each in force_changes(structures, pairs)])
    systems = len({structures[pair.first].sid for pair in pairs})
    lines = [
        f"{counted(len(pairs), 'pair')} of near frames, {counted(systems, 'system')}; "
        f"displacement (rms of an atom) {min(sizes):.3f} to {max(sizes):.3f} A, median "
        f"{np.median(sizes):.3f}; mean |change of a force component| {change.mean():.4g} {unit}",
        "",
        "relative error |dF_predicted - dF| / |dF|, with the best scale:",
        f"{'':{width}s} {'scale':>9s} {'all':>7s} {'median':>7s} {'s = 1':>7s} {'F itself':>9s}   "
        + "  ".join(f"{low:.2f}-{high:.2f} A" for low, high, *_ in found[0].by_displacement),
    ]
    for each in found:
        ones = "" if each.unscaled_error is None else f"{each.unscaled_error:.3f}"
        own = "" if each.forces_error is None else f"{each.forces_error:.3f}"
        parts = "  ".join(f"{row[-1]:11.3f}" for row in each.by_displacement)
        lines.append(
            f"{each.name[:width]:{width}s} {each.scale:9.4g} {each.relative_error:7.3f} "
            f"{each.median:7.3f} {ones:>7s} {own:>9s}   {parts}"
        )
    lines += [
        f"scale: c in {unit}^2, or the calculator's s. s = 1: its error without a scale",
        "F itself: the relative error of its forces",
        "fitted: with an energy of pairs and triples of atoms that is fitted to the data's forces;",
        "        over pairs left out of the fit",
    ]
    elements = sorted({z for each in found for z in each.by_element})
    if len(elements) > 1:
        lines += ["", f"{'by element':{width}s} " + " ".join(f"{z:>6s}" for z in elements)]
        for each in found:
            values = (each.by_element.get(z) for z in elements)
            lines.append(
                f"{each.name[:width]:{width}s} "
                + " ".join("     -" if v is None else f"{v:6.3f}" for v in values)
            )
    return "\n".join(lines)


def _verdict(args: argparse.Namespace, found: Any, labels: dict[str, str]) -> str:
    """Whether the best calculator can label second views, and the command that lets it."""
    from .measure import USABLE

    simple = found[0]
    best = min((each for each in found if each.name in labels), key=lambda e: e.relative_error)
    who = "an energy fitted to the data alone" if best.name == ALONE else best.name
    text = (
        f"{who} predicts the change of forces with an error of {best.relative_error:.1%} "
        f"(isotropic c: {simple.relative_error:.0%})."
    )
    if best.relative_error > USABLE:
        return f"{text} That is too much for second views: above {USABLE:.0%} they are refused."
    models = {Path(file).name for file in args.checkpoint}
    known = min((each.unscaled_error for each in found if each.name in models), default=None)
    if known is not None:
        text += f" The model's own error is {known:.1%}, " + (
            "below that of such labels: expect less of second views, or nothing."
            if known < best.relative_error
            else "above that of such labels: second views can help."
        )
    command = ["ndem", "data", "second-views", args.path, "--calculator"]
    command += [labels[best.name], "--out", "views.lmdb"]
    return f"{text} It can label second views:\n  {shlex.join(command)}"
