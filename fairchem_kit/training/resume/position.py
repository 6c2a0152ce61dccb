"""The position of a run in its data, so that it continues with the right sample.

In each epoch the samples are in a shuffled order that depends only on the seed and the epoch. Each
step takes the next ``batch_size * world_size`` of them, divided among the ranks. So the position is
the number of samples seen in the epoch, for any batch size and number of ranks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """Attributes:
    step: number of finished steps, in the run that saved it.
    steps_per_epoch: length of the training loader.
    batch_size: samples per rank and step. world_size: ranks that share the data.
    samples: length of the training set. seed: that of the run; None if not set.
    """

    step: int
    steps_per_epoch: int
    batch_size: int
    world_size: int
    samples: int
    seed: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, step: int, loader: Any, seed: int | None) -> Position:
        """The position, given fairchem's training loader and its sampler."""
        sampler = loader.batch_sampler
        return cls(
            step=step,
            steps_per_epoch=len(loader),
            batch_size=sampler.batch_size,
            world_size=sampler.sampler.num_replicas,
            samples=len(loader.dataset),
            seed=seed,
        )

    @property
    def per_step(self) -> int:
        return self.batch_size * self.world_size

    def step_in(self, here: Position) -> tuple[int, int]:
        """Convert this position to the steps of another loader.

        Returns:
            The number of finished steps with the loader of ``here``, rounded down, and the number
            of samples that are therefore seen twice in the epoch.
        """
        if (self.per_step, self.steps_per_epoch) == (here.per_step, here.steps_per_epoch):
            return self.step, 0
        epoch, steps = divmod(self.step, self.steps_per_epoch)
        seen = min(steps * self.per_step, here.samples)
        there = min(seen // here.per_step, here.steps_per_epoch)
        return epoch * here.steps_per_epoch + there, seen - there * here.per_step

    def differences(self, here: Position) -> list[str]:
        """Why a run that continues with these sizes differs from an uninterrupted one."""
        names = {
            "batch_size": "the batch size",
            "world_size": "the number of ranks",
            "samples": "the number of training samples",
            "seed": "the seed",
        }
        return [
            f"{name} was {getattr(self, key)} and is {getattr(here, key)}"
            for key, name in names.items()
            if getattr(self, key) != getattr(here, key)
        ]
