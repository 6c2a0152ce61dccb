"""Calling SLURM's own commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_LIMIT_S = 60


@dataclass(frozen=True)
class JobState:
    """State of a job from slurmctld: ``state`` (RUNNING, ...) and ``reason`` (TimeLimit, ...)."""

    state: str
    reason: str


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def _ask(*words: str) -> str | None:
    """The output of a command, None if it is missing, fails or takes too long."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout


def job_state(job_id: str) -> JobState | None:
    """The state of one job, None if unknown to SLURM."""
    text = _ask("scontrol", "--oneliner", "show", "job", job_id)
    found = dict(re.findall(r"\b(JobState|Reason)=(\S+)", text or ""))
    return JobState(found["JobState"], found.get("Reason", "")) if "JobState" in found else None


def requeue(job_id: str) -> str | None:
    """Requeue a job; returns None, or why it failed."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job_id], capture_output=True, text=True, timeout=_LIMIT_S
        )
    except (subprocess.SubprocessError, OSError) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"scontrol: {done.returncode}"


def queue(jobs: Iterable[str]) -> dict[str, str] | None:
    """States of the jobs that slurmctld still knows, by id or ``ARRAY_TASK``.

    None if there is no queue.
    """
    numbers = sorted({job.partition("_")[0] for job in jobs if job})
    if shutil.which("squeue") is None:
        return None
    if not numbers:
        return {}
    text = _ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T", "-j", ",".join(numbers))
    if text is None:  # also if all of them are forgotten
        return {} if _ask("squeue", "-h", "-t", "running") is not None else None
    return dict(line.split()[:2] for line in text.splitlines() if line.strip())


def accounted(jobs: Iterable[str]) -> dict[str, str]:
    """States from the accounting database, {} if it is off."""
    numbers = sorted({job.partition("_")[0] for job in jobs if job})
    if not numbers:
        return {}
    text = _ask("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(numbers))
    lines = [line.split("|") for line in (text or "").splitlines()]
    return {parts[0]: parts[1].split()[0] for parts in lines if len(parts) == 2 and parts[1]}
