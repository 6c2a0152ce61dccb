"""Where in the data a run is, so that it continues with the right sample.

In each epoch the samples stand in one shuffled order that depends on the seed and the epoch alone.
Step k of an epoch takes the next ``batch_size * world_size`` of them, shared among the ranks. So
the place in the order is the number of samples seen, whatever the batch and the number of ranks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """Attributes:
    step: finished steps, as the run that saved counts them.
    steps_per_epoch: length of its training loader.
    batch_size: samples per rank and step. world_size: ranks that share the data.
    samples: length of the training set. seed: of the run, None if none was set.
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
        """Read off fairchem's training loader and its sampler."""
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
        """This position counted in the steps of another loader.

        Returns:
            The number of steps that ``here`` would have finished, rounded down to whole steps, and
            how many samples of the epoch are therefore seen twice.
        """
        if (self.per_step, self.steps_per_epoch) == (here.per_step, here.steps_per_epoch):
            return self.step, 0
        epoch, steps = divmod(self.step, self.steps_per_epoch)
        seen = min(steps * self.per_step, here.samples)
        there = min(seen // here.per_step, here.steps_per_epoch)
        return epoch * here.steps_per_epoch + there, seen - there * here.per_step

    def differences(self, here: Position) -> list[str]:
        """Why a run that continues from here is not the run that it was."""
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
