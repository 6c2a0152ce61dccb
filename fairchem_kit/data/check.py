"""Reading every record of a data set and reporting what is wrong (``ndem data check``)."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.words import counted

from .aselmdb import SUFFIX, RecordFile, is_aselmdb, record_files
from .duplicates import UNKNOWN, Structures, check_duplicates, structure_key
from .errors import DataError
from .fields import QM9_UNITS, as_array, properties_of, sid_of
from .findings import Chunk, Finding, SplitReport
from .lmdb_writer import METADATA_FILE
from .metadata_check import check_metadata
from .parallel import check_stop, run_tasks
from .reader.errors import Refused
from .reader.keys import LENGTH
from .record_check import ERROR, WARNING, CheckOptions, check_record
from .scan import composition_of, formula_of
from .set_check import check_set
from .statistics import CHUNK, Accumulator
from .units import force_in_ev, units_of

_PATTERNS = ("*.lmdb", f"*{SUFFIX}")


@dataclass(frozen=True)
class _Task:
    path: str
    start: int
    stop: int
    options: CheckOptions


def check_dataset(
    path: str | Path,
    options: CheckOptions | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    isolate: bool = True,
) -> list[SplitReport]:
    """Check a data set, one split, or one LMDB file.

    Args:
        path: directory of splits, directory with \\*.lmdb or \\*.aselmdb files, or one such file.
        options: thresholds. workers: processes. progress: show progress bars.
        isolate: read in child processes, so that a damaged file cannot crash this one.

    Returns:
        A report per split; problems are listed in it, not raised.

    Raises:
        DataError: nothing to check at ``path``.
    """
    path, options = Path(path), options or CheckOptions()
    if path.is_file():
        groups = {path: [path]}
    elif any(any(path.glob(pattern)) for pattern in _PATTERNS):
        groups = {path: record_files(path)}
    else:
        inside = (file for pattern in _PATTERNS for file in path.glob(f"*/{pattern}"))
        folders = sorted({file.parent for file in inside})
        groups = {folder: record_files(folder) for folder in folders}
    if not groups:
        raise DataError(f"{path}: no *.lmdb or *.aselmdb files there or in its subdirectories")
    found = [
        _check_split(split, shards, options, workers, progress, isolate)
        for split, shards in groups.items()
    ]
    reports = [report for report, _, _ in found]
    check_set(reports, [formulas for _, formulas, _ in found])
    check_duplicates(reports, [structures for _, _, structures in found])
    return reports


def _check_split(
    split: Path,
    shards: list[Path],
    options: CheckOptions,
    workers: int,
    progress: bool,
    isolate: bool,
) -> tuple[SplitReport, dict[Any, str], Structures]:
    """The report on a split, the formula of each of its systems, and its structures."""
    report = SplitReport(str(split), units=units_of(split))
    options = replace(options, force_unit=force_in_ev(report.units))
    run: dict[str, Any] = {"workers": workers, "progress": progress}
    probes = run_tasks(
        _probe, [str(s) for s in shards], describe=f"opening {split.name}", unit="file",
        crashed=_probe_crashed if isolate else None, **run,
    )  # fmt: skip
    tasks, complete = [], True
    for shard, (count, findings) in zip(shards, probes):
        complete &= count is not None
        for finding in findings:
            report.add(finding)
        starts = range(0, count or 0, CHUNK)
        tasks += [_Task(str(shard), i, min(i + CHUNK, count), options) for i in starts]
    chunks = run_tasks(
        _check_chunk, tasks, describe=f"checking {split.name}", size=lambda t: t.stop - t.start,
        crashed=_chunk_crashed if isolate else None, **run,
    )  # fmt: skip
    _merge(report, chunks)
    folder = split if split.is_dir() else split.parent
    runs = [(task.path, task.start, task.stop) for task in tasks]
    if complete and split.is_dir():
        natoms = np.concatenate([np.asarray(c.natoms, dtype=np.int64) for c in chunks] or [[]])
        check_metadata(report, folder / METADATA_FILE, runs, natoms)
    formulas: dict[Any, str] = {}
    for chunk in reversed(chunks):
        formulas.update(chunk.formulas)
    keys = np.concatenate([np.asarray(c.structures, dtype=np.int64) for c in chunks] or [[]])
    return report, formulas, Structures(keys, runs)


def _probe(path: str) -> tuple[int | None, list[Finding]]:
    """Number of records to read from a shard (None: unreadable) and findings about the file."""
    try:
        with RecordFile(path) as file:
            count, problems = file.count, file.problems
            has_length = is_aselmdb(path) or file.get(LENGTH) is not None
    except (Refused, OSError) as error:
        return None, [Finding(path, None, ERROR, "file", str(error))]
    # missing records are reported one by one
    found = [Finding(path, None, ERROR, *p) for p in problems if p[0] != "missing"]
    if not has_length:
        found.append(Finding(path, None, WARNING, "length", "no `length` key"))
    return count, found


def _probe_crashed(path: str) -> tuple[None, list[Finding]]:
    return None, [Finding(path, None, ERROR, "file", "damaged: opening it kills the process")]


def _chunk_crashed(task: _Task) -> Chunk:
    message = f"damaged: reading records {task.start} to {task.stop - 1} kills the process"
    count = task.stop - task.start
    chunk = Chunk(natoms=array("q", [-1] * count), structures=array("q", [UNKNOWN] * count))
    chunk.add(Finding(task.path, None, ERROR, "file", message))
    return chunk


def _check_chunk(task: _Task) -> Chunk:
    chunk, previous = Chunk(), None
    with RecordFile(task.path) as file:
        for number in range(max(0, task.start - 1), task.stop):
            check_stop()
            previous = _check_fields(chunk, task, number, _fields(file, number), previous)
    return chunk


def _fields(file: RecordFile, number: int) -> dict[str, Any] | DataError:
    try:
        return file.fields(number)
    except DataError as error:
        return error


def _check_fields(
    chunk: Chunk,
    task: _Task,
    number: int,
    fields: dict[str, Any] | DataError,
    previous: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Check one record and add it to the chunk; the one before the chunk is only read.

    Returns:
        The fields, as the next record's ``previous``; None if they cannot be used.
    """
    inside = number >= task.start
    seen = len(chunk.natoms)
    try:
        if isinstance(fields, DataError):
            raise fields
        problems = check_record(fields, task.options)
        usable = all(p[0] != ERROR or p[1] in ("large force", "overlap") for p in problems)
        if inside:
            for problem in problems:
                chunk.add(Finding(task.path, number, *problem))
            _note(chunk, fields)
            if usable:
                chunk.accumulator.add(fields, previous)
    except Exception as error:  # a damaged record can contain anything
        if inside:
            reason = str(error) if isinstance(error, DataError) else f"unusable ({error!r})"
            chunk.add(Finding(task.path, number, ERROR, "record", reason))
            if len(chunk.natoms) == seen:
                chunk.natoms.append(-1)
            if len(chunk.structures) == seen:
                chunk.structures.append(UNKNOWN)
        return None
    return fields if usable else None


