"""Checkpoints: random states are added; inference checkpoints have no auxiliary head."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_kit.errors import UserError
from ndem_ocp.fairchem2.heads import AUXILIARY_OUTPUT

_AUXILIARY = f"output_heads.{AUXILIARY_OUTPUT}."


def leave_out_auxiliary(path: str | Path) -> None:
    """Rewrite an inference checkpoint without the auxiliary head.

    It then contains the plain model, which fairchem can load without this package.

    Args:
        path: a file that fairchem has just written; it is replaced atomically.
    """
    path = Path(path)
    plain = torch.load(path, map_location="cpu", weights_only=False)
    for weights in (plain.model_state_dict, plain.ema_state_dict or {}):
        for name in [name for name in weights if _AUXILIARY in name]:
            del weights[name]
    temporary = path.with_name(f".{path.name}.part")
    torch.save(plain, temporary)
    os.replace(temporary, path)


class OtherHeadError(UserError, ValueError):
    """A checkpoint and a configuration that differ in the auxiliary head."""


@contextlib.contextmanager
def other_auxiliary(folder: str | Path | None) -> Iterator[None]:
    """Explain it if a checkpoint cannot be resumed because of its auxiliary head.

    Raises:
        OtherHeadError: instead of torch's error.
    """
    try:
        yield
    except Exception as error:  # of several kinds, depending on torch's version
        if AUXILIARY_OUTPUT not in str(error):
            raise
        raise OtherHeadError(
            f"{folder} and this configuration differ in the auxiliary head: one of them has none, "
            "or they have different ones. Resume with the ndem section that the checkpoint was "
            "trained with; to continue without the head, start from its inference_ckpt.pt."
        ) from error


def random_state() -> dict[str, torch.Tensor]:
    """The state of this rank's random number generators, which fairchem does not save.

    They determine the random frames of edges and the dropout of experts, so that a resumed run
    draws the same numbers as an uninterrupted one.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Continue from a state of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save_random_state(folder: str | Path, state: dict[str, torch.Tensor]) -> None:
    """Write this rank's random state into a checkpoint."""
    torch.save(state, _random_file(folder))


def saved_random_state(folder: str | Path) -> dict[str, torch.Tensor] | None:
    """This rank's random state in a checkpoint; None if it has none."""
    path = _random_file(folder)
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def _random_file(folder: str | Path) -> Path:
    return Path(folder) / f"random_state.{distutils.get_rank()}.pt"
