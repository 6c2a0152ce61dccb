"""Choosing the weights of a checkpoint: the moving average, or those of the last step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairchem_kit.checkpoints import CheckpointError
from fairchem_kit.checkpoints.config import OLD_TARGETS
from fairchem_kit.checkpoints.ema import averaged
from fairchem_kit.commands.options import AUTO, EMA, KINDS, LAST

_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")  # DDP, torch.compile


def plain_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict without the prefixes of DDP, in its order."""
    return {_PREFIXES.sub("", str(name)): value for name, value in state.items()}


def plain_normalizers(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The normalizers of a checkpoint of any version under their current names, as fairchem loads
    them."""
    found = {}
    for name, state in (content.get("normalizers") or {}).items():
        state = {"rmsd" if key == "std" else key: value for key, value in state.items()}
        found[OLD_TARGETS.get(name, name)] = {k: torch.as_tensor(v) for k, v in state.items()}
    return found


def which_weights(content: Mapping[str, Any], weights: str, path: Any) -> str:
    """ "ema" or "last", from the request and what the checkpoint has.

    ``fairchem --mode validate`` uses the moving average of a ``checkpoint.pt``; fairchem's
    OCPCalculator uses the weights of its last step. Both use the average in a best checkpoint,
    which has nothing else.

    Args:
        content: of a checkpoint.
        weights: "auto" (the average if there is one), "ema" or "last".
        path: the file, for messages.

    Raises:
        CheckpointError: if these weights are not in the file.
    """
    if weights not in KINDS:
        raise CheckpointError(f"weights = {weights!r}: choose one of {', '.join(KINDS)}.")
    if _average_alone(content):
        if weights == LAST:
            raise CheckpointError(
                f"{path} only has the moving average (EMA), like all best checkpoints: use "
                "weights ema, or a checkpoint.pt of the run, which has both."
            )
        return EMA
    if not _has_average(content):
        if weights == EMA:
            raise CheckpointError(
                f"{path} has no moving average (EMA): its run had no optim.ema_decay, or it was "
                "left out. Use weights last or auto."
            )
        return LAST
    return EMA if weights == AUTO else weights


def _average_alone(content: Mapping[str, Any]) -> bool:
    """Whether the file has the average instead of the weights, as best checkpoints do."""
    if "weights" in content:  # recorded by this package
        return content["weights"] == EMA
    # fairchem does not record it, and an exported or otherwise reduced file looks the same
    config = content.get("config")
    optim = config.get("optim") if isinstance(config, Mapping) else None
    return (
        "optimizer" not in content
        and not _has_average(content)
        and isinstance(optim, Mapping)
        and bool(optim.get("ema_decay"))
    )


def _has_average(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("ema"), Mapping) and "shadow_params" in content["ema"]


def chosen_weights(
    content: Mapping[str, Any], model: nn.Module, weights: str, path: Any
) -> tuple[dict[str, Tensor], str]:
    """The chosen weights by name, and which they are.

    Args:
        content: of a checkpoint. model: its network, to distinguish parameters from buffers.
        weights: see :func:`which_weights`.
        path: the file, for messages.

    Returns:
        (state dict without wrappers' prefixes, "ema" or "last").

    Raises:
        CheckpointError: if these weights are not in the file, or its average belongs to another
            network.
    """
    which = which_weights(content, weights, path)
    state = plain_names(content["state_dict"])
    if which == LAST or _average_alone(content):
        return state, which
    ours = {name: name for name in model.state_dict() if name in state}
    found = averaged(content, state, ours, model)
    if isinstance(found, str):
        raise CheckpointError(
            f"The moving average in {path} cannot be used: {found}. Use weights last for the "
            "weights of the last step."
        )
    return {**state, **{name: value for name, value in found.items() if name in state}}, EMA
