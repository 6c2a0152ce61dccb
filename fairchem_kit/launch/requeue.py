"""``ndem requeue``: the last line of a batch script, which requeues the job if needed.

SLURM itself requeues a job that is preempted at once, that a user requeues, or whose node fails. It
does not if the ranks stop by themselves, before the time limit or within the grace period of a
preemption, or if a rank is killed. Such jobs are requeued here and continue from the newest
checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fairchem_kit.launch import exit_codes, slurm
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import slurm_job
from fairchem_kit.launch.record import Record
from fairchem_kit.launch.tasks import read_manifest
from fairchem_kit.launch.train import add_arguments, command_of
from fairchem_kit.words import counted

MAX_RESTARTS = 3
TASK = "NDEM_TASK"  # number of the task in its manifest


@dataclass(frozen=True)
class Verdict:
    """The decision about a job. ``state`` goes to its record, ``why`` to its log."""

    requeue: bool
    state: str | None
    why: str


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem requeue``."""
    parser.allow_abbrev = False
    parser.usage = "ndem requeue $? ARGUMENTS OF ndem train | --folder FOLDER [--max-restarts N]"
    parser.add_argument("code", type=int, help="exit code of srun: $?")
    parser.add_argument("--folder", type=Path, help="folder of ndem submit")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=MAX_RESTARTS,
        help="restarts in a row without a new checkpoint (default: %(default)s)",
    )
    add_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Decide, act, and return srun's exit code as the job's own."""
    job = slurm_job()
    if job is None:
        raise LaunchError(
            "ndem requeue must be run in a SLURM batch script (SLURM_JOB_ID is not set)."
        )
    record, most = _record_of(args)
    verdict = decide(args.code, slurm.job_state(job.id), record, job.attempt, most)
    print(f"ndem: srun ended with {args.code}: {verdict.why}", file=sys.stderr, flush=True)
    if verdict.state is not None:
        record.update(state=verdict.state, job=job.label)
    if verdict.state == "failed":
        record.update(error=record.read().get("error") or verdict.why)
    if verdict.requeue:
        problem = slurm.requeue(job.id)
        if problem is not None:
            record.update(state="failed", error=f"could not be requeued: {problem}")
            print(f"ndem: scontrol requeue {job.id}: {problem}", file=sys.stderr, flush=True)
    return args.code


def _record_of(args: argparse.Namespace) -> tuple[Record, int]:
    if args.folder is None:
        command = command_of(args)
        return Record(command.run_dir, command.run_id), args.max_restarts
    manifest = read_manifest(args.folder)
    if manifest is None:
        raise LaunchError(f"{args.folder} was not submitted by ndem submit.")
    number = os.environ.get(TASK, "0")
    if not number.isdecimal() or int(number) >= len(manifest.tasks):
        raise LaunchError(
            f"{TASK}={number}: {args.folder} has {counted(len(manifest.tasks), 'task')}, from 0."
        )
    task = manifest.tasks[int(number)]
    return Record(task.run_dir, task.run_id), manifest.max_restarts


def decide(
    code: int, job: slurm.JobState | None, record: Record, attempt: str, most: int
) -> Verdict:
    """Decide about a job whose srun exited with ``code``.

    Args:
        code: of srun, the largest of all ranks. job: its state now, None if unknown.
        record: of the run; counts the restarts without progress.
        attempt: this start of the job. most: allowed restarts in a row without a new checkpoint.
    """
    if code == exit_codes.FINISHED:
        return Verdict(False, None, "finished.")
    error = record.error(attempt)
    if error is not None:
        return Verdict(False, "failed", f"the run failed with an error, {error['error']}")
    if code in exit_codes.HOPELESS:
        return Verdict(
            False, "failed", "the run did not start, or failed with an error of its own."
        )
    timed_out = job is not None and job.reason == "TimeLimit"
    if job is not None and job.state != "RUNNING" and not timed_out:
        return Verdict(False, None, f"SLURM has already decided about this job ({job.state}).")
    stopped = code == exit_codes.STOPPED
    idle = _restarts_without_progress(record)
    if idle > most:
        times = f"{idle} times in a row without a new checkpoint"
        hint = "its time limit is too short" if stopped or timed_out else "see its log"
        return Verdict(False, "failed", f"ended {times}: {hint}")
    how = "stopped and saved" if stopped else "a rank died"
    return Verdict(True, "requeued", f"{how}; requeued, continues from the newest checkpoint.")


def _restarts_without_progress(record: Record) -> int:
    """Count this exit in the record: 1 after progress, else one more than last time."""
    before, progress = record.read(), record.progress()
    idle = before.get("idle", 0) + 1 if before.get("progress") == progress else 1
    record.update(progress=progress, idle=idle)
    return idle
