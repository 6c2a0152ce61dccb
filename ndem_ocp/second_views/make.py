"""``ndem data second-views``: test a calculator on the data, then label displacements with it."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.calculators.spec import calculator_of, provenance_of
from fairchem_kit.curvature.measure import USABLE, Agreement, agreement_of
from fairchem_kit.curvature.pairs import MOST_READ, near_pairs
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.lock import only_writer
from fairchem_kit.data.records import Structure, iter_structures
from fairchem_kit.data.units import force_in_ev, units_of
from fairchem_kit.data.writer import package_version
from fairchem_kit.progress import bar as progress_bar
from fairchem_kit.words import counted

from .draws import Draws, digest_of, gradient_mismatch, views_of
from .sidecar import SidecarWriter, Views

MAX_GRADIENT_MISMATCH = 0.2


@dataclass(frozen=True)
class MakeOptions:
    """Options of :func:`make_second_views`.

    Attributes:
        draws: the displacements.
        scale: s; None: by least squares on the data's own pairs of near frames.
        max_error: largest relative error of s dT on these pairs.
        pairs: their number.
        workers: processes.
        skip_failed: leave out and count structures on which the calculator fails.
        progress: a bar with the time left.
    """

    draws: Draws = field(default_factory=Draws)
    scale: float | None = None
    max_error: float = USABLE
    pairs: int = 60
    workers: int = 1
    skip_failed: bool = False
    progress: bool = True


def make_second_views(
    path: str | Path, spec: str, out: str | Path, options: MakeOptions | None = None
) -> dict[str, Any]:
    """Write the second views of all labelled records of a split; existing views are kept.

    Args:
        path: directory of the split, or one LMDB file.
        spec: the calculator, see ``fairchem_kit.calculators.spec``.
        out: the file to write.
        options: :class:`MakeOptions`.

    Returns:
        The file's ``meta``: calculator, draws, scale, relative error, counts.

    Raises:
        DataError: no labelled records, a calculator that fails or disagrees with the data, or an
            ``out`` that is another kind of file or was started with other settings.
    """
    path, out, options = Path(path), Path(out), options or MakeOptions()
    potential = Potential(calculator_of(spec))
    made_of = {
        "calculator": provenance_of(potential.calculator, spec).as_dict(),
        "draws": options.draws.as_dict(),
        "scale_given": options.scale,
    }
    with only_writer(out):
        writer = _open(out, path, potential, made_of, options)
        try:
            return _fill(writer, path, spec, potential, options)
        finally:
            writer.close()


def _open(
    out: Path, path: Path, potential: Potential, made_of: dict[str, Any], options: MakeOptions
) -> SidecarWriter:
    """The file: new, after testing the calculator, or started before with the same settings."""
    if not out.exists():
        tested = _test_calculator(path, potential, options)
        meta = {
            "made_of": made_of,
            "data": str(path),
            "package_version": package_version(),
            "command": " ".join(["ndem", *sys.argv[1:]]),
            **tested,
        }
        return SidecarWriter(out, meta)
    writer = SidecarWriter(out, {})
    if writer.meta["made_of"] != made_of:
        before = writer.meta["made_of"]
        changed = [key for key in made_of if made_of[key] != before.get(key)]
        writer.close()
        raise DataError(
            f"--out {out} has views made with another {', '.join(changed)} "
            f"({', '.join(str(before.get(key)) for key in changed)}): give another --out"
        )
    return writer


def _test_calculator(path: Path, potential: Potential, options: MakeOptions) -> dict[str, Any]:
    """Test the calculator on pairs of near frames of the data.

    Raises:
        DataError: its forces are not the gradient of its energy, or its change of forces has too
            large an error.
    """
    structures = list(itertools.islice(iter_structures(path), MOST_READ))
    labelled = [s for s in structures if s.forces is not None]
    if not labelled:
        raise DataError(f"{path}: no record has forces, so there is nothing to add changes to")
    few = labelled[:: max(1, len(labelled) // 3)][:3]
    mismatch = gradient_mismatch(potential, few)
    if mismatch > MAX_GRADIENT_MISMATCH:
        raise DataError(
            f"the calculator's forces are not the gradient of its energy (off by "
            f"{100 * mismatch:.0f} %): its second views would contradict each other. Use a "
            "potential whose forces are conservative"
        )
    pairs = near_pairs(structures, options.pairs)
    if not pairs:
        scale = 1.0 if options.scale is None else options.scale
        say(
            "The data have no pairs of near frames, so the calculator cannot be tested on them; "
            f"s = {scale:g}"
        )
        return {"scale": scale, "relative_error": None, "pairs": 0, "gradient_mismatch": mismatch}
    unit = force_in_ev(units_of(path))
    found = agreement_of(
        "calculator", structures, pairs, lambda index: potential(structures[index])[1] / unit
    )
    scale = found.scale if options.scale is None else options.scale
    error = found.relative_error if options.scale is None else _error_at(found, scale)
    say(
        f"over {counted(found.pairs, 'pair')} of near frames the calculator's change of forces is "
        f"off by {100 * error:.1f} % with s = {scale:.3f} (its forces themselves: "
        f"{100 * (found.forces_error or 0):.0f} %)"
    )
    if error > options.max_error:
        raise DataError(
            f"the calculator's change of forces is off by {100 * error:.0f} % with s = {scale:.3g} "
            f"over {counted(found.pairs, 'pair')} of near frames of {path}, more than --max-error "
            f"{options.max_error:g} allows. Compare calculators with `ndem data curvature`"
        )
    return {"scale": scale, "relative_error": error, "pairs": found.pairs,
            "unscaled_error": found.unscaled_error, "gradient_mismatch": mismatch}  # fmt: skip


def _error_at(found: Agreement, scale: float) -> float:
    """The relative error with a scale other than the best one.

    |s p - t|^2 is a parabola in s whose minimum is at the best scale b; its height at s = 0 is
    |t|^2, so that |s p - t|^2 / |t|^2 = e_b^2 + (1 - e_b^2) (s / b - 1)^2.
    """
    best = found.relative_error**2
    if found.scale == 0:
        return 1.0
    return float(np.sqrt(best + (1 - best) * (scale / found.scale - 1) ** 2))


def _fill(
    writer: SidecarWriter, path: Path, spec: str, potential: Potential, options: MakeOptions
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    keys = hashlib.blake2b(digest_size=16)
    todo: dict[bytes, Structure] = {}
    for structure in iter_structures(path):
        counts["records"] += 1
        key = digest_of(structure)
        keys.update(key)
        if structure.forces is None or not np.isfinite(structure.forces).all():
            counts["unlabelled"] += 1
            reason = f"{structure.where}: no finite forces"
            if not writer.known(key):
                writer.add(key, reason)
        elif not writer.known(key):
            todo.setdefault(key, structure)
    if todo:
        say(_cost(next(iter(todo.values())), len(todo), potential, options))
    with progress_bar(
        total=len(todo), desc="second views", unit="structure", show=options.progress
    ) as bar:
        for key, views in _views(todo, spec, potential, options):
            counts["failed"] += isinstance(views, str)
            writer.add(key, views)
            bar.update()
    if not writer.meta.get("complete") or todo:
        writer.finish(counts=dict(counts), structures=keys.hexdigest())
    return writer.meta


def _cost(structure: Structure, count: int, potential: Potential, options: MakeOptions) -> str:
    """An estimate of the time, from a few calculations."""
    seconds = potential.seconds(structure) * (options.draws.count + 1) * count / options.workers
    return (
        f"{counted(count, 'structure')}, {counted(options.draws.count, 'displacement')} each: "
        f"about {_duration(seconds)} on {counted(options.workers, 'process', 'processes')}. You "
        "can stop it at any time; the same command continues"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _views(
    todo: dict[bytes, Structure], spec: str, potential: Potential, options: MakeOptions
) -> Iterator[tuple[bytes, Views | str]]:
    """The views of each structure, in the order in which they are finished."""
    if options.workers == 1:
        for key, structure in todo.items():
            yield key, _one(potential, structure, options)
        return
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    os.environ["OMP_NUM_THREADS"] = threads  # for the new processes
    with ProcessPoolExecutor(
        options.workers,
        mp_context=get_context("spawn"),  # torch's threads and GPUs do not survive a fork
        initializer=_start,
        initargs=(spec, options),
    ) as pool:
        waiting: dict[Future[Any], bytes] = {}
        ahead = iter(todo.items())
        try:
            while True:
                for key, structure in itertools.islice(ahead, 4 * options.workers - len(waiting)):
                    waiting[pool.submit(_in_worker, structure)] = key
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(potential: Potential, structure: Structure, options: MakeOptions) -> Views | str:
    try:
        return views_of(potential, structure, options.draws)
    except DataError as error:
        if options.skip_failed:
            return str(error)
        raise DataError(f"{error}. --skip-failed leaves out such structures and counts them") from (
            error.__cause__
        )


_worker: tuple[Potential, MakeOptions] | None = None


def _start(spec: str, options: MakeOptions) -> None:
    """Start a process: make its own calculator; Ctrl-C is handled by the parent."""
    import signal

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = Potential(calculator_of(spec)), options


def _in_worker(structure: Structure) -> Views | str:
    assert _worker is not None  # _start has run
    potential, options = _worker
    return _one(potential, structure, options)


def say(text: str) -> None:
    """Print a progress message; the result is in the file."""
    print(text, file=sys.stderr, flush=True)
