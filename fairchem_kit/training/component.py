"""Components of a trainer, and the moments at which the trainer calls them.

Trainers of this package are fairchem's, with its hook points overridden once, in trainer.py.
Everything they do in addition to fairchem is in components, each for one purpose. At each of the
moments below the trainer calls all components, in the order of ``Trainer.kinds``. At moments whose
names start with ``after`` the order is reversed, so that the first component is the outermost. A
component overrides the moments that it needs; the others do nothing.

    moment              when                                          who uses it
    read                the configuration is available                Keys AuxiliaryTask Precision
                                                                      MixedPrecision Deterministic
                                                                      EarlyStopping Costs Resume
                                                                      Ending BadSteps
    problems            mistakes are collected, to report them all    AuxiliaryTask
    prepare             before anything is built                      Keys InitFrom Normalizers
                                                                      AuxiliaryTask UnitMetrics
                                                                      MixedPrecision Resume
    after_model         the model is built                            AuxiliaryTask Freeze
    before_datasets     data sets are about to be opened              RecordLimits Relaxations
    after_datasets      the data loaders are built                    Relaxations ValidationSplits
    after_optimizer     the optimizer is built                        Freeze BadSteps
    before_training     before the first step, new or resumed         InitFrom Precision
    loader_ready        an epoch's loader has drawn its seed          Costs Resume
    between_steps       a step is complete                            Costs Ending
    before_forward      the model is about to see a batch             AuxiliaryTask Costs Ending
    before_loss         the model's outputs are computed              AuxiliaryTask NoFreeAtoms
                                                                      BadSteps
    after_loss          fairchem's loss is computed                   AuxiliaryTask
    before_metrics      metrics of a batch are about to be computed   AuxiliaryTask NoFreeAtoms
                                                                      Resume
    after_metrics       metrics of a batch are computed               AuxiliaryTask UnitMetrics
    vote                before the backward pass, on each rank        Ending BadSteps
    voted               the ranks' votes are counted                  Ending BadSteps
    after_backward      the optimizer's step is done, or skipped      Costs BadSteps
    before_validation   a validation begins                           Ending
    after_validation    fairchem has evaluated the main split         ValidationSplits
    validation_ended    it is over, also after an error or a stop     Ending
    best_updated        a validation was compared with the best one   EarlyStopping
    finished            asks for a reason to end the run now          EarlyStopping
    state, restore      a checkpoint is written; is read              EarlyStopping
    explain             asks why a checkpoint does not fit            AuxiliaryTask

``tests/test_components.py`` compares this table with the classes. A component reads and changes the
trainer through ``self.trainer``. Anything that should only apply to one call of fairchem's code,
such as other targets, is set on the call's copy of the trainer (:class:`Call`), so that nothing has
to be restored.
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

    Components may change its attributes before they are passed to fairchem.

    Attributes:
        trainer: a shallow copy of the trainer, which is ``self`` in fairchem's method. Attributes
            that are set on it only apply to this call.
        batch: B structures. It may be replaced, but must not be changed in place.
        out: {output: (N, 3) or (B, k) normalised}, only in ``_compute_loss`` and
            ``_compute_metrics``.
        evaluator, metrics: only in ``_compute_metrics``.
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
    """Something that a trainer does in addition to fairchem's; see the table above.

    Attributes:
        name: the attribute of the trainer that holds this component; "": none.
        task_keys: keys of ``task`` that the component reads. Keys that no component and no part of
            fairchem reads are refused.
        trainer: the trainer it belongs to.
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
        """Read the component's keys; raise a ConfigError that names the key if one is wrong."""

    def problems(self) -> Iterator[str]:
        """Mistakes that can be found before anything is built, one sentence each."""
        return iter(())

    def prepare(self, inference_only: bool) -> None:
        """Check and complete the configuration; later it must not be changed."""

    def after_model(self) -> None: ...

    def before_datasets(self) -> None: ...

    def after_datasets(self) -> None: ...

    def after_optimizer(self) -> None: ...

    # --- running -----------------------------------------------------------------------------

    def before_training(self) -> None: ...

    def loader_ready(self) -> None: ...

    def between_steps(self, last: bool) -> None:
        """``last``: the run is over; otherwise the next batch is about to be loaded."""

    def before_forward(self, call: Call) -> None: ...

    def before_loss(self, call: Call) -> None: ...

    def after_loss(self, loss: Tensor) -> Tensor:
        """The () loss to train with, given fairchem's."""
        return loss

    def before_metrics(self, call: Call) -> None: ...

    def after_metrics(self, metrics: dict[str, Any], evaluator: Evaluator) -> None:
        """Add to ``metrics`` in place."""

    def vote(self, loss: Tensor) -> bool:
        """A yes or no of this rank; all ranks then learn how many said yes."""
        return False

    def voted(self, ranks: int) -> bool:
        """``ranks`` voted True. Returns whether to do the step, the same on every rank."""
        return True

    def after_backward(self, taken: bool) -> None: ...

    def before_validation(self) -> None: ...

    def after_validation(self, split: str, metrics: dict[str, Any], disable_tqdm: bool) -> None: ...

    def validation_ended(self) -> None: ...

    def best_updated(self, better: bool) -> None: ...

    def finished(self) -> str | None:
        """Why the run should end now, as the beginning of a sentence; None to continue."""
        return None

    # --- checkpoints -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Entries for the checkpoint."""
        return {}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint, which may lack these entries."""

    def explain(self, error: Exception, path: str) -> Exception | None:
        """A better error for a checkpoint that fairchem could not load; None to keep fairchem's."""
        return None
