"""The training unit: fairchem's, plus a second view in each step, with all losses logged.

Everything that NDeM adds to a training step:

1. draw eps for (seed, data-parallel rank, step) and attach it to the batch     ``train_step``
2. one DDP forward over X and X + eps; main heads return outputs on X as usual   ``TwoViewHydra``
3. an additional task, whose loss is coefficient * L_NDeM (Eq. 18)              ``objectives``
4. its diagnostics in W&B and history.jsonl                                     ``StepLog``

Evaluation, saved tasks and inference checkpoints are those of the plain unit.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.common.distutils import get_device_for_local_rank
from fairchem.core.datasets.atomic_data import AtomicData
from fairchem.core.units.mlip_unit.mlip_unit import (
    UNIT_INFERENCE_CHECKPOINT,
    MLIPTrainEvalUnit,
    Task,
    filter_inference_only_tasks,
)
from torchtnt.framework import State

from ndem_ocp.fairchem2.checkpoints import (
    leave_out_auxiliary,
    other_auxiliary,
    random_state,
    save_random_state,
    saved_random_state,
    set_random_state,
)
from ndem_ocp.fairchem2.idle_parameters import IdleParameters
from ndem_ocp.fairchem2.log import StepLog
from ndem_ocp.fairchem2.model import add_second_view, heads_are_new
from ndem_ocp.fairchem2.objectives import (
    Beside,
    Instead,
    Now,
    Objective,
    logged,
    restricted,
    with_forces,
)
from ndem_ocp.fairchem2.references import check_references
from ndem_ocp.fairchem2.second_views import AseViewSource
from ndem_ocp.fairchem2.section import check_host, forces_tasks, read_section, refusals
from ndem_ocp.method import Noise, draw_noise, step_generator, with_first_order_labels


class NDeMTrainEvalUnit(MLIPTrainEvalUnit):
    """Trains a hydra model of fairchem 2 with NDeM.

    Takes the arguments of ``MLIPTrainEvalUnit``, and:

    Args:
        ndem: the settings (:class:`ndem_ocp.method.NDeMSettings`) and ``auxiliary_head``,
            ``second_views``, ``check_references``. With ``coefficient: 0``, or without ``ndem``,
            it trains exactly as the plain unit.

    Raises:
        SystemExit: status 2 and one sentence, if it cannot train with these settings or data.
    """

    def __init__(
        self,
        job_config: Any,
        model: torch.nn.Module,
        optimizer_fn: Callable[..., torch.optim.Optimizer],
        cosine_lr_scheduler_fn: Callable[..., Any],
        tasks: Sequence[Task],
        ndem: Any = None,
        **host: Any,
    ) -> None:
        with refusals():
            section = read_section(ndem)
            settings, trained = section.settings, filter_inference_only_tasks(tasks)
            if settings.active:
                check_host(settings, model, trained, host)
                if not settings.instead:
                    names = [task.name for task in forces_tasks(trained)]
                    model = add_second_view(model, settings, section.auxiliary_head, names)
        super().__init__(
            job_config, model, optimizer_fn, cosine_lr_scheduler_fn, list(tasks), **host
        )
        self.section, self.settings = section, settings
        self._plain_tasks = self.tasks = logged(self.tasks)
        self._objective = self._made_objective(model) if settings.active else None
        self._idle = IdleParameters(self.optimizer, getattr(model, "auxiliary", []))
        self._idle.keep_from_decay(getattr(model, "log_curvature", None))
        self._views: AseViewSource | None = None
        # A checkpoint's random state, until the next step, which draws from it. (Before that step,
        # starting a data loader draws a number, and fairchem writes the checkpoint again.)
        self._resumed_random: dict[str, torch.Tensor] | None = None
        self._noisy = False  # whether the last step had second views
        self._total_steps = 1
        folder = getattr(getattr(job_config, "metadata", None), "log_dir", None)
        # On all ranks, because diagnostics are summed over them; only one writes the file.
        self.logger = StepLog(
            folder if distutils.is_master() else None, self.logger, self._additional_quantities
        )
        self._say_heads(model)

    def _made_objective(self, model: torch.nn.Module) -> Objective:
        if self.settings.instead:
            return Instead(self.settings, self._plain_tasks)
        return Beside(self.settings, self._plain_tasks, model)

    def _say_heads(self, model: torch.nn.Module) -> None:
        new = heads_are_new(model)
        if new is not None:
            logging.info(
                "ndem: the main heads are new and start from random weights (model.heads is set)."
                if new
                else "ndem: the main heads are the checkpoint's (model.heads is not set)."
            )

    def on_train_start(self, state: State) -> None:
        self._total_steps = total_steps(state)
        super().on_train_start(state)
        done = self.train_progress.num_steps_completed
        dataset = state.train_state.dataloader.dataset
        with refusals():
            if self.section.second_views is not None and self.settings.active:
                path = self.section.second_views
                self._views = AseViewSource(path, dataset, self.settings)
                logging.info("ndem: second views of %s", self._views.provenance())
            if done == 0 and self.section.check_references:
                check_references(dataset, self._plain_tasks)
        if done:
            self.logger.resumed(done)

    def train_step(self, state: State, data: AtomicData) -> None:
        if self._resumed_random is not None:
            set_random_state(self._resumed_random)
            self._resumed_random = None
        done = self.train_progress.num_steps_completed
        weight = self.settings.coefficient_at(done + 1, self._total_steps)
        self._noisy = weight > 0
        self.tasks = self._plain_tasks
        for task in self._plain_tasks:
            task.loss_fn.weight = None
        if self._noisy:
            assert self._objective is not None
            now = Now(weight, done / self._total_steps)
            with refusals():
                noise = self._draw(data, done + 1, now.progress)
            device = torch.device(get_device_for_local_rank())
            self._objective.prepare(data.to(device), noise.to(device), now)
            self.tasks = self._objective.tasks
        before = self.settings.coefficient_at(done, self._total_steps) if done else 0.0
        self._idle.set(idle=not self._noisy, starts=self._noisy and before == 0)
        super().train_step(state, data)
        self._say_step(done)

    def _draw(self, data: AtomicData, step: int, progress: float) -> Noise:
        """The noise of a step, on the CPU, which only depends on (seed, data-parallel rank, step).

        Ranks of a graph-parallel group share a batch and therefore have the same noise.
        """
        rank = gp_utils.get_dp_rank() if gp_utils.initialized() else distutils.get_rank()
        generator = step_generator(self.job_config.seed or 0, rank, step)
        if self._views is not None:
            noise = self._views.draw(data, generator, progress)
        else:
            count = data.natoms.numel()
            noise = draw_noise(
                data.pos, data.batch, count, data.fixed, self.settings, generator, progress
            )
            if self.settings.instead:
                noise = with_first_order_labels(noise, count)
        known = with_forces(data, forces_tasks(self._plain_tasks))
        return restricted(noise, known, data.batch)

    def _additional_quantities(self, total: float) -> dict[str, float]:
        """Quantities that fairchem does not log: each loss separately, and NDeM's diagnostics."""
        losses = {k: v for task in self._plain_tasks for k, v in task.loss_fn.log().items()}
        return losses | self._diagnostics(total)

    def _diagnostics(self, total: float | None) -> dict[str, float]:
        if not self._noisy:
            return {}
        assert self._objective is not None
        found = self._objective.log(total, torch.device(get_device_for_local_rank()))
        if self.settings.ramp > 0:
            done = self.train_progress.num_steps_completed
            found["ndem_coefficient"] = self.settings.coefficient_at(done + 1, self._total_steps)
        return found

    def _say_step(self, step: int) -> None:
        if distutils.is_master() and step % self.print_every == 0:
            logging.info({"train/step": step, **self.logger.last})

    def state_dict(self) -> dict[str, Any]:
        self._idle.complete()
        return super().state_dict()

    def save_state(self, checkpoint_location: str) -> None:
        super().save_state(checkpoint_location)
        save_random_state(checkpoint_location, self._resumed_random or random_state())
        path = os.path.join(checkpoint_location, UNIT_INFERENCE_CHECKPOINT)
        if self.save_inference_ckpt and distutils.is_master() and self._idle.auxiliary:
            leave_out_auxiliary(path)

    def _execute_load_state(self, checkpoint_location: str | None) -> None:
        with refusals(), other_auxiliary(checkpoint_location):
            super()._execute_load_state(checkpoint_location)
        if checkpoint_location is not None:
            self._resumed_random = saved_random_state(checkpoint_location)
            if self._resumed_random is None:
                logging.info("ndem: %s has no random state of this rank.", checkpoint_location)


def total_steps(state: State) -> int:
    """The length of training in steps: the smaller of max_steps and max_epochs."""
    train = state.train_state
    limits = [train.max_steps or math.inf]
    if train.max_epochs:
        limits.append(train.max_epochs * len(train.dataloader))
    steps = min(limits)
    return 1 if math.isinf(steps) else max(1, int(steps))
