"""Batches without free atoms, on one rank or all, in training or validation.

fairchem fails on them: losses and metrics with "cannot reshape tensor of 0 elements", metrics also
with a division by zero; and an error on one rank ends the run on all. The mean over the atoms of
all ranks is well defined if any rank has free atoms, so a rank without free atoms contributes none.
If no rank has any, force losses are zero and force metrics NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.evaluator import Evaluator
from fairchem.core.modules.loss import DDPLoss
from torch import Tensor, nn

from fairchem_kit.training.component import Call, Component

THRESHOLD = "energy_forces_within_threshold"


class NoFreeAtoms(Component):
    """Lets a batch in which all atoms are fixed contribute no atoms to losses and metrics."""

    def before_loss(self, call: Call) -> None:
        empty = self._over_all_atoms(call, "train_on_free_atoms")
        if empty:
            call.trainer.loss_functions = [
                (name, {**loss, "fn": EmptyLoss(loss["fn"])} if name in empty else loss)
                for name, loss in call.trainer.loss_functions
            ]

    def before_metrics(self, call: Call) -> None:
        empty = self._over_all_atoms(call, "eval_on_free_atoms")
        call.evaluator = NoFreeAtomsEvaluator(call.evaluator, empty)

    def _over_all_atoms(self, call: Call, restricted: str) -> set[str]:
        """The outputs for which this batch has no free atoms.

        Because fairchem cannot reshape an empty selection, it uses all atoms for these outputs in
        this call, and the result is then counted as zero.
        """
        targets = call.trainer.output_targets
        empty = {
            name
            for name, target in targets.items()
            if target["level"] == "atom" and target[restricted]
        }
        if not empty or not bool((call.batch.fixed != 0).all()):
            return set()
        call.trainer.output_targets = {
            name: {**target, restricted: False} if name in empty else target
            for name, target in targets.items()
        }
        return empty


def aggregate(
    metrics: dict[str, Any],
    sums: Callable[[dict[str, Any]], dict[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """Means over all ranks, by fairchem's ``sums``; NaN for metrics that have no atoms."""
    # All ranks have the same metrics, including those without atoms, but in different orders.
    names = sorted(metrics)
    counts = torch.tensor([float(metrics[name]["numel"]) for name in names])
    total = distutils.all_reduce(counts.to(device)).tolist()
    counted = {name: metrics[name] for name, count in zip(names, total) if count > 0}
    measured = sums(counted)
    return {name: measured.get(name, _nothing()) for name in metrics}


class EmptyLoss(nn.Module):
    """A loss of fairchem over no atoms: zero, but it takes part in the mean over ranks."""

    def __init__(self, loss: DDPLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        # 0 / (number of atoms on all ranks): zero, or NaN if no rank has any
        return self.loss(pred[:0], target[:0], natoms).nan_to_num()


class EmptyAwareEvaluator(Evaluator):
    """fairchem's evaluator, but metrics without atoms are ignored."""

    def update(self, key: str, stat: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        if isinstance(stat, Mapping) and not stat["numel"]:
            metrics.setdefault(key, _nothing())
            return metrics
        return super().update(key, stat, metrics)


class NoFreeAtomsEvaluator(EmptyAwareEvaluator):
    """fairchem's evaluator for batches in which some or all structures have no free atoms."""

    def __init__(self, evaluator: Evaluator, empty: set[str]) -> None:
        super().__init__(evaluator.task, evaluator.target_metrics)
        self.empty = empty

    def eval(self, prediction, target, prev_metrics=None):
        prediction, target = (
            {key: value[:0] if key in self.empty else value for key, value in values.items()}
            for values in (prediction, target)
        )
        with_atoms = target["natoms"] > 0
        if bool(with_atoms.all()):
            return super().eval(prediction, target, prev_metrics)
        # this metric needs the largest force of each structure, which must have atoms
        metrics = self._only(lambda fn: fn != THRESHOLD).eval(prediction, target, prev_metrics)
        threshold = self._only(lambda fn: fn == THRESHOLD)
        if not any(threshold.target_metrics.values()):
            return metrics
        if not bool(with_atoms.any()):  # an integer, because fairchem sums it as one
            metrics.setdefault(THRESHOLD, {**_nothing(), "total": 0})
            return metrics
        prediction, target = (
            {**values, **{key: values[key][with_atoms] for key in ("energy", "natoms")}}
            for values in (prediction, target)
        )
        return threshold.eval(prediction, target, metrics)

    def _only(self, which: Callable[[str], bool]) -> EmptyAwareEvaluator:
        """An evaluator for the metrics for which ``which`` is true."""
        chosen = {
            name: [fn for fn in functions if which(fn)]
            for name, functions in self.target_metrics.items()
        }
        return EmptyAwareEvaluator(self.task, chosen)


def _nothing() -> dict[str, Any]:
    return {"metric": math.nan, "total": 0.0, "numel": 0}
