"""The rank of a process in its run, from SLURM or from our local launcher."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.words import counted

#: rank,world size,name of the start: set by the local launcher.
LOCAL = "NDEM_PLACE"
# srun numbers its steps from 0; SLURM's own steps (batch, interactive, external) have the largest
# numbers.
_FIRST_STEP_OF_SLURM = 0xFFFFFFF0


@dataclass(frozen=True)
class SlurmJob:
    """The SLURM job of this process.

    Attributes:
        id: for scontrol. label: ``ARRAY_TASK`` in an array, else the id; neither changes when the
            job is requeued. restart: number of requeues. name: the job's name.
    """

    id: str
    label: str
    restart: int
    name: str

    @property
    def attempt(self) -> str:
        """A name of this start of the job."""
        return f"slurm-{self.id}-{self.restart}"


@dataclass(frozen=True)
class Place:
    """One rank.

    Attributes:
        rank, world_size: among all. local_rank, local_size: among those of this node. nodes: number
            of nodes. attempt: name of this start of the run, different for every start. rendezvous:
            name of the rendezvous of these ranks (an attempt may have several srun steps).
            launched: whether this process is one of several and watched by a launcher.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    nodes: int
    attempt: str
    rendezvous: str
    launched: bool


def slurm_job(environ: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """The SLURM job in ``environ``, None outside SLURM."""
    if "SLURM_JOB_ID" not in environ:
        return None
    job = environ["SLURM_JOB_ID"]
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return SlurmJob(
        id=job,
        label=f"{array}_{task}" if array and task else job,
        restart=int(environ.get("SLURM_RESTART_COUNT") or 0),
        name=environ.get("SLURM_JOB_NAME", "job"),
    )


def place_of(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place given to this process by the local launcher or srun; None if there is none.

    Raises:
        LaunchError: if SLURM's variables contradict each other.
    """
    if LOCAL in environ:
        rank, size, attempt = environ[LOCAL].split(",", 2)
        return Place(int(rank), int(size), int(rank), int(size), 1, attempt, attempt, True)
    job = slurm_job(environ)
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    if job is None or step is None or int(step) >= _FIRST_STEP_OF_SLURM:
        return None
    try:
        rank, local = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
        size = int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"])
        nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1)
    except KeyError as error:
        raise LaunchError(
            f"This process is in step {step} of SLURM job {job.id}, but {error} is not in its "
            "environment: start it with srun."
        ) from error
    counts = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""), nodes, size)
    local_size = counts[int(environ.get("SLURM_NODEID") or 0)]
    return Place(
        rank, size, local, local_size, nodes, job.attempt, f"{job.attempt}-{step}", size > 1
    )


def alone() -> Place:
    """The place of the only process of a run."""
    attempt = new_attempt()
    return Place(0, 1, 0, 1, 1, attempt, attempt, False)


def new_attempt() -> str:
    """A name for a start on this machine."""
    job = slurm_job()
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    return job.attempt if job else f"{host}-{os.getpid()}-{os.urandom(3).hex()}"


def tasks_per_node(text: str, nodes: int, tasks: int) -> list[int]:
    """SLURM's ``2(x3),1`` as [2, 2, 2, 1]; an even split if ``text`` is empty.

    Raises:
        LaunchError: if it does not fit ``nodes`` and ``tasks``.
    """
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form 2(x3),1.")
        counts += [int(found[1])] * int(found[2] or 1)
    if not text:
        counts = [tasks // nodes] * nodes
    if sum(counts) != tasks or len(counts) != nodes:
        raise LaunchError(
            f"SLURM says {counted(tasks, 'task')} on {nodes} nodes and also {text or 'nothing'} "
            "per node. Give --ntasks-per-node."
        )
    return counts
