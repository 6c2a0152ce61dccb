"""``ndem status``: the tasks of a submitted sweep, or all runs in a folder."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairchem_kit.files import existing
from fairchem_kit.launch import slurm
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.record import Record, best_value, records_below
from fairchem_kit.launch.submit import LOGS
from fairchem_kit.launch.tasks import read_manifest
from fairchem_kit.words import counted

_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")
_ENDED_BY_SLURM = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timed out",
    "NODE_FAIL": "node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "FAILED": "died",
}


@dataclass
class Line:
    """One task. ``step`` of ``total``; ``best`` value of the primary metric, in ``unit`` ("" if it
    has none or none is recorded)."""

    task: int
    name: str
    job: str
    state: str
    restarts: int
    step: int | None
    total: int | None
    metric: str | None
    unit: str
    best: float | None
    run_dir: str
    error: str | None
    updated: float | None


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem status``."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    lines = status(args.folder)
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        print(table(args.folder, lines))
    return 0


def status(folder: Path) -> list[Line]:
    """The tasks in ``folder``, from SLURM's queue and the runs' own records.

    Raises:
        LaunchError: if there is nothing in it.
    """
    manifest = read_manifest(existing(folder, LaunchError))
    if manifest is not None:
        found = [
            (task.name, Record(task.run_dir, task.run_id), task.job) for task in manifest.tasks
        ]
    else:
        found = [(record.run_id, record, "") for record in records_below(folder)]
    if not found:
        raise LaunchError(
            f"{folder}: found neither {folder / 'tasks.json'} of ndem submit nor a run of ndem "
            "train."
        )
    rows = [(name, record, record.read(), job) for name, record, job in found]
    jobs = [said.get("job") or job for _, _, said, job in rows]
    queue, accounts = slurm.queue(jobs), {}
    if any(job not in (queue or {}) for job in jobs if job):
        accounts = slurm.accounted(jobs)
    return [
        _line(index, name, record, said, job, (queue, accounts))
        for index, ((name, record, said, _), job) in enumerate(zip(rows, jobs))
    ]


def _line(
    index: int,
    name: str,
    record: Record,
    said: dict[str, Any],
    job: str,
    known: tuple[dict[str, str] | None, dict[str, str]],
) -> Line:
    newest = record.checkpoint()
    best = said.get("best", best_value(newest.get("best_val_metric")))
    state = state_of(said, job, *known)
    steps = [step for step in (said.get("step"), newest.get("step")) if step is not None]
    return Line(
        task=index,
        name=name,
        job=job,
        state="not recorded" if state == "not started" and newest else state,
        restarts=max(0, said.get("starts", 0) - 1),
        step=max(steps) if steps else None,
        total=said.get("total"),
        metric=said.get("metric") or newest.get("primary_metric"),
        unit=str(said.get("unit") or ""),
        best=best,
        run_dir=str(record.run_dir),
        error=said.get("error"),
        updated=said.get("updated"),
    )


def state_of(
    said: dict[str, Any], job: str, queue: dict[str, str] | None, accounts: dict[str, str]
) -> str:
    """The state of a task, in one or two words.

    Args:
        said: its record. job: its SLURM id, or "". queue: states in the queue, None if there is no
            queue. accounts: states in the accounting database.
    """
    state = said.get("state")
    if state in ("finished", "failed"):
        return state
    if not job or (queue is None and not accounts):
        return state or "not started"
    now = (queue or {}).get(job) or accounts.get(job)
    if now in _WAITING:
        if state is None:
            return "queued"
        return "requeued" if state == "requeued" else "preempted, requeued"
    if now in ("RUNNING", "COMPLETING"):
        return {None: "starting", "requeued": "restarting"}.get(state, state)
    if now in _ENDED_BY_SLURM:
        return _ENDED_BY_SLURM[now]
    if state == "stopped":
        return "stopped"
    return "gone" if now is None else now.lower()


def table(folder: Path, lines: list[Line]) -> str:
    """``lines`` for a terminal."""
    counts = Counter(line.state for line in lines)
    metrics = dict.fromkeys(_metric(line) for line in lines if line.metric)
    shared = next(iter(metrics), "metric") if len(metrics) < 2 else ""
    best = f"best {shared}".rstrip()
    head = ["task", "name", "job", "state", "restarts", "step", best, "seen", "run"]
    rows = [
        [
            str(line.task),
            line.name,
            line.job or "-",
            line.state,
            str(line.restarts),
            "-" if line.step is None else f"{line.step}/{line.total or '?'}",
            "-"
            if line.best is None
            else f"{line.best:.5g} {'' if shared else _metric(line)}".rstrip(),
            "-" if line.updated is None else _ago(time.time() - line.updated),
            line.run_dir,
        ]
        for line in lines
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    text = [
        f"{folder}: {counted(len(lines), 'task')}: "
        + ", ".join(f"{n} {state}" for state, n in counts.items())
    ]
    for row in (head, *rows):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for line in lines:
        if line.state == "failed":
            text.append(f"task {line.task}: {line.error}")
            if line.job:
                text.append(f"        {folder / LOGS}/{line.job}_*_log.out")
        if line.state == "gone":
            text.append(
                f"task {line.task}: SLURM no longer knows job {line.job}, which did not record how "
                "it ended (killed with its node, out of memory, or cancelled)."
            )
    return "\n".join(text)


def _metric(line: Line) -> str:
    """``forces_mae (eV/A)``"""
    return f"{line.metric} ({line.unit})" if line.unit else f"{line.metric}"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
