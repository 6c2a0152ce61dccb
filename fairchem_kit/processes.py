"""Processes of this machine."""

from __future__ import annotations

import os


def is_alive(number: int) -> bool:
    """Whether there is a process with this number, of any user."""
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
