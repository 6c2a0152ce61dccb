"""fairchem's relaxations (``--mode run-relaxations``, ``task.eval_relaxations``) in working order.

Four things stop or spoil them in fairchem 1.10, each mended here without a copy of its loop:

- Newer ASE (3.29 is one) declares abstract methods that fairchem's batch of structures does not
  have and its own optimizer does not call: no relaxation starts.
- ``task.relax_opt`` is read without a default.
- Predicted energies are a column (B, 1) and the labels (B,): errors and their means are then over
  all B x B pairs.
- ``predict`` for a relaxation's step takes the moving average (EMA) and does not give the weights
  back: a run with ``task.eval_relaxations`` would train on from the average.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from fairchem.core.common.relaxation.optimizable import OptimizableBatch
from fairchem.core.trainers import OCPTrainer
from torch_geometric.data import Batch, Data

from fairchem_kit.data.sources.is2re import KEY_MAPPING
from fairchem_kit.training.component import Component

if TYPE_CHECKING:
    from fairchem_kit.training.trainer import Trainer

ENERGY = "energy_relaxed"


class Relaxations(Component):
    """Gives relaxations the data that they need."""

    def before_datasets(self) -> None:
        self.trainer.relax_dataset = None
        relax = self.config.get("relax_dataset")
        if relax and "key_mapping" not in relax:  # OC20's IS2RE records say y_relaxed
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
    # fairchem changes relax_opt in place; the run's own configuration stays as written.
    task = trainer.config["task"]
    options = dict(task.get("relax_opt") or {})
    seen.config = {**trainer.config, "task": {**task, "relax_opt": options}}
    seen.ema = None  # so that nothing inside applies it a second time
    with averaged_weights(trainer):
        OCPTrainer.run_relaxations(seen)


def allow_relaxations() -> None:
    """Let fairchem's batch of structures be made, whatever ASE's abstract class asks for."""
    OptimizableBatch.__abstractmethods__ = frozenset()


def energies_in_a_column(collate: Callable[[list[Data]], Batch], records: list[Data]) -> Batch:
    """A batch whose relaxed energies have the shape of predicted ones, (B, 1)."""
    batch = collate(records)
    if ENERGY in batch:
        batch[ENERGY] = batch[ENERGY].view(-1, 1)
    return batch


@contextlib.contextmanager
def averaged_weights(trainer: Trainer) -> Iterator[None]:
    """Within, the moving average, if there is one, is the model's weights."""
    ema = trainer.ema
    if ema is None:
        yield
        return
    ema.store()
    ema.copy_to()
    try:
        yield
    finally:
        ema.restore()
