"""Environment variables that a process must not pass on to a run that it starts."""

from __future__ import annotations

from collections.abc import Mapping

#: set by fairchem in the environment of a process that trains or evaluates
GROUP = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
#: set for torch by whoever opened the group's store: a run that inherited it would open none and
#: look for that one for half an hour
OPEN_STORE = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
#: address of this process's W&B service; a run that used it would hang once the service exits
WANDB_SERVICE = "WANDB_SERVICE"


def without_group(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without this process's own group of ranks and its own W&B service.

    A run that inherited the group would wait for a port or a store that this process still holds.
    """
    own = (*GROUP, *OPEN_STORE, WANDB_SERVICE)
    return {name: value for name, value in environ.items() if name not in own}
