"""The console of ``ndem train``: a line with fixed columns per report, and a bar with time left.

The trainer logs through ``Shown`` without knowing it. fairchem's own lines are hidden;
``--verbose`` shows them instead of these.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from fairchem_kit.units.columns import Column, columns_of

_OURS = tuple(f"{os.sep}{package}{os.sep}" for package in ("ndem_ocp", "fairchem_kit"))
_NOISE = (
    "Disabled BalancedBatchSampler because num_replicas=1",  # in every run with one process
    "Overwritten config parameters from included configs",  # what includes are for
)
_HEAD_EVERY = 40  # lines


class Console:
    """The lines and the bar of one run.

    Args:
        outputs: section of the configuration, with the units. total: steps of the run.
        print_every: steps between two lines of training.
        primary: the metric that decides which validation is the best so far.
    """

    def __init__(
        self,
        outputs: Mapping[str, Any],
        total: int,
        print_every: int,
        primary: str = "forces_mae",
    ) -> None:
        self.columns = [c for c in columns_of(outputs) if c.metric.endswith("_mae")]
        self.total, self.print_every = total, print_every
        self.primary, self._best = primary, float("nan")
        self._costs: Mapping[str, Any] = {}
        self._began: tuple[int, float] | None = None
        self._lines = 0
        self._bar: tqdm[Any] | None = None

    def show(self, metrics: Mapping[str, Any], step: int, split: str) -> None:
        """Receive metrics from the trainer, and print them when due."""
        if split != "train":
            self._line(split, step, metrics, self._better(metrics) if split == "val" else "")
            return
        if "s_per_step" in metrics:
            self._costs = metrics
        if "lr" not in metrics:  # costs of the step, or another part of its metrics
            return
        self._move(step)
        if step % self.print_every == 0:
            self._line("train", step, {**self._costs, **metrics}, self._left(step))
            self._costs = {}

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _move(self, step: int) -> None:
        if self._began is None:
            self._began = (step - 1, time.monotonic())
            self._bar = tqdm(
                total=self.total,
                initial=step - 1,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),
                leave=False,
            )
        if self._bar is not None and not self._bar.disable:
            self._bar.update(step - self._bar.n)

    def _left(self, step: int) -> str:
        """Time to the last step, from the wall time of the steps since this start."""
        first, began = self._began or (step, time.monotonic())
        seconds = (time.monotonic() - began) / max(step - first, 1) * (self.total - step)
        return f"{duration(seconds)} left"

    def _better(self, metrics: Mapping[str, Any]) -> str:
        value = float(metrics.get(self.primary, "nan"))
        higher = "mae" not in self.primary  # fairchem's rule
        if value != value or (value <= self._best if higher else value >= self._best):
            return ""
        self._best = value
        return "best so far"

    def _line(self, split: str, step: int, metrics: Mapping[str, Any], note: str) -> None:
        if self._lines % _HEAD_EVERY == 0:
            say(self._head())
        self._lines += 1
        cells = [
            f"{split:<9}",
            f"{step:>8}",
            _cell(metrics.get("epoch"), 8, "{:.2f}"),
            _cell(metrics.get("loss"), 10, "{:.4g}"),
            *(self._value(column, metrics) for column in self.columns),
            _cell(metrics.get("lr"), 9, "{:.2e}"),
            _cell(metrics.get("s_per_step"), 8, "{:.3f}"),
            f" {note}",
        ]
        say("".join(cells).rstrip())

    def _value(self, column: Column, metrics: Mapping[str, Any]) -> str:
        value = metrics.get(column.metric)
        value = None if value is None else float(value) * column.factor
        return _cell(value, len(column.heading) + 2, f"{{:.{column.digits}f}}")

    def _head(self) -> str:
        names = "".join(f"{c.heading:>{len(c.heading) + 2}}" for c in self.columns)
        return f"{'':<9}{'step':>8}{'epoch':>8}{'loss':>10}{names}{'lr':>9}{'s/step':>8}"


def _cell(value: Any, width: int, form: str) -> str:
    number = math.nan if value is None else float(value)
    return f"{'' if math.isnan(number) else form.format(number):>{width}}"  # nan: undefined


class Shown:
    """Passes everything on to ``logger``, and metrics to ``console`` too."""

    def __init__(self, logger: Any, console: Console) -> None:
        self._logger, self._console = logger, console

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        self._logger.log(update_dict, step=step, split=split)
        self._console.show(update_dict, step, split)


@contextlib.contextmanager
def shown(trainer: Any) -> Iterator[None]:
    """Context in which metrics logged by ``trainer`` are printed, if it has a logger."""
    if trainer.logger is None:
        yield
        return
    steps = len(trainer.train_loader) * trainer.config["optim"]["max_epochs"]
    metrics = trainer.config.get("evaluation_metrics") or {}
    console = Console(
        trainer.config.get("outputs") or {},
        int(steps),
        trainer.config["cmd"]["print_every"],
        metrics.get("primary_metric") or "forces_mae",
    )
    logger, trainer.logger = trainer.logger, Shown(trainer.logger, console)
    try:
        yield
    finally:
        trainer.logger = logger
        console.close()


def say(text: str, to_stderr: bool = False) -> None:
    """Print a line above the progress bar, if there is one."""
    file = sys.stderr if to_stderr else sys.stdout
    tqdm.write(text, file=file)
    file.flush()


def duration(seconds: float) -> str:
    """45 s, 3:05 min, 2:10 h."""
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class _Handler(logging.Handler):
    """Prints this package's messages, and warnings from any package, as short lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            serious = record.levelno >= logging.WARNING
            if any(words in text for words in _NOISE) or not (
                serious or any(part in record.pathname for part in _OURS)
            ):
                return
            if record.exc_info and record.exc_info[0] is not None:
                text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            say(f"{record.levelname.lower()}: {text}" if serious else text, serious)
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def short_messages() -> Iterator[None]:
    """Context in which fairchem's long lines are hidden; warnings and errors are shown."""
    from fairchem.core.common.utils import setup_logging

    setup_logging()
    root = logging.getLogger()
    before = list(root.handlers)
    # only fairchem's own two handlers; those of the calling program do not change
    root.handlers = [handler for handler in before if type(handler) is not logging.StreamHandler]
    root.addHandler(_Handler())
    try:
        with warnings.catch_warnings():
            # TorchMD-NET's last layer under DDP: one more copy, which the user cannot change
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield
    finally:
        root.handlers = before
