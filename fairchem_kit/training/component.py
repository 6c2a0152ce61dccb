"""Components of a trainer, and the moments at which the trainer calls them.

A trainer of this package is fairchem's, with its hook points overridden once, in trainer.py. What
it does beyond fairchem is in components, each of which does one thing. At every moment below the
trainer asks all of them, in the order of ``Trainer.kinds``. At a moment whose name starts with
``after`` the order is the reverse, so that the first component is the outermost. A component
overrides the moments that it needs; all others do nothing.

    moment              when                                          who uses it
    read                the configuration has arrived                 Keys AuxiliaryTask Precision
                                                                      EarlyStopping Costs Resume
                                                                      Ending BadSteps
    problems            mistakes are collected, to be said at once    AuxiliaryTask
    prepare             before anything is built                      Keys InitFrom Normalizers
                                                                      AuxiliaryTask UnitMetrics
                                                                      Resume
    after_model         the model is built                            AuxiliaryTask Freeze
    before_datasets     data sets are about to be opened              RecordLimits Relaxations
    after_datasets      the loaders are there                         Relaxations ValidationSplits
    after_optimizer     the optimizer is there                        Freeze BadSteps
    before_training     resumed or new, before the first step         InitFrom Precision
    loader_ready        an epoch's loader has drawn its seed          Costs Resume
    between_steps       nothing of a step is left to do               Costs Ending
    before_forward      a batch is about to be shown to the model     AuxiliaryTask Costs Ending
    before_loss         the model's outputs are there                 AuxiliaryTask NoFreeAtoms
                                                                      BadSteps
    after_loss          fairchem's loss is there                      AuxiliaryTask
    before_metrics      fairchem is about to measure a batch          AuxiliaryTask NoFreeAtoms
                                                                      Resume
    after_metrics       a batch is measured                           AuxiliaryTask UnitMetrics
    vote                before the backward pass, on each rank        Ending BadSteps
    voted               the ranks' votes are counted                  Ending BadSteps
    after_backward      the optimizer's step is done, or left out     Costs BadSteps
    before_validation   a validation begins                           Ending
    after_validation    fairchem has evaluated the main split         ValidationSplits
    validation_ended    it is over, by an error or a stop too         Ending
    best_updated        it is known whether a validation is the best  EarlyStopping
    finished            is there a reason to end the run now?         EarlyStopping
    state, restore      a checkpoint is written, read                 EarlyStopping
    explain             a checkpoint does not fit: why?               AuxiliaryTask

``tests/test_components.py`` compares this table with the classes. A component reads and changes the
trainer through ``self.trainer``. What fairchem should see for one call only, such as another table
of targets, is set on the call's copy of the trainer (:class:`Call`), so that nothing has to be put
back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fairchem.core.modules.evaluator import Evaluator
from torch import Tensor
from torch_geometric.data import Batch

if TYPE_CHECKING:
    from fairchem_kit.training.trainer import Trainer


class Call:
    """One call of ``_forward``, ``_compute_loss`` or ``_compute_metrics`` of fairchem's trainer.

    Components change its attributes before fairchem gets them.

    Attributes:
        trainer: a shallow copy of the trainer, the ``self`` of fairchem's method. An attribute that
            is set on it holds for this call alone.
        batch: B structures. It may be replaced, and must not be changed.
        out: {output: (N, 3) or (B, k) normalised}, in ``_compute_loss`` and ``_compute_metrics``.
        evaluator, metrics: in ``_compute_metrics``.
    """

    def __init__(
        self,
        trainer: Trainer,
        batch: Batch,
        out: dict[str, Tensor] | None = None,
        evaluator: Evaluator | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        self.trainer = copy.copy(trainer)
        self.batch = batch
        self.out: dict[str, Tensor] = {} if out is None else out
        self.evaluator = evaluator
        self.metrics = metrics


class Component:
    """One thing that a trainer does beyond fairchem's; the table above says when each is called.

    Attributes:
        name: the trainer's attribute under which other code finds this component; "": none.
        task_keys: keys of ``task`` that it reads; others are refused, as nobody would read them.
        trainer: whom it belongs to.
    """

    name = ""
    task_keys: tuple[str, ...] = ()

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def config(self) -> dict[str, Any]:
        """The trainer's configuration, in fairchem's layout."""
        return self.trainer.config

    # --- setting up --------------------------------------------------------------------------

    def read(self) -> None:
        """Read the component's keys; raise a ConfigError that names one."""

    def problems(self) -> Iterator[str]:
        """Mistakes that show before anything is built, a sentence each."""
        return iter(())

    def prepare(self, inference_only: bool) -> None:
        """Check and complete the configuration: the last moment to change it."""

    def after_model(self) -> None: ...

    def before_datasets(self) -> None: ...

    def after_datasets(self) -> None: ...

    def after_optimizer(self) -> None: ...

    # --- running -----------------------------------------------------------------------------

    def before_training(self) -> None: ...

    def loader_ready(self) -> None: ...

    def between_steps(self, last: bool) -> None:
        """``last``: the run is over; otherwise the next batch is about to be asked for."""

    def before_forward(self, call: Call) -> None: ...

    def before_loss(self, call: Call) -> None: ...

    def after_loss(self, loss: Tensor) -> Tensor:
        """() loss -> the loss to train with."""
        return loss

    def before_metrics(self, call: Call) -> None: ...

    def after_metrics(self, metrics: dict[str, Any], evaluator: Evaluator) -> None:
        """Add to ``metrics`` in place."""

    def vote(self, loss: Tensor) -> bool:
        """What all ranks must know before the step: how many of them say True."""
        return False

    def voted(self, ranks: int) -> bool:
        """``ranks`` said True. Returns whether the step is to be taken, alike on every rank."""
        return True

    def after_backward(self, taken: bool) -> None: ...

    def before_validation(self) -> None: ...

    def after_validation(self, split: str, metrics: dict[str, Any], disable_tqdm: bool) -> None: ...

    def validation_ended(self) -> None: ...

    def best_updated(self, better: bool) -> None: ...

    def finished(self) -> str | None:
        """Why the run should end now, as the beginning of a sentence; None: continue."""
        return None

    # --- checkpoints -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Keys for the checkpoint."""
        return {}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take them back from a checkpoint, which may lack them."""

    def explain(self, error: Exception, path: str) -> Exception | None:
        """A better error for a checkpoint that fairchem could not load; None: that one is good."""
        return None
