"""How ``ndem train`` ends, as a number: what a batch script decides by."""

from __future__ import annotations

FINISHED = 0
ERROR = 1  # an exception in the run; starting it again would meet it again
REFUSED = 2  # a command line, configuration, data or disk that does not let it train
STOPPED = 75  # asked to stop: the last step is saved, the same command goes on from it
LOST_RANK = 76  # another process of the run died; the newest checkpoint is where it goes on
INTERRUPTED = 130  # a second Ctrl-C: ended at once, nothing saved after the last checkpoint

#: Codes after which the same command would only end in the same way.
HOPELESS = (ERROR, REFUSED)


def of_signal(number: int) -> int:
    """The code that shells and srun give for a process ended by signal ``number``."""
    return 128 + number
