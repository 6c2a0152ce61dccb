"""The weights of a checkpoint that a user means: the moving average, or those of the last step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ndem_ocp.checkpoints import CheckpointError
from ndem_ocp.pretrained.compare import OLD_TARGETS
from ndem_ocp.pretrained.ema import averaged

AUTO, EMA, LAST = "auto", "ema", "last"
KINDS = (AUTO, EMA, LAST)
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # DDP, torch.compile


def plain_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict without the prefixes of DDP, in its order."""
    return {_PREFIXES.sub("", str(name)): value for name, value in state.items()}


def plain_normalizers(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The normalizers of a checkpoint of any age under today's names, as fairchem loads them."""
    found = {}
    for name, state in (content.get("normalizers") or {}).items():
        state = {"rmsd" if key == "std" else key: value for key, value in state.items()}
        found[OLD_TARGETS.get(name, name)] = {k: torch.as_tensor(v) for k, v in state.items()}
    return found


def chosen_weights(
    content: Mapping[str, Any], model: nn.Module, weights: str, path: Any
) -> tuple[dict[str, Tensor], str]:
    """Weights by name, and which they are.

    ``fairchem --mode validate`` takes the moving average of a ``checkpoint.pt``; fairchem's
    OCPCalculator takes the weights of its last step. Both take the average of a best checkpoint,
    which holds nothing else.

    Args:
        content: of a checkpoint. model: its network, which tells trained weights from buffers.
        weights: "auto" (the average where there is one), "ema" or "last".
        path: the file, for messages.

    Returns:
        (state dict without wrappers' prefixes, "ema" or "last").

    Raises:
        CheckpointError: if these weights are not in the file.
    """
    if weights not in KINDS:
        raise CheckpointError(f"weights = {weights!r}: choose one of {', '.join(KINDS)}.")
    state, ema = plain_names(content["state_dict"]), content.get("ema")
    if content.get("weights") == EMA:  # a best checkpoint of this package
        if weights == LAST:
            raise CheckpointError(
                f"{path} (a best checkpoint) holds the moving average only: take weights ema, or "
                "a checkpoint of the run's last steps (checkpoint.pt)."
            )
        return state, EMA
    has_average = isinstance(ema, Mapping) and "shadow_params" in ema
    if weights == LAST or (weights == AUTO and not has_average):
        return state, LAST
    if not has_average:
        raise CheckpointError(
            f"{path} says of no weights that they are a moving average. A best checkpoint of "
            "fairchem's own trainer is one without saying so, and a run with optim.ema_decay: 0 "
            "has none: take weights last for what the file holds."
        )
    ours = {name: name for name in model.state_dict() if name in state}
    found = averaged(content, state, ours, model)
    if isinstance(found, str):
        raise CheckpointError(
            f"The moving average in {path} cannot be used: {found}. Take weights last for the "
            "weights of the last step."
        )
    return {**state, **{name: value for name, value in found.items() if name in state}}, EMA
