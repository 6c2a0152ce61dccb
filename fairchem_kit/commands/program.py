"""How the ``ndem`` command is started again, by name: for more ranks and for batch scripts."""

from __future__ import annotations

import sys

NDEM = (sys.executable, "-m", "ndem_ocp.cli")
