"""Exit codes of ``ndem train``, used by batch scripts to decide what to do."""

from __future__ import annotations

FINISHED = 0
ERROR = 1  # an exception in the run, which would occur again after a restart
REFUSED = 2  # the command line, configuration, data or disk does not allow training
STOPPED = 75  # stopped on request: the last step is saved, the same command continues
LOST_RANK = 76  # another process of the run died; continue from the newest checkpoint
INTERRUPTED = 130  # a second Ctrl-C: ended at once, without saving

#: Codes after which the same command would fail again.
HOPELESS = (ERROR, REFUSED)


def of_signal(number: int) -> int:
    """The exit code of shells and srun for a process killed by signal ``number``."""
    return 128 + number
