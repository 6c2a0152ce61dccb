"""Everything that NDeM adds to a training step.

1. draw eps for (seed, rank, step) and attach it to the batch               ``before_forward``
2. one forward over X and X + eps; the main heads return outputs on X as usual
3. loss = fairchem's losses + coefficient * L_NDeM (Eq. 18)                 ``after_loss``
4. add the diagnostics to fairchem's metrics                                ``after_metrics``

What the model sees and how the loss is computed is defined by an objective, one class in
``ndem_ocp.method``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.evaluator import Evaluator
from fairchem.core.modules.loss import MSELoss
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.config import trains
from fairchem_kit.training.distributed import mean_over_ranks, rewrap
from fairchem_kit.training.losses import SquaredL2Loss
from ndem_ocp.method import Noise, Step, Tally, objective_of, step_generator, typical_scale
from ndem_ocp.models import AUXILIARY_OUTPUT
from ndem_ocp.models.objectives import auxiliary_modules, model_config
from ndem_ocp.second_views.source import ViewSource
from ndem_ocp.trainer import share_of_time
from ndem_ocp.trainer.config import (
    FORCES,
    SECOND_VIEWS_OF,
    check_auxiliary_head,
    check_config,
    curvature_problems,
    read_task,
)


class AuxiliaryTask(Component):
    """The component for ``task.ndem``: the second view, its loss, and its diagnostics.

    Attributes:
        settings: those in ``task.ndem``.
        objective: the objective that the settings choose.
        noise: the noise of this step; None in plain steps and outside training.
        coefficient: lambda_NDeM in this step.
        log: {metric: its two sums over all ranks} for this step.
    """

    name = "ndem"
    task_keys = ("ndem",)

    # ------------------------------------------------------------------ setting up

    def read(self) -> None:
        self.settings, self._auxiliary_head, self._view_file = read_task(self.config)
        check_config(self.config, self.settings)
        self.objective = objective_of(self.settings)
        self.views: ViewSource | None = None
        self.noise: Noise | None = None
        self.coefficient = 0.0
        self.log: dict[str, Tally] = {}
        self._not_in_ddp: list[torch.nn.Parameter] = []  # auxiliary parameters, until NDeM starts
        self._mean_over_ranks = mean_over_ranks()

    def problems(self) -> Iterator[str]:
        return curvature_problems(self.config, self.settings)

    def prepare(self, inference_only: bool) -> None:
        if not self.settings.active:
            return
        if self._view_file is not None and not inference_only and trains():
            data = self.config["dataset"]["src"]
            self.views = ViewSource(self._view_file, data, self.settings)
            self.config["task"]["ndem"][SECOND_VIEWS_OF] = self.views.provenance()
        model = model_config(self.objective, self.config["model"], self._auxiliary_head)
        check_auxiliary_head(model)
        self.config["model"] = model

    def after_model(self) -> None:
        if not self.settings.active or self.settings.start == 0:
            return
        prefixes = tuple(f"{name}." for name in auxiliary_modules(self.objective))
        self._not_in_ddp = [
            parameter
            for name, parameter in self.trainer._unwrapped_model.named_parameters()
            if name.startswith(prefixes) and parameter.requires_grad
        ]
        if self._not_in_ddp:
            self.trainer.model = rewrap(self.trainer.model, leave_out=self._not_in_ddp)

    def explain(self, error: Exception, path: str) -> Exception | None:
        if AUXILIARY_OUTPUT not in str(error) and "parameter group" not in str(error):
            return None
        return ConfigError(
            f"{path} and this configuration differ in the auxiliary head: one of them has none, or "
            "they have different ones. Use the task.ndem that the checkpoint was trained with; in "
            "validation and prediction the head costs nothing."
        )

    def noise_gain(self) -> float:
        """Output of the auxiliary head along eps, per Angstrom of noise."""
        return self.objective.head_sign * typical_scale(self.settings, self._force_rms)

    # ------------------------------------------------------------------ the forward

    def before_forward(self, call: Call) -> None:
        trainer = self.trainer
        self.noise = None
        self.coefficient = 0.0
        if self.settings.active and trainer.model.training:
            self.coefficient = self.settings.coefficient_at(trainer.step, self._total_steps())
        if self.coefficient == 0:
            return
        if self._not_in_ddp:
            trainer.model, self._not_in_ddp = rewrap(trainer.model), []
            call.trainer.model = trainer.model
        noise = self.draw(call.batch)  # eps of Eq. 11; while the batch is still on the CPU
        batch = call.batch.to(trainer.device)
        self.noise = noise.to(trainer.device)
        call.batch = self.objective.view(batch, self.noise)  # X with eps; the model adds them
        if self.objective.model != "plain":
            share_of_time.measure(trainer, batch, call.batch)
            target = {"level": "atom", "property": AUXILIARY_OUTPUT}
            call.trainer.output_targets = {**trainer.output_targets, AUXILIARY_OUTPUT: target}

    def draw(self, batch: Batch) -> Noise:
        """The noise of this step, which only depends on (seed, rank, step)."""
        seed = self.config["cmd"]["seed"] or 0
        generator = step_generator(seed, distutils.get_rank(), self.trainer.step)
        if self.views is not None:
            return self.views.draw(batch, generator, self._progress())
        return self.objective.draw(batch, generator, self._progress())

    def _total_steps(self) -> int:
        return int(self.config["optim"]["max_epochs"] * len(self.trainer.train_loader))

    def _progress(self) -> float:
        return self.trainer.step / self._total_steps()

    # ------------------------------------------------------------------ the loss

    def before_loss(self, call: Call) -> None:
        out = call.out
        # f'(X~) of Eq. 17, normalised, which fairchem would not know; f(X) stays in out
        self._auxiliary = out.pop(AUXILIARY_OUTPUT, None)
        self.log = {}
        if self.settings.ramp > 0 and self.trainer.model.training:
            self.log["ndem_coefficient"] = Tally(self.coefficient, 1)
        if self.noise is None:
            return
        self._shown = self.objective.labelled(call.batch, self.noise)
        self._step, self._out = self._step_of(call.batch, self._shown), out
        call.batch = self._shown
        call.out = self.objective.main_outputs(out, self._step)

    def after_loss(self, loss: Tensor) -> Tensor:
        if self.noise is None:
            return loss
        ndem = self.objective.loss(self._out, self._auxiliary, self._step)  # L_NDeM, Eq. 17
        total = loss
        if self._auxiliary is not None:
            weighted = self.coefficient * ndem.loss
            total = loss + weighted  # Eq. 18; loss is L_orig of Eq. 9
            value, weighted, whole = torch.stack([ndem.loss, weighted, total]).detach().tolist()
            self.log["ndem_loss"] = Tally(value, 1)
            self.log["ndem_share_of_loss"] = Tally(weighted, whole)
        self.log = sum_over_ranks(self.log | ndem.log, self.trainer.device)
        self._step = self._out = self._auxiliary = None  # frees the autograd graph of the step
        return total

    def _step_of(self, batch: Batch, shown: Batch) -> Step:
        """From the batch with the labels of X, and the one that the model saw."""
        trainer, noise = self.trainer, self.noise
        target = trainer.output_targets.get(FORCES)
        labelled = target is not None and batch.get(FORCES) is not None
        fixed = batch.get("fixed")
        if fixed is None or not (target or {}).get("train_on_free_atoms", True):
            counted = torch.ones_like(noise.moved)
        else:
            counted = fixed == 0
        return Step(
            batch=shown,
            noise=noise,
            label=self._normalised_label(FORCES, batch) if labelled else None,
            counted=counted,
            force_rms=self._force_rms,
            curvature_factor=getattr(trainer._unwrapped_model, "curvature_factor", None),
            mean=self._mean_over_ranks,
            weight=self.coefficient,
            progress=self._progress(),
            normalised=self._normalised_label,
            squared=self._squared_losses(),
        )

    def _normalised_label(self, name: str, batch: Batch) -> Tensor:
        """The label of an output as in fairchem's loss: minus references, normalised."""
        trainer, label = self.trainer, batch[name]
        if trainer.output_targets[name]["level"] != "atom":
            label = label.view(batch.natoms.numel(), -1)
        if name in trainer.elementrefs:
            label = trainer.elementrefs[name].dereference(label, batch)
        return trainer.normalizers[name].norm(label) if name in trainer.normalizers else label

    def _squared_losses(self) -> frozenset[str]:
        """Outputs whose loss is the square of the residual and not its norm."""
        return frozenset(
            name
            for name, loss in self.trainer.loss_functions
            if isinstance(loss["fn"].loss_fn, (MSELoss, SquaredL2Loss))
        )

    @cached_property
    def _force_rms(self) -> float:
        """rms_F of Eq. 10 in energy unit per Angstrom; read only once, because that waits for the
        GPU."""
        normalizer = self.trainer.normalizers.get(FORCES)
        return 1.0 if normalizer is None else float(normalizer.rmsd)

    # ------------------------------------------------------------------ metrics

    def before_metrics(self, call: Call) -> None:
        """Restrict fairchem's force metrics to atoms whose main force predicts the label."""
        if self.noise is None:
            return
        call.batch = self._shown
        hidden = self.objective.hidden(self.noise)
        if hidden is None:
            return
        targets = call.trainer.output_targets
        forces = targets[FORCES]
        fixed = call.batch.fixed
        call.batch = copy.copy(call.batch)
        if forces["eval_on_free_atoms"]:
            hidden = hidden | (fixed != 0)
        call.batch.fixed = hidden.to(fixed.dtype)  # fairchem leaves these out
        call.trainer.output_targets = {**targets, FORCES: {**forces, "eval_on_free_atoms": True}}

    def after_metrics(self, metrics: dict[str, Any], evaluator: Evaluator) -> None:
        for name, tally in self.log.items():
            if tally.weight:
                stat = {"total": tally.total, "numel": tally.weight}
                evaluator.update(name, stat, metrics)


def sum_over_ranks(log: dict[str, Tally], device: torch.device) -> dict[str, Tally]:
    """Sum over all ranks, in one communication. The keys must be the same on all ranks."""
    if distutils.get_world_size() == 1 or not log:
        return log
    sums = torch.tensor(list(log.values()), dtype=torch.float64, device=device)
    return {name: Tally(*pair) for name, pair in zip(log, distutils.all_reduce(sums).tolist())}
