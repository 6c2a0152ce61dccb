"""Errors of ``ndem dashboard``."""

from __future__ import annotations

from fairchem_kit.errors import UserError


class DashboardError(UserError, RuntimeError):
    """No wandb-workspaces, no login, no project; the message says what to do."""
