"""The moving average in a checkpoint of fairchem, which lists weights by position, not by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fairchem_kit.words import counted


def averaged(
    content: Mapping[str, Any],
    state: Mapping[str, Tensor],
    ours: Mapping[str, str],
    model: nn.Module,
) -> dict[str, Tensor] | str:
    """Averaged weights by their name in the checkpoint, or why they cannot be assigned.

    Checkpoints of this package contain the names (``ema.names``). In those of fairchem the averages
    are in the order of the trained weights, which are mixed with buffers in ``state``.

    Args:
        content: a checkpoint with ``ema``.
        state: its weights, by name without wrappers' prefixes, in their order.
        ours: name in the checkpoint -> name in the model, of weights in both. model: to know which
            of these are trained.
    """
    ema = content["ema"]
    shadows, names = list(ema["shadow_params"]), ema.get("names")
    if names is not None:
        if len(names) != len(shadows):
            entries = counted(len(names), "entry", "entries")
            return f"ema.names has {entries}, the average {len(shadows)}"
        return dict(zip(names, shadows))
    trained = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    known: dict[str, bool] = {}
    for name in state:
        mine = ours.get(name)
        if mine in trained:
            known[name] = True
        elif mine in buffers:
            known[name] = False
    frozen = {name: value for name, value in known.items() if not value}
    for roles in (known, frozen):  # the second: some weights may have been frozen
        names = _aligned(state, shadows, roles)
        if names is not None:
            return dict(zip(names, shadows))
    return "its weights cannot be identified by shape and order"


def _aligned(
    state: Mapping[str, Tensor], shadows: list[Tensor], known: Mapping[str, bool]
) -> list[str] | None:
    """Names of the shadows in order, if exactly one assignment fits the shapes and ``known``."""
    # For every number of shadows used so far: (ways to get there, the last name, the step before).
    paths: dict[int, tuple[int, Any]] = {0: (1, None)}
    for name, value in state.items():
        reached: dict[int, tuple[int, Any]] = {}
        for used, (ways, path) in paths.items():
            moves = []
            if known.get(name) is not True:
                moves.append((used, path))
            fits = used < len(shadows) and shadows[used].shape == value.shape
            if known.get(name) is not False and fits and value.is_floating_point():
                moves.append((used + 1, (name, path)))
            for place, new in moves:
                before = reached.get(place, (0, None))[0]
                reached[place] = (before + ways, new)
        paths = reached
    ways, path = paths.get(len(shadows), (0, None))
    if ways != 1:
        return None
    names = []
    while path is not None:
        name, path = path
        names.append(name)
    return names[::-1]
