"""``ndem data second-views``: test a calculator on the data, then label displacements with it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.calculators.potential import Potential
from fairchem_kit.calculators.spec import calculator_of, provenance_of
from fairchem_kit.curvature.correction import Correction
from fairchem_kit.curvature.measure import USABLE
from fairchem_kit.data.errors import DataError
from fairchem_kit.data.lock import only_writer
from fairchem_kit.data.records import Structure, iter_structures
from fairchem_kit.data.writer import package_version
from fairchem_kit.progress import bar as progress_bar
from fairchem_kit.words import counted

from .draws import Draws, digest_of, views_of
from .fitting import SKIP_FAILED, FitOptions, fit_to_data, say
from .sidecar import SidecarWriter, Views, read_meta

_LOOKED_AT = 50  # records, by which a file that was begun knows its data set


@dataclass(frozen=True)
class MakeOptions:
    """Options of :func:`make_second_views`.

    Attributes:
        draws: the displacements.
        scale: s; None: by least squares on the data's own pairs of near frames.
        correct: whether to look for a correction of the calculator (fairchem_kit/curvature).
        max_error: largest relative error of the change of forces on these pairs.
        pairs: their number.
        workers: processes.
        skip_failed: leave out and count structures on which the calculator fails.
        progress: a bar with the time left.
    """

    draws: Draws = field(default_factory=Draws)
    scale: float | None = None
    correct: bool = True
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
        "correction": "fit" if options.correct else "none",
    }
    with only_writer(out):
        writer = _open(out, path, potential, made_of, options)
        try:
            potential = _corrected(potential, writer.meta)
            return _fill(writer, path, spec, potential, options)
        finally:
            writer.close()


def _open(
    out: Path, path: Path, potential: Potential, made_of: dict[str, Any], options: MakeOptions
) -> SidecarWriter:
    """The file: new, after testing the calculator, or started before with the same settings."""
    if not out.exists():
        fit = FitOptions(
            options.scale, options.correct, options.max_error, options.pairs, options.skip_failed
        )
        meta = {
            "made_of": made_of,
            "data": str(path),
            "begun_with": _first(path),
            "package_version": package_version(),
            "command": " ".join(["ndem", *sys.argv[1:]]),
            **fit_to_data(path, potential, fit).as_meta(),
        }
        return SidecarWriter(out, meta)
    writer = SidecarWriter(out, {})
    if not _belongs(writer, path):
        before = writer.meta.get("data")
        writer.close()
        raise DataError(
            f"--out {out} has views of other records ({before}), and its scale and correction were "
            f"fitted to them: give another --out for {path}"
        )
    if writer.meta["made_of"] != made_of:
        before = writer.meta["made_of"]
        changed = [key for key in made_of if made_of[key] != before.get(key)]
        writer.close()
        raise DataError(
            f"--out {out} has views made with another {', '.join(changed)} "
            f"({', '.join(str(before.get(key)) for key in changed)}): give another --out"
        )
    return writer


def _first(path: Path) -> str | None:
    """The digest of the first record."""
    return next((digest_of(structure).hex() for structure in iter_structures(path)), None)


def _belongs(writer: SidecarWriter, path: Path) -> bool:
    """Whether a file was made for these records, or for some of the first ones."""
    first = [digest_of(each) for each in itertools.islice(iter_structures(path), _LOOKED_AT)]
    begun = writer.meta.get("begun_with")
    return not first or any(writer.known(key) or key.hex() == begun for key in first)


def labeller(views: Path, spec: str) -> Potential:
    """The potential T + V / s that made a file of views, from its calculator's SPEC."""
    return _corrected(Potential(calculator_of(spec)), read_meta(views))


def _corrected(potential: Potential, meta: dict[str, Any]) -> Potential:
    """The calculator with the correction that the file has, if any."""
    if meta.get("correction") is None:
        return potential
    return Correction(**meta["correction"]).corrected(potential, meta["scale"])


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
        else:
            counts["failed"] += writer.has_failed(key)
    if todo:
        say(_cost(list(todo.values()), potential, options))
    with progress_bar(
        total=len(todo), desc="second views", unit="structure", show=options.progress
    ) as bar:
        for key, views in _views(todo, spec, potential, options, writer.meta):
            counts["failed"] += isinstance(views, str)
            writer.add(key, views)
            bar.update()
    if not writer.meta.get("complete") or todo:
        writer.finish(counts=dict(counts), structures=keys.hexdigest())
    return writer.meta


def _cost(structures: list[Structure], potential: Potential, options: MakeOptions) -> str:
    """An estimate of the time, from a few calculations on the first structure where they work."""
    each = None
    for structure in structures[:_LOOKED_AT]:
        with contextlib.suppress(DataError):  # said when its views are made
            each = potential.seconds(structure)
            break
    about = ""
    if each is not None:
        seconds = each * (options.draws.count + 1) * len(structures) / options.workers
        about = f" about {_duration(seconds)}"
    return (
        f"{counted(len(structures), 'structure')}, {counted(options.draws.count, 'displacement')} "
        f"each:{about} on {counted(options.workers, 'process', 'processes')}. You can stop it at "
        "any time; the same command continues"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _views(
    todo: dict[bytes, Structure],
    spec: str,
    potential: Potential,
    options: MakeOptions,
    meta: dict[str, Any],
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
        initargs=(spec, options, meta),
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
        except BrokenProcessPool:
            raise DataError(
                "a process that computed second views died (out of memory, or killed). What is "
                "done is kept, and the same command continues; fewer --workers need less memory"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(potential: Potential, structure: Structure, options: MakeOptions) -> Views | str:
    try:
        return views_of(potential, structure, options.draws)
    except DataError as error:
        if options.skip_failed:
            return str(error)
        raise DataError(f"{error}. {SKIP_FAILED}") from error.__cause__


_worker: tuple[Potential, MakeOptions] | None = None


def _start(spec: str, options: MakeOptions, meta: dict[str, Any]) -> None:
    """Start a process: make its own calculator; Ctrl-C is handled by the parent."""
    import signal

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = _corrected(Potential(calculator_of(spec)), meta), options


def _in_worker(structure: Structure) -> Views | str:
    assert _worker is not None  # _start has run
    potential, options = _worker
    return _one(potential, structure, options)
