"""A SLURM cluster of two nodes on this machine, made for a test and gone after it.

Debian's own packages, installed if they are absent. Everything of the cluster (munge's key and
socket, state, logs, ports) is its own: it disturbs no other SLURM and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from alone import CLUSTER, alone

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
NODES = ("n1", "n2")
_APT_S = 400

CONF = """\
ClusterName=ndemtest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits as long as credentials live: 120 s unless told otherwise
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=60
SlurmdTimeout=60
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=spare Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


class Unavailable(RuntimeError):
    """There can be no cluster on this machine; the message says why."""


class Cluster:
    """A running cluster. ``environ``: what its commands and jobs need."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self.home = home
        self.environ = {**environ, "SLURM_CONF": str(home / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *words: str, check: bool = True, **kwargs) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(
            words, env=self.environ, capture_output=True, text=True, timeout=60, **kwargs
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """State of every job that is not forgotten, by id or ARRAY_TASK."""
        text = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T")
        return dict(line.split() for line in text.splitlines())

    def field(self, job: str, name: str) -> str:
        """One field of ``scontrol show job``."""
        text = self.run("scontrol", "-o", "show", "job", job)
        return re.search(rf"\b{name}=(\S*)", text)[1]

    def rank_pids(self, job: str, rank: int) -> list[int]:
        """Processes whose environment says that they are (of) rank ``rank`` of ``job``, parents
        first."""
        mine = self._processes_with(f"SLURM_JOB_ID={self.field(job, 'JobId')}")
        return [
            pid for pid in mine if {f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"} <= set(_environ(pid))
        ]

    def start(self) -> None:
        self._daemon(
            "munged", "-F", "--key-file", str(self.home / "munge.key"),
            "--socket", str(self.home / "munge.socket"), "--pid-file", str(self.home / "munge.pid"),
            "--log-file", str(self.home / "munge.log"), "--seed-file", str(self.home / "seed"),
            "--num-threads", "2",
        )  # fmt: skip
        _until(lambda: (self.home / "munge.socket").exists(), 20, "munged did not start")
        self._daemon("slurmctld", "-D", "-i", "-c")
        for node in NODES:
            self.start_node(node)
        try:
            _until(lambda: self.run("sinfo", "-h", "-o", "%T", check=False).strip() == "idle", 60)
        except TimeoutError as error:
            logs = [p.read_text()[-2000:] for p in sorted(self.home.glob("slurm*.log"))]
            raise Unavailable("SLURM's daemons did not start:\n" + "\n".join(logs)) from error

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-b", "-N", node, name=node)  # -b: it was just booted

    def kill_node(self, node: str) -> None:
        """As a power cut: the node's daemon and everything that it started, at once."""
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none may see another one die
            on_node = self._processes_with(f"SLURMD_NODENAME={node}")
            guards = {_parent(pid) for pid in on_node} - {0, 1, os.getpid()}
            # Children first: the kernel wakes a stopped child whose parent is gone, and an srun
            # that wakes asks SLURM to end its step, which by then is the next start's.
            everything = {self._processes[node].pid, *guards, *on_node}
            for pid in sorted(everything, key=_depth, reverse=True):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._processes[node].wait()

    def _processes_with(self, entry: str) -> list[int]:
        """Processes of this cluster that have ``entry`` in their environment too."""
        wanted = {entry.encode(), f"SLURM_CONF={self.environ['SLURM_CONF']}".encode()}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
        return sorted(found)

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
            _until(lambda: not set(self.states().values()) & {"RUNNING", "COMPLETING"}, 30)
        for name in (*NODES, "slurmctld", "munged"):
            process = self._processes.get(name)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._processes_with(f"SLURM_CONF={self.environ['SLURM_CONF']}"):
            if pid != os.getpid():  # a slurmstepd or a rank that nobody waits for any more
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _daemon(self, *words: str, name: str | None = None) -> None:
        program = shutil.which(words[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        with (self.home / f"{name or words[0]}.out").open("ab") as out:
            self._processes[name or words[0]] = subprocess.Popen(
                [program, *words[1:]],
                env=self.environ,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


@contextlib.contextmanager
def cluster(environ: Mapping[str, str]) -> Iterator[Cluster]:
    """A cluster, from start to stop; one at a time.

    Raises:
        Unavailable: if SLURM cannot be installed or started here.
    """
    with alone(CLUSTER):
        yield from _cluster(environ)


def _cluster(environ: Mapping[str, str]) -> Iterator[Cluster]:
    _install()
    home = Path(
        tempfile.mkdtemp(prefix="ndem-slurm-", dir="/run" if os.access("/run", os.W_OK) else None)
    )
    home.chmod(0o755)  # munge refuses a folder that others cannot enter
    ports = _free_ports(1 + len(NODES))
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 "
        "RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
        for node, port in zip(NODES, ports[1:])
    ]
    (home / "slurm.conf").write_text(
        CONF.format(home=home, host=host, ports=ports, nodes="\n".join(nodes))
    )
    (home / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File=/dev/tty[0-1]\n")
    (home / "munge.key").write_bytes(os.urandom(1024))
    (home / "munge.key").chmod(0o400)
    for folder in ("state", *(f"spool-{node}" for node in NODES)):
        (home / folder).mkdir()
    path = f"{Path(sys.executable).parent}:{environ.get('PATH', os.environ['PATH'])}:/usr/sbin"
    running = Cluster(home, {**environ, "PATH": path})
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


def _install() -> None:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if os.geteuid() != 0:
        raise Unavailable("a SLURM cluster needs root (munge, slurmd)")
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{', '.join(missing)} are not here, and neither is apt-get")
    install = ["apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]
    with _no_daemons():
        # the list of packages may be missing or old: only then it is fetched
        if _apt(install) is not None:
            problem = _apt(["apt-get", "update"]) or _apt(install)
            if problem is not None:
                raise Unavailable(f"apt-get could not install SLURM: {problem}")


def _apt(words: list[str]) -> str | None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            words, env=environ, capture_output=True, text=True, timeout=_APT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{' '.join(words)} took more than {_APT_S} s"
    return None if done.returncode == 0 else done.stderr[-500:]


@contextlib.contextmanager
def _no_daemons() -> Iterator[None]:
    """Debian's packages start their daemons unless this file says no."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _until(condition, limit_s: float, what: str = "") -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environ(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []


def _depth(pid: int) -> int:
    """How many ancestors a process has."""
    depth = 0
    while pid > 1:
        pid, depth = _parent(pid), depth + 1
    return depth


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
