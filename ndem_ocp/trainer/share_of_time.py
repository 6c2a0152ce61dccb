"""The share of a step's time that the second view takes, logged as ``ndem_share_of_time``."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_kit.training.resume.rng import generators_kept
from fairchem_kit.training.trainer import Trainer

NAME = "ndem_share_of_time"
_REPEATS = 2


def measure(trainer: Trainer, plain: Batch, both: Batch) -> None:
    """Measure once, in the first logged step after a start. Training is not affected."""
    costs = trainer.costs
    if NAME in costs.constants or not costs.is_printed():
        return
    with costs.clock.stopped(), generators_kept(trainer.device):
        trainer.optimizer.zero_grad()  # fairchem does it next anyway, and it frees memory
        try:
            share = second_view_share(
                trainer._unwrapped_model, plain, both, amp=trainer.scaler is not None
            )
        except torch.cuda.OutOfMemoryError:
            logging.info(f"Too little memory to measure {NAME}.")
            share = float("nan")  # loggers skip NaN; do not try again
    costs.constants[NAME] = share


def second_view_share(model: nn.Module, plain: Batch, both: Batch, amp: bool = False) -> float:
    """1 - (time of a plain pass) / (time of a pass over both views), forward and backward.

    Each pass is done twice on one batch, and the faster one counts. This costs about four passes in
    a whole run. The loss is the sum of all squared outputs, whose backward is the same as that of
    the real loss. Weights, gradients and buffers are unchanged afterwards; random numbers are
    drawn.

    Args:
        model: without DDP, in training mode.
        plain: the clean batch, on the model's device.
        both: the same batch with its second view.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        seconds = [
            min(_pass(model, batch, amp) for _ in range(_REPEATS)) for batch in (plain, both)
        ]
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    return 1.0 - seconds[0] / seconds[1]


def _pass(model: nn.Module, batch: Batch, amp: bool) -> float:
    """Time of one forward and backward, in seconds."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    batch = batch.clone()  # some models set requires_grad on positions
    cuda = batch.pos.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(batch.pos.device)
    began = time.perf_counter()
    with torch.autocast("cuda", enabled=amp):
        outputs = model(batch)
    loss = sum(tensor.float().square().sum() for tensor in _tensors(outputs))
    torch.autograd.grad(loss, weights, allow_unused=True)
    if cuda:
        torch.cuda.synchronize(batch.pos.device)
    return time.perf_counter() - began


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.requires_grad else []
    return [tensor for value in outputs.values() for tensor in _tensors(value)]
