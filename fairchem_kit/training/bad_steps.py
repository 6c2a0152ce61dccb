"""Skip, report and count steps whose loss, outputs or gradient are not finite.

A single such step would permanently spoil the weights, the optimizer's moments and the moving
average. The ranks agree before the backward pass, so that all of them skip the step and none waits.

    task:
      max_bad_steps: 10     # stop after this many in a row
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.errors import UserError
from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.resume.settings import RunSettings
from fairchem_kit.words import counted

FILE_NAME = "skipped_steps.jsonl"
_SHOWN = 8


class BadStepsError(UserError, RuntimeError):
    """Too many steps in a row were not finite. The message names samples and checkpoint."""


class BadSteps(Component):
    """Skips and counts such steps; adds a line for each to ``skipped_steps.jsonl`` in the logs.

    Attributes:
        limit: number of such steps in a row after which the run stops.
        total: number since the run was started or resumed.
    """

    name = "bad_steps"
    task_keys = ("max_bad_steps",)

    def read(self) -> None:
        self.limit = RunSettings.from_task(self.config["task"]).max_bad_steps
        self.path = Path(self.config["cmd"]["logs_dir"]) / FILE_NAME
        self.in_a_row = 0
        self.total = 0
        self._batch: Batch | None = None
        self._out: dict[str, Tensor] = {}
        self._gradient_step: int | None = None
        self._bad_here = False

    def after_optimizer(self) -> None:
        skip_infinite_gradients(self.trainer.optimizer, self._bad_gradient)

    def before_loss(self, call: Call) -> None:
        if self.trainer.model.training:
            self.look_at(call.batch, call.out)

    def vote(self, loss: Tensor) -> bool:
        good = bool(torch.isfinite(loss.detach())) and self.outputs_are_finite()
        self._bad_here = not good
        return self._bad_here

    def voted(self, ranks: int) -> bool:
        """Skip the step if any rank found something that is not finite.

        Raises:
            BadStepsError: on every rank, if there were too many such steps in a row.
        """
        if not ranks:
            self._scale = self._amp_scale()
            return True
        self.trainer.metrics = {}  # means since the last log line include the bad values
        ids = self._ids(self._bad_graphs()) if self._bad_here else []
        self._count(self.trainer.step, "loss or outputs", ids)
        return False

    def after_backward(self, taken: bool) -> None:
        if not taken:
            return
        # AMP's scaler also skips steps while it adjusts its scale; a scale below 1 means it fails.
        if self._amp_scale() < min(self._scale, 1.0):
            self._bad_gradient()
        if self._gradient_step is None:
            self.in_a_row = 0
            self._forget()
        else:
            step, self._gradient_step = self._gradient_step, None
            # Gradients are averaged over the ranks, so each rank reports its own structures.
            self._count(step, "gradient", self._ids(None))

    def _amp_scale(self) -> float:
        return self.trainer.scaler.get_scale() if self.trainer.scaler else 0.0

    def look_at(self, batch: Batch, out: Mapping[str, Tensor]) -> None:
        """Keep a step's structures and outputs until the step is known to be finite."""
        self._batch = batch
        self._out = {name: value.detach() for name, value in out.items()}

    def outputs_are_finite(self) -> bool:
        """Whether all outputs are finite. (fairchem's loss replaces other values by zero.)"""
        checks = [torch.isfinite(value).all() for value in self._out.values()]
        return bool(torch.stack(checks).all()) if checks else True

    def _bad_gradient(self) -> None:
        """Record that the gradient of this step was not finite and that the step was skipped."""
        self._gradient_step = self.trainer.step

    def _count(self, step: int, what: str, ids: list[str]) -> None:
        self.in_a_row += 1
        self.total += 1
        self._forget()
        everyone = distutils.gather_objects(ids)
        if distutils.is_master():
            named = {f"rank {rank}": found for rank, found in enumerate(everyone) if found}
            self._log(step, what, named)
        if self.in_a_row >= self.limit:
            raise BadStepsError(
                f"{counted(self.in_a_row, 'step')} in a row, up to step {step}, were not finite "
                f"({what}) and were skipped. The weights are those of step "
                f"{step - self.in_a_row}; the last good checkpoint is in "
                f"{self.config['cmd']['checkpoint_dir']}. Samples: "
                f"{self.path}; check them with `ndem data check`, lower optim.lr_initial, or "
                "raise task.max_bad_steps."
            )

    def _log(self, step: int, what: str, named: dict[str, list[str]]) -> None:
        shown = "; ".join(
            f"{rank}: {', '.join(ids[:_SHOWN])}{' ...' if len(ids) > _SHOWN else ''}"
            for rank, ids in named.items()
        )
        logging.warning(
            f"Step {step} is skipped on every rank: its {what} are not finite "
            f"({self.in_a_row} of at most {self.limit} in a row). Samples: {shown or 'unknown'}."
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "what": what, "samples": named}) + "\n")
        except OSError as error:  # training continues; the log line above says the same
            logging.error(f"{self.path} could not be written ({error}).")
        if self.trainer.logger is not None:
            self.trainer.logger.log({"skipped_steps": self.total}, step=step, split="train")

    def _bad_graphs(self) -> Tensor | None:
        """Which graphs have an output or label that is not finite; None if this is unknown."""
        batch = self._batch
        if batch is None:
            return None
        count = batch.natoms.numel()
        graph_of_atom = torch.repeat_interleave(
            torch.arange(count, device=batch.natoms.device), batch.natoms
        )
        bad = torch.zeros(count, dtype=torch.bool, device=graph_of_atom.device)
        labels = [batch[key] for key in batch.keys() if torch.is_tensor(batch[key])]  # noqa: SIM118
        for value in (*self._out.values(), *labels):
            if not value.is_floating_point() or value.dim() == 0:
                continue
            broken = ~torch.isfinite(value).reshape(len(value), -1).all(dim=1)
            if len(value) == len(graph_of_atom):
                bad[graph_of_atom[broken]] = True
            elif len(value) == count:
                bad |= broken
        return bad if bool(bad.any()) else None

    def _ids(self, which: Tensor | None) -> list[str]:
        """``sid_fid`` of graphs in this rank's batch; of all graphs if ``which`` is None."""
        batch = self._batch
        if batch is None:
            return []
        count = batch.natoms.numel()
        chosen = range(count) if which is None else which.nonzero().flatten().tolist()
        columns = [_values(batch.get(key)) for key in ("sid", "fid")]
        known = [column for column in columns if column is not None and len(column) == count]
        return ["_".join(str(c[i]) for c in known) or f"structure {i} of the batch" for i in chosen]

    def _forget(self) -> None:
        self._batch, self._out = None, {}


def _values(column: Any) -> list[Any] | None:
    if column is None:
        return None
    return column.flatten().tolist() if torch.is_tensor(column) else list(column)


def skip_infinite_gradients(optimizer: torch.optim.Optimizer, tell: Callable[[], None]) -> None:
    """Make ``optimizer.step()`` do nothing but call ``tell`` if a gradient is not finite.

    At this point gradients are the same on all ranks, so all ranks decide alike. An AMP scaler has
    checked gradients already: it does not call the step, or tells a fused optimizer to do nothing.
    """

    def look(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if getattr(opt, "found_inf", None) is not None:
            return
        gradients = [p.grad for group in opt.param_groups for p in group["params"]]
        found = [gradient for gradient in gradients if gradient is not None]
        if found and not bool(torch.stack(torch._foreach_norm(found)).isfinite().all()):
            opt.zero_grad(set_to_none=True)  # parameters without gradient are not updated
            tell()

    optimizer.register_step_pre_hook(look)
