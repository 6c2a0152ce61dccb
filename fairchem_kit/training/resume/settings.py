"""Settings for resuming, in ``task``, and what has changed since a checkpoint.

task:
  resume: auto          # the run's newest good checkpoint, or a newer one in --checkpoint
                        # named: always --checkpoint; PATH: this file, if the run has none yet
  keep_checkpoints: 3   # number of checkpoints to keep, the newest ones
  max_bad_steps: 10     # stop after this many steps in a row whose loss or gradient is not finite
  unsafe: False         # True: run code in a checkpoint if it cannot be read otherwise
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairchem_kit.checkpoints.file import plain
from fairchem_kit.training.checks.messages import ConfigError

AUTO, NAMED = "auto", "named"
_COMPARED = ("model", "optim", "task", "outputs", "loss_functions", "dataset", "amp")
# These do not affect what a step computes.
_IRRELEVANT = {
    *("task.resume", "task.keep_checkpoints", "task.max_bad_steps", "task.init_from"),
    "task.unsafe",
    *("task.prediction_dtype", "task.strict_load", "optim.num_workers"),
    *("task.validation_splits", "task.early_stopping"),
    *("dataset.src", "dataset.bad_records_log"),
}
_SHOWN = 5


@dataclass(frozen=True)
class RunSettings:
    """``task.resume``, ``task.keep_checkpoints``, ``task.max_bad_steps``, ``task.unsafe``."""

    resume: str = AUTO
    keep: int = 3
    max_bad_steps: int = 10
    unsafe: bool = False

    @classmethod
    def from_task(cls, task: Mapping[str, Any]) -> RunSettings:
        """Read and check the keys; raises a ConfigError that names the key."""
        resume = task.get("resume", AUTO)
        if not isinstance(resume, (str, Path)) or not str(resume):
            raise ConfigError(
                f"task.resume = {resume!r}: must be auto, named, or the path of a checkpoint. To "
                "start a new run from the weights of a checkpoint, use task.init_from."
            )
        counts = {}
        for key, default in (("keep_checkpoints", cls.keep), ("max_bad_steps", cls.max_bad_steps)):
            value = task.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"task.{key} = {value!r}: must be a whole number, at least 1.")
            counts[key] = value
        unsafe = task.get("unsafe", False)
        if not isinstance(unsafe, bool):
            raise ConfigError(f"task.unsafe = {unsafe!r}: must be True or False.")
        return cls(str(resume), counts["keep_checkpoints"], counts["max_bad_steps"], unsafe)

    def check_path(self) -> None:
        """Raise a ConfigError if ``task.resume`` is a path that does not exist.

        Only for training: the key is also in the configuration of checkpoints, which may be used on
        another machine.
        """
        if self.path is not None and not self.path.is_file():
            raise ConfigError(
                f"task.resume = {self.resume!r}: there is no such file (from {Path.cwd()})."
            )

    @property
    def path(self) -> Path | None:
        """The checkpoint to resume from if the run has none of its own."""
        return None if self.resume in (AUTO, NAMED) else Path(self.resume)

    def newest_wins(self, loaded: Path | None) -> bool:
        """Whether to prefer the run's own checkpoints to the one already loaded, if newer."""
        return loaded is None or self.resume != NAMED


def changed_settings(saved: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[str]:
    """Settings that affect training and differ from the checkpoint's, as short sentences."""
    if saved is None:
        return []
    before = dict(_leaves({key: saved.get(key) for key in _COMPARED}))
    now = dict(_leaves(plain({key: config.get(key) for key in _COMPARED})))
    keys = [k for k in sorted(before.keys() | now.keys()) if not _irrelevant(k)]
    changes = [
        f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')}"
        for key in keys
        if before.get(key) != now.get(key) and key != "optim.batch_size"  # reported by Position
    ]
    more = [f"{len(changes) - _SHOWN} more settings differ"] if len(changes) > _SHOWN else []
    return changes[:_SHOWN] + more


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; an empty section counts as absent."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)) and any(isinstance(x, (Mapping, list)) for x in tree):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{name}.{number}")
    elif tree is not None:
        yield name, list(tree) if isinstance(tree, tuple) else tree


def _irrelevant(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _IRRELEVANT)
