"""What makes a dashboard impossible."""

from __future__ import annotations


class DashboardError(RuntimeError):
    """No wandb-workspaces, no login, no project; the message says what to do."""
