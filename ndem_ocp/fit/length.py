"""How long a fit trains: the time of a step is measured and the schedule fitted to --time."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fairchem_kit.launch.console import duration
from fairchem_kit.words import counted

_WARM, _LEAST, _MOST = 1, 2, 60  # steps; the first is slower
_SHARE = 0.05  # of the budget, for measuring
_VALIDATING = 0.15  # of the budget
_VALIDATIONS = (4, 25)
_SAVING_S = 0.3  # a checkpoint and its best copy, at each validation
_EPOCHS = 3000  # as configs/md17; more than anybody trains on few frames
_PATIENCE = 3  # a third of the run


@dataclass(frozen=True)
class Speed:
    """Seconds per training step, and per structure in validation.

    With ``threads`` of torch; ``slower``: seconds per step with torch's own number of threads, if
    that is another and slower.
    """

    step_s: float
    validation_s: float
    threads: int | None = None
    slower: float | None = None


@dataclass(frozen=True)
class Length:
    """Attributes:
    epochs, steps: of the run. train_frames, val_frames: how many are used, None for all.
    eval_every: steps. patience: validations. reason: a sentence.
    """

    epochs: int
    steps: int
    train_frames: int | None
    val_frames: int | None
    eval_every: int
    patience: int
    reason: str

    @property
    def ema_decay(self) -> float:
        """The moving average covers about the last twentieth of the run; at most 0.999."""
        return round(min(max(1 - 20 / self.steps, 0.9), 0.999), 4)


def choose_length(
    speed: Speed, minutes: float, train_frames: int, val_frames: int, batch_size: int
) -> Length:
    """Epochs that fit into ``minutes``; fewer frames if not even one epoch fits."""
    budget = 60.0 * minutes
    validation_s = speed.validation_s * val_frames
    used_val = None
    if validation_s * _VALIDATIONS[0] > budget * _VALIDATING:
        used_val = max(1, int(budget * _VALIDATING / _VALIDATIONS[0] / speed.validation_s))
        validation_s = speed.validation_s * used_val
        used_val = None if used_val >= val_frames else used_val
    fitting = int(budget * _VALIDATING / (validation_s + _SAVING_S))
    validations = max(_VALIDATIONS[0], min(_VALIDATIONS[1], fitting))
    left = budget - validations * (validation_s + _SAVING_S)
    possible = max(1, int(max(left, 0.5 * budget) / speed.step_s))
    per_epoch = math.ceil(train_frames / batch_size)
    used_train = None
    if possible < per_epoch:
        used_train = min(train_frames, possible * batch_size)
        per_epoch = math.ceil(used_train / batch_size)
    epochs = max(1, min(_EPOCHS, possible // per_epoch))
    steps = epochs * per_epoch
    eval_every = max(1, steps // validations)
    reason = (
        f"{counted(epochs, 'epoch')}, {counted(steps, 'step')} of {speed.step_s:.3g} s "
        f"(measured): {duration(steps * speed.step_s + validations * (validation_s + _SAVING_S))} "
        f"of the {minutes:g} min of --time; the learning rate reaches its final value "
        "at the last step"
    )
    if used_train is not None:
        reason += (
            f". An epoch of all {counted(train_frames, 'frame')} does not fit: {used_train:,} of "
            "them, drawn at random, are used once each. A longer --time uses more"
        )
    patience = max(_VALIDATIONS[0], validations // _PATIENCE)
    return Length(epochs, steps, used_train, used_val, eval_every, patience, reason)


def measure(config: Mapping[str, Any], cpu: bool, minutes: float) -> Speed:
    """Time some training steps of ``config`` and a validation batch; leaves no files.

    Plain steps are enough: the second views of a fit replace structures.
    """
    import ndem_ocp
    from fairchem_kit.training.build import trainer_of

    ndem_ocp.register()
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        trainer = trainer_of(
            {**config, "task": {"ndem": {"coefficient": 0}}},
            identifier="speed",
            timestamp_id="speed",
            seed=0,
            cpu=cpu,
            print_every=10**9,
            is_debug=True,  # no folders, no files, no logger
        )
        return _fastest(trainer, _SHARE * 60.0 * minutes)
    finally:
        logging.disable(disabled)


def _fastest(trainer: Any, limit_s: float) -> Speed:
    """The speed with as many threads as torch takes by itself, or with one if that is faster.

    The small models of a fit have small tensors. Beside another program the threads of a step may
    have to wait for each other longer than they work.
    """
    usual = torch.get_num_threads()
    if trainer.device.type == "cuda" or usual == 1 or "OMP_NUM_THREADS" in os.environ:
        return _speed(trainer, limit_s)
    many = _speed(trainer, limit_s / 2)
    torch.set_num_threads(1)
    try:
        one = _speed(trainer, limit_s / 2)
    finally:
        torch.set_num_threads(usual)
    if one.step_s < many.step_s:
        return replace(one, threads=1, slower=many.step_s)
    return replace(many, threads=usual)


def _speed(trainer: Any, limit_s: float) -> Speed:
    size = trainer.config["optim"]["batch_size"]
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _WARM + _LEAST or (
        len(times) < _WARM + _MOST and time.perf_counter() - began < limit_s
    ):
        trainer.step += 1
        start = time.perf_counter()
        _step(trainer, _batch(trainer, trainer.train_dataset, len(times) * size, size))
        times.append(time.perf_counter() - start)
    timed = times[_WARM:]
    return Speed(sum(timed) / len(timed), _validation_time(trainer))


def _step(trainer: Any, batch: Any) -> None:
    trainer.model.train()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    trainer._compute_metrics(out, batch, trainer.evaluator, {})
    trainer._backward(loss)
    _wait(trainer)


def _validation_time(trainer: Any) -> float:
    """Seconds per structure in validation."""
    size = min(trainer.config["optim"]["eval_batch_size"], len(trainer.val_dataset))
    trainer.model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        batch = _batch(trainer, trainer.val_dataset, 0, size)
        out = trainer._forward(batch)
        trainer._compute_metrics(out, batch, trainer.evaluator, {})
    _wait(trainer)
    return (time.perf_counter() - start) / size


def _batch(trainer: Any, dataset: Any, first: int, size: int) -> Any:
    rows = [dataset[(first + i) % len(dataset)] for i in range(size)]
    return trainer.collater(rows).to(trainer.device)


def _wait(trainer: Any) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
