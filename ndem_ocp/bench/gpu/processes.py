"""The process of a stage, from outside (Stage) and from inside (run_stage).

A stage's process is started early: it imports, then waits for the word that it may use the device,
builds what it needs, and waits for its turn, which comes with a deadline. Both words are lines
on its standard input, so that it ends if the main process does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

from ndem_ocp.bench.checkout import ROOT

MODULE = "ndem_ocp.bench.gpu.check"  # the command, even if it runs as __main__
PREPARE, FOREVER = "prepare", 1e6


def stage_command(name: str, args: Namespace) -> list[str]:
    command = [sys.executable, "-u", "-m", MODULE, "--stage", name, "--device", args.device]
    command += ["--out", str(args.out), "--work", str(args.work)]
    return [*command, *(["--tiny"] if args.tiny else [])]


class Stage:
    """A process in its own process group, all of which is killed at the deadline."""

    def __init__(self, name: str, args: Namespace, command: list[str] | None = None) -> None:
        quiet = {"WANDB_MODE": "offline", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
        if name == "consistency":  # for deterministic products
            quiet["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if "OMP_NUM_THREADS" not in os.environ:  # several stages work at the same time
            quiet["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // 4))
        quiet["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
        self.name, self.outcome = name, ""
        self.own, self.log = args.work / f"log-{name}", args.work / "log"
        self._begin = self._deadline = 0.0
        self._told = self._killed = False
        with self.own.open("w") as stream:
            self.process = subprocess.Popen(
                command or stage_command(name, args), stdin=subprocess.PIPE, stdout=stream,
                stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env={**os.environ, **quiet},
            )  # fmt: skip

    def may_prepare(self) -> None:
        """Let it use the device, not yet alone."""
        if not self._told:
            self._told = True
            self._tell(PREPARE)

    def begin(self, deadline: float) -> None:
        """Its turn: it has the device until the deadline, as in time.time()."""
        self._begin, self._deadline = time.time(), deadline
        self.may_prepare()
        self._tell(json.dumps(deadline - 2))

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended, which ended() reports
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()

    def ended(self) -> bool:
        """Whether it has ended, or has to; ``outcome`` says how, in words."""
        code, took = self.process.poll(), time.time() - self._begin
        if code is None and time.time() < self._deadline:
            return False
        self.kill()
        if code is None:
            self.outcome = f"stopped at its time limit after {took:.0f} s"
        elif code:
            last = self.own.read_text(errors="replace").strip().splitlines()[-1:]
            self.outcome = f"error: exit status {code} after {took:.0f} s: {' '.join(last)}"
        else:
            self.outcome = f"{took:.0f} s"
        return True

    def kill(self) -> None:
        """Kill it and what it started, and add its log to the log of all."""
        if self._killed:
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with self.log.open("a") as log:
            log.write(self.own.read_text(errors="replace"))


class Gate:
    """The lines from the main process; read unbuffered, so that waiting() sees the next one."""

    def wait(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            one = os.read(0, 1)
            if not one:
                sys.exit("the main process has ended")
            line += one
        return line.decode().strip()

    def waiting(self) -> bool:
        """Whether the stage's turn has not come yet."""
        return not select.select([0], [], [], 0)[0]


def run_stage(args: Namespace) -> int:
    """Run one stage in this process."""
    gate = Gate()
    from ndem_ocp.bench.gpu.results import Check, Results

    stage = importlib.import_module(f"ndem_ocp.bench.gpu.{args.stage}")
    if args.stage != "environment":  # whose own part is short, and which the others wait for
        from fairchem.core.common.utils import setup_imports

        import ndem_ocp

        setup_imports()
        ndem_ocp.register()
    out = Results(args.out, args.stage)
    out.say("imported")
    gate.wait()
    check = Check(args.device, time.time() + FOREVER, Path(args.work), args.tiny)
    if check.cuda and not _torch_finds_a_gpu():
        sys.exit("torch finds no GPU (`ndem doctor` says why)")
    prepare = getattr(stage, "prepare", None)
    prepared = [prepare(check, gate.waiting)] if prepare else []
    out.say("prepared")
    check = check.until(json.loads(gate.wait()))
    out.say("begins")
    stage.run(check, out, *prepared)
    return 0


def _torch_finds_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
