"""The stock ``fairchem`` command on several ranks of this machine, with a limit on its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from alone import TORCHS_PORT, alone

FAIRCHEM = Path(sys.executable).with_name("fairchem")
FINISHED = "Total time taken"  # fairchem's last line of a run
ISOLATE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def _own_network() -> tuple[str, ...]:
    """Words before a command that give it a network of its own; none where that is not allowed.

    The stock command meets at torch's default port, which another run on the machine may have.
    """
    try:
        done = subprocess.run([*ISOLATE, "true"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return ISOLATE if done.returncode == 0 else ()


OWN_NETWORK = _own_network()


class Command:
    """A running command in a process group of its own; use it in a ``with`` statement."""

    def __init__(self, config: dict[str, Any], run_dir: Path, ranks: int, *options: str) -> None:
        run_dir.mkdir(parents=True)
        config_yml = run_dir / "config.yml"
        config_yml.write_text(yaml.safe_dump(config))
        self.run_dir = run_dir
        self.log = run_dir / "output.txt"
        arguments = ["--mode", "train", "--config-yml", config_yml, "--run-dir", run_dir]
        arguments += ["--identifier", "ranks", "--cpu", "--num-gpus", ranks, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONFAULTHANDLER"] = "1"  # for ``stacks``
        self._alone = contextlib.ExitStack()
        if not OWN_NETWORK:
            self._alone.enter_context(alone(TORCHS_PORT))
        self.started = time.monotonic()
        # A file and no pipe: a process that outlives the command must not keep us waiting.
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*OWN_NETWORK, *(str(part) for part in (FAIRCHEM, *arguments))],
                cwd=run_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        if self.left():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._alone.close()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float) -> int | None:
        """Exit status within so many seconds, None if the command still runs after them."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def ended_after(self, line: str, seconds: float, soon: float) -> int | None:
        """Exit status; None if the command still runs ``soon`` seconds after it wrote ``line``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.ended(1)
            if status is not None:
                return status
            if line in self.output:
                return self.ended(soon)
        raise AssertionError(f"no end after {seconds} s: {self.output[-4000:]}")

    def wait_for(self, files: str, lines: int, seconds: float) -> None:
        """Until a file that matches the pattern below the run's folder has so many lines."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [path.read_text().count("\n") for path in self.run_dir.glob(files)]
            if found and max(found) >= lines:
                return
            assert self.process.poll() is None, self.output[-4000:]
            time.sleep(0.05)
        raise AssertionError(f"no {lines} lines in {files} within {seconds} s")

    def stacks(self) -> str:
        """End every process with SIGABRT, upon which it writes where it was; all output."""
        for pid in self.left():
            os.kill(pid, signal.SIGABRT)
        self.ended(10)
        return self.output

    def left(self) -> list[int]:
        """Processes of the command's group that still live, the command itself included."""
        return [pid for pid, (_, group, state) in _processes().items() if self._mine(group, state)]

    def ranks(self) -> list[int]:
        """Process ids of the ranks, in order."""
        found = []
        for pid, (parent, group, state) in sorted(_processes().items()):
            if parent == self.process.pid and self._mine(group, state):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in command:
                    found.append(pid)
        return found

    def _mine(self, group: int, state: str) -> bool:
        return group == self.process.pid and state != "Z"


def _processes() -> dict[int, tuple[int, int, str]]:
    """{process: (parent, process group, state)} of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue  # it has ended meanwhile
            found[int(entry.name)] = (int(parent), int(group), state)
    return found
