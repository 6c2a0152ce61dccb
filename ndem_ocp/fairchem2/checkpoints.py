"""What a checkpoint holds beside fairchem's own: random states; and what one leaves out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_kit.errors import UserError
from ndem_ocp.fairchem2.heads import NOISY_FORCES

_AUXILIARY = f"output_heads.{NOISY_FORCES}."


def leave_out_auxiliary(path: str | Path) -> None:
    """Rewrite an inference checkpoint without the auxiliary head: it is the plain model's then,
    and fairchem loads it where this package is not installed.

    Args:
        path: a file that fairchem has just written; replaced at once or not at all.
    """
    path = Path(path)
    plain = torch.load(path, map_location="cpu", weights_only=False)
    for weights in (plain.model_state_dict, plain.ema_state_dict or {}):
        for name in [name for name in weights if _AUXILIARY in name]:
            del weights[name]
    beside = path.with_name(f".{path.name}.part")
    torch.save(plain, beside)
    os.replace(beside, path)


class OtherHeadError(UserError, ValueError):
    """A checkpoint and a configuration that differ in the auxiliary head."""


@contextlib.contextmanager
def other_auxiliary(folder: str | Path | None) -> Iterator[None]:
    """Say it where a checkpoint cannot be resumed because of its auxiliary head.

    Raises:
        OtherHeadError: in the place of torch's error.
    """
    try:
        yield
    except Exception as error:  # several kinds, by version of torch
        if NOISY_FORCES not in str(error):
            raise
        raise OtherHeadError(
            f"{folder} and this configuration differ in the auxiliary head: one of them is plain, "
            "or has another head. Resume with the ndem section that the checkpoint was trained "
            "with; to go on without it, start from its inference_ckpt.pt."
        ) from error


def save_random_state(folder: str | Path) -> None:
    """The state of this rank's random numbers, which fairchem does not keep: the frames of edges,
    the dropout of experts. A run that resumes then draws what the run would have drawn."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, _random_file(folder))


def load_random_state(folder: str | Path) -> bool:
    """Continue this rank's random numbers; False where the checkpoint has none of this rank."""
    path = _random_file(folder)
    if not path.is_file():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def _random_file(folder: str | Path) -> Path:
    return Path(folder) / f"random_state.{distutils.get_rank()}.pt"
