"""A rank whose structures have no free atom, in a step or in a validation.

fairchem's loss and metrics end there with "cannot reshape tensor of 0 elements", and a metric over
no atom with a division by zero; one rank's error ends the run of all. The mean over all ranks'
atoms is well defined as long as one rank has some, so such a rank takes part with none. If no rank
has any, the losses of forces are zero and their metrics NaN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.evaluator import Evaluator
from fairchem.core.modules.loss import DDPLoss
from fairchem.core.trainers import OCPTrainer
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.method import Tally

THRESHOLD = "energy_forces_within_threshold"


class NoFreeAtoms(OCPTrainer):
    """fairchem's trainer for batches in which every atom may be fixed."""

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        with self._of_all_atoms(batch, "train_on_free_atoms") as empty:
            if not empty:
                return super()._compute_loss(out, batch)
            losses = self.loss_functions
            self.loss_functions = [
                (name, {**loss, "fn": NoAtoms(loss["fn"])} if name in empty else loss)
                for name, loss in losses
            ]
            try:
                return super()._compute_loss(out, batch)
            finally:
                self.loss_functions = losses

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        with self._of_all_atoms(batch, "eval_on_free_atoms") as empty:
            return super()._compute_metrics(out, batch, AnyAtoms(evaluator, empty), metrics)

    def _aggregate_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """fairchem's, with NaN for a metric that no rank has counted anything for."""
        # Every rank has the same metrics, those over no atom included, but not in one order.
        names = sorted(metrics)
        counts = torch.tensor([float(metrics[name]["numel"]) for name in names])
        total = distutils.all_reduce(counts.to(self.device)).tolist()
        counted = {name: metrics[name] for name, count in zip(names, total) if count > 0}
        measured = super()._aggregate_metrics(counted)
        return {name: measured.get(name, _nothing()) for name in metrics}

    @contextlib.contextmanager
    def _of_all_atoms(self, batch: Batch, restricted: str) -> Iterator[set[str]]:
        """Yield the names of the outputs for which this batch has no free atom.

        Inside the context fairchem uses all atoms for these outputs, because it cannot reshape an
        empty selection; the callers count what comes of them as zero.
        """
        empty = {
            name
            for name, target in self.output_targets.items()
            if target["level"] == "atom" and target[restricted]
        }
        if not empty or not bool((batch.fixed != 0).all()):
            yield set()
            return
        targets = self.output_targets
        self.output_targets = {
            name: {**target, restricted: False} if name in empty else target
            for name, target in targets.items()
        }
        try:
            yield empty
        finally:
            self.output_targets = targets


class NoAtoms(nn.Module):
    """A loss of fairchem's over none of the atoms: zero, with its share in the ranks' mean."""

    def __init__(self, loss: DDPLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        # Zero over zero atoms of all ranks is NaN; of some other rank's atoms it is zero.
        return self.loss(pred[:0], target[:0], natoms).nan_to_num()


class AnyAtoms(Evaluator):
    """fairchem's evaluator where structures, or all of a batch, may have no atom to measure."""

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
        # fairchem's threshold looks for the largest of a structure's forces: not of none.
        everything = self.target_metrics
        try:
            self.target_metrics = _selected(everything, lambda fn: fn != THRESHOLD)
            metrics = super().eval(prediction, target, prev_metrics)
            self.target_metrics = _selected(everything, lambda fn: fn == THRESHOLD)
            if not any(self.target_metrics.values()):
                return metrics
            if not bool(with_atoms.any()):  # the ranks' sums of this metric are integers
                metrics.setdefault(THRESHOLD, {**_nothing(), "total": 0})
                return metrics
            prediction, target = (
                {**values, **{key: values[key][with_atoms] for key in ("energy", "natoms")}}
                for values in (prediction, target)
            )
            return super().eval(prediction, target, metrics)
        finally:
            self.target_metrics = everything

    def update(self, key: str, stat: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        if isinstance(stat, Mapping) and not stat["numel"]:
            metrics.setdefault(key, _nothing())
            return metrics
        return super().update(key, stat, metrics)


def mean_over_ranks() -> Callable[[Tensor], Tensor]:
    """fairchem's mean over the atoms of all ranks; zero if no rank has any.

    The result is prepared for DDP's average of gradients: the mean of the ranks' values is it.
    """
    mean = DDPLoss("l2mae", reduction="mean").mean

    def of(per_atom: Tensor) -> Tensor:
        value: Tensor = mean(per_atom, per_atom, None)
        return value if per_atom.numel() else value.nan_to_num()

    return of


def sum_over_ranks(log: dict[str, Tally], device: torch.device) -> dict[str, Tally]:
    """The same means over the atoms of all ranks, by one exchange. All ranks need the same keys."""
    if distutils.get_world_size() == 1 or not log:
        return log
    sums = torch.tensor(list(log.values()), dtype=torch.float64, device=device)
    return {name: Tally(*pair) for name, pair in zip(log, distutils.all_reduce(sums).tolist())}


def _selected(
    metrics: Mapping[str, list[str]], which: Callable[[str], bool]
) -> dict[str, list[str]]:
    return {name: [fn for fn in functions if which(fn)] for name, functions in metrics.items()}


def _nothing() -> dict[str, Any]:
    return {"metric": math.nan, "total": 0.0, "numel": 0}
