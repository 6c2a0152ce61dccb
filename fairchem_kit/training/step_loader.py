"""A data loader that notifies the trainer between two steps.

fairchem's loop has no hook at the end of a step. But when it requests the next batch, validation,
schedule and logging of the previous step are complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader


class StepHooks(Protocol):
    """Methods that the training loader calls, in this order, in every epoch."""

    def before_epoch(self) -> None: ...

    def loader_ready(self) -> None: ...

    def between_steps(self) -> None: ...


class StepLoader(DataLoader[Any]):
    """torch's data loader, which calls ``hooks`` if they are set."""

    hooks: StepHooks | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if self.hooks is None else self._with_hooks(self.hooks)

    def _with_hooks(self, hooks: StepHooks) -> Iterator[Any]:
        hooks.before_epoch()  # before torch's iterator draws its seed from the global generator
        batches = super().__iter__()
        hooks.loader_ready()
        for batch in batches:
            yield batch
            hooks.between_steps()  # the last step of an epoch ends when the next epoch starts
