"""Errors of ``ndem dashboard``."""

from __future__ import annotations

from ndem_ocp.errors import NDeMError


class DashboardError(NDeMError, RuntimeError):
    """No wandb-workspaces, no login, no project; the message says what to do."""
