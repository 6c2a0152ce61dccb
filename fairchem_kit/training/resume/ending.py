"""The component that ends a run between two steps: on request, early, or after the last one."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor

from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.resume.content import FinishedStep
from fairchem_kit.training.resume.rng import rng_state, set_rng_state
from fairchem_kit.training.resume.stopping import Stopped, stop_requested


class EndedEarly(BaseException):
    """Leaves fairchem's loop. Not an ``Exception``, so that error handlers do not catch it."""


class Ending(Component):
    """Stops all ranks after the same step; ``Resume`` saves it.

    Attributes:
        ended: the step after its optimizer step, while validation and schedule may still follow;
            None between steps.
    """

    name = "ending"

    def read(self) -> None:
        self.ended: FinishedStep | None = None
        self._stop: str | None = None
        self._before_validation: dict[str, Any] | None = None  # random states, while one is running

    @property
    def validating(self) -> bool:
        """Whether a validation is running during training."""
        return self._before_validation is not None

    def vote(self, loss: Tensor) -> bool:
        return stop_requested() is not None

    def voted(self, ranks: int) -> bool:
        self._stop = (stop_requested() or "requested on another rank") if ranks else None
        self.ended = FinishedStep.now(self.trainer)
        return True

    def between_steps(self, last: bool) -> None:
        """Save and leave if a stop was requested; the step is complete."""
        if self.ended is None:
            return
        at, self.ended = self.ended, None
        if self._stop is not None:
            self._leave(at)
        early = self.trainer.reason_to_end()
        if (last or early) and not self.trainer.is_debug:
            self.trainer.resume.write(at)  # even if the run is shorter than checkpoint_every
        if early and not last:
            self.trainer.step, self.trainer.epoch = at
            if distutils.is_master():
                logging.info(f"{early}: ending after step {at.step}.")
            raise EndedEarly

    def before_validation(self) -> None:
        if self.trainer.in_training:
            self._before_validation = rng_state(self.trainer.device)

    def validation_ended(self) -> None:
        self._before_validation = None

    def before_forward(self, call: Call) -> None:
        """Stop within a validation, which may last longer than a job scheduler waits."""
        if not self.validating:
            return
        reason = stop_requested()
        asked = torch.tensor([int(reason is not None)], device=self.trainer.device)
        if not distutils.all_reduce(asked).item() or self.ended is None:
            return
        self._stop = reason or "requested on another rank"
        if self.trainer.ema:
            self.trainer.ema.restore()
        set_rng_state(self._before_validation, self.trainer.device)
        self._leave(self.ended, {"evaluate": True})

    def _leave(self, at: FinishedStep, tail: dict[str, Any] | None = None) -> None:
        trainer, reason = self.trainer, self._stop or "stop"
        trainer.step, trainer.epoch = at
        if not trainer.is_debug:
            trainer.resume.write(at, None, tail)
        if trainer.logger is not None:
            trainer.logger.mark_preempting()
        if distutils.is_master():
            logging.info(f"Stopping after step {at.step}, which is saved: {reason}.")
        raise Stopped(reason, at.step)
