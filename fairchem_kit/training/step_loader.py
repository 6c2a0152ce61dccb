"""A data loader that tells the trainer where one step ends and the next begins.

fairchem's loop has no hook at the end of a step. Its end is where the next batch is asked for:
validation, schedule and logs of the step are done then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader


class StepHooks(Protocol):
    """What the training loader calls, in this order, in every epoch."""

    def before_epoch(self) -> None: ...

    def loader_ready(self) -> None: ...

    def between_steps(self) -> None: ...


class StepLoader(DataLoader[Any]):
    """torch's loader; with ``hooks`` set, it calls them."""

    hooks: StepHooks | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if self.hooks is None else self._with_hooks(self.hooks)

    def _with_hooks(self, hooks: StepHooks) -> Iterator[Any]:
        hooks.before_epoch()  # before torch's iterator draws its seed from the global generator
        batches = super().__iter__()
        hooks.loader_ready()
        for batch in batches:
            yield batch
            hooks.between_steps()  # the last step of an epoch ends with the next epoch's start
