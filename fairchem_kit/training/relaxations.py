"""fairchem's relaxations (``--mode run-relaxations``, ``task.eval_relaxations``), repaired.

Four problems in fairchem 1.10 are fixed here, without copying its loop:

- Newer versions of ASE (such as 3.29) declare abstract methods that fairchem's batch of structures
  does not define, although its optimizer never calls them. Relaxations fail to start.
- ``task.relax_opt`` has no default.
- Predicted energies have shape (B, 1) but labels (B,), so that errors are computed over all B x B
  pairs.
- In a relaxation, ``predict`` switches to the moving average (EMA) and does not restore the
  weights. A run with ``task.eval_relaxations`` would then continue training from the average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fairchem.core.common.relaxation.optimizable import OptimizableBatch
from fairchem.core.trainers import OCPTrainer
from torch_geometric.data import Batch, Data

from fairchem_kit.data.sources.is2re import KEY_MAPPING
from fairchem_kit.training.component import Component
from fairchem_kit.training.moving_average import averaged_weights

if TYPE_CHECKING:
    from fairchem_kit.training.trainer import Trainer

ENERGY = "energy_relaxed"


class Relaxations(Component):
    """Completes the data set of relaxations."""

    def before_datasets(self) -> None:
        self.trainer.relax_dataset = None
        relax = self.config.get("relax_dataset")
        if relax and "key_mapping" not in relax:  # the key in OC20's IS2RE records is y_relaxed
            train = self.config.get("dataset") or {}
            mapping = {**(train.get("key_mapping") or {}), **KEY_MAPPING}
            self.config["relax_dataset"] = {**relax, "key_mapping": mapping}

    def after_datasets(self) -> None:
        trainer = self.trainer
        if trainer.relax_dataset is not None:
            trainer.relax_loader.collate_fn = partial(energies_in_a_column, trainer.collater)


def run(trainer: Trainer) -> None:
    """fairchem's ``run_relaxations`` with the moving average as weights."""
    allow_relaxations()
    seen = copy.copy(trainer)
    # a copy, because fairchem changes relax_opt in place
    task = trainer.config["task"]
    options = dict(task.get("relax_opt") or {})
    seen.config = {**trainer.config, "task": {**task, "relax_opt": options}}
    seen.ema = None  # so that it is not applied a second time
    with averaged_weights(trainer.ema):
        OCPTrainer.run_relaxations(seen)


def allow_relaxations() -> None:
    """Allow fairchem's batch of structures to be created without ASE's abstract methods."""
    OptimizableBatch.__abstractmethods__ = frozenset()


def energies_in_a_column(collate: Callable[[list[Data]], Batch], records: list[Data]) -> Batch:
    """A batch whose relaxed energies have the same shape as predictions, (B, 1)."""
    batch = collate(records)
    if ENERGY in batch:
        batch[ENERGY] = batch[ENERGY].view(-1, 1)
    return batch
