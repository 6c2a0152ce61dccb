"""What a process that starts another run must not hand down to it."""

from __future__ import annotations

from collections.abc import Mapping

#: what fairchem writes into the environment of a process that trains or evaluates
GROUP = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
#: where this process's W&B service listens; a run that used it would hang once the service is gone
WANDB_SERVICE = "WANDB_SERVICE"


def without_group(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without this process's own group of ranks and its own W&B service.

    A run that inherited the group would wait for the port that this process still holds.
    """
    own = (*GROUP, WANDB_SERVICE)
    return {name: value for name, value in environ.items() if name not in own}