def _note(chunk: Chunk, fields: dict[str, Any]) -> None:
    """Store what can only be checked for the whole split."""
    natoms = fields.get("natoms")
    chunk.natoms.append(-1 if natoms is None else int(as_array(natoms).reshape(-1)[0]))
    chunk.structures.append(structure_key(fields))
    present = {k for k in ("y", "energy", "force", "forces") if fields.get(k) is not None}
    chunk.keys.update({*present, *properties_of(fields)})
    sid = sid_of(fields)
    if sid is not None and sid not in chunk.formulas:
        numbers = as_array(fields["atomic_numbers"]).astype(np.int64)
        chunk.formulas[sid] = formula_of(composition_of(numbers))
    if fields.get("sid") is not None and fields.get("fid") is not None:
        fid = int(as_array(fields["fid"]).reshape(-1)[0])
        chunk.identities.append(hash((sid_of(fields), fid)))
    if fields.get("pbc") is not None:
        chunk.pbc.add("".join("FT"[int(p)] for p in as_array(fields["pbc"]).reshape(-1)))
    chunk.tagged |= fields.get("tags") is not None and bool(as_array(fields["tags"]).any())


def _merge(report: SplitReport, chunks: list[Chunk]) -> None:
    total, pbc, keys = Accumulator(), set(), Counter[str]()
    for chunk in chunks:
        total.merge(chunk.accumulator)
        report.findings += chunk.findings
        report.counts.update(chunk.counts)
        pbc |= chunk.pbc
        keys += chunk.keys
    report.statistics = total.result()
    report.energy_key = "y" if "y" in keys else "energy"
    report.forces_key = "force" if "force" in keys else "forces"

    def warn(kind: str, message: str) -> None:
        report.add(Finding(report.path, None, WARNING, kind, message))

    identities = np.concatenate([np.asarray(c.identities, dtype=np.int64) for c in chunks] or [[]])
    doubles = len(identities) - len(np.unique(identities))
    if doubles:
        warn("double", f"{counted(doubles, 'record')} with the sid and fid of another one")
    _check_labels(report, keys)
    if len(pbc) > 1:
        warn("pbc", f"different periodicity ({', '.join(sorted(pbc))}); fairchem cannot batch them")
    if chunks and not any(chunk.tagged for chunk in chunks):
        warn("tags", "all tags are 0")


def _check_labels(report: SplitReport, keys: Counter[str]) -> None:
    """In a data set with QM9's targets every record must have the same targets."""
    labels = {name: keys[name] for name in QM9_UNITS}
    if not any(labels.values()):
        return
    labels["energy"] = max(keys["y"], keys["energy"])
    labels["forces"] = max(keys["force"], keys["forces"])
    most = max(labels.values())
    for name, number in labels.items():
        if 0 < number < most:
            message = f"{counted(most - number, 'record')} without `{name}`, which others have"
            report.add(Finding(report.path, None, ERROR, "missing key", message))
