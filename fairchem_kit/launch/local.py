"""Starting, watching and stopping several ranks on this machine.

torch's elastic launcher, used by fairchem, opens the store of every run without an endpoint on port
29400. A second run on the machine finds it taken, uses the first run's store, and dies when the
first run ends. Here every run has its own port, and Ctrl-C stops between two steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from fairchem_kit.commands.program import NDEM
from fairchem_kit.launch import exit_codes
from fairchem_kit.launch.command import TrainCommand
from fairchem_kit.launch.places import LOCAL, new_attempt
from fairchem_kit.launch.signals import ALL, FIRST_INTERRUPT, say

GRACE_S = 20.0  # time for the other ranks to notice that one has died, before they are killed


class LocalRanks:
    """``count`` processes of one run.

    Args:
        arguments: of the ``ndem`` command of each process. count: number of processes.
            on_interrupt: printed at the first Ctrl-C, which is passed on to them.
    """

    def __init__(
        self, arguments: Sequence[str], count: int, on_interrupt: bytes = FIRST_INTERRUPT
    ) -> None:
        attempt = new_attempt()
        self._on_interrupt = on_interrupt
        self._interrupts = 0
        # Signals are blocked until a rank has its handlers, because importing torch takes seconds.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
        self.processes = [
            subprocess.Popen(
                [*NDEM, *arguments],
                env={
                    "OMP_NUM_THREADS": "1",  # as in torchrun: ranks share the cores
                    **os.environ,
                    LOCAL: f"{rank},{count},{attempt}",
                },
                start_new_session=True,  # a terminal's Ctrl-C only reaches the launcher
            )
            for rank in range(count)
        ]
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait(self) -> int:
        """Wait until all have exited; returns the exit code of the run."""
        before = {number: signal.getsignal(number) for number in ALL}
        for number in ALL:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        try:
            return self._watch()
        finally:
            self.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()

    def _watch(self) -> int:
        deadline = None
        while any(process.poll() is None for process in self.processes):
            if deadline is None and self._failed():
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
            time.sleep(0.1)
        if self._interrupts > 1:
            return exit_codes.INTERRUPTED
        return verdict([process.returncode for process in self.processes])

    def _failed(self) -> bool:
        good = (None, exit_codes.FINISHED, exit_codes.STOPPED)
        return any(process.poll() not in good for process in self.processes)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            say(self._on_interrupt if self._interrupts == 1 else b"\nndem: stopped at once.\n")
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(OSError):
                    process.send_signal(signal.SIGKILL if self._interrupts > 1 else number)


def verdict(codes: list[int]) -> int:
    """The exit code of a run from those of its ranks (negative: killed by that signal).

    A rank's own error takes precedence over the death of a rank, and both over the loss of contact
    that they cause.
    """
    for code in exit_codes.HOPELESS:
        if code in codes:
            return code
    killed = [code for code in codes if code < 0]
    if killed:
        return exit_codes.of_signal(-killed[0])
    return max(codes)


def run_local(command: TrainCommand, ranks: int) -> int:
    """Train with ``ranks`` processes on this machine; returns the exit code of the run."""
    return LocalRanks(["train", *command.words()], ranks).wait()
