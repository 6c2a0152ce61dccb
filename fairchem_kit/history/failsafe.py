"""A logger whose failure does not end the run.

W&B writes through a separate process. A scheduler that preempts a job sends SIGTERM to all its
processes, and W&B's exits at once; without this class, the next logged metric would end the run
before it has saved the current step.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import wandb
from fairchem.core.common.logger import WandBLogger

from fairchem_kit.history.wandb_mode import offline_if_need_be


def logger_or_none(kind: type, config: dict[str, Any]) -> FailsafeLogger | None:
    """A logger of class ``kind`` whose failure does not end the run; None if it cannot be started.

    If W&B cannot go online, it logs offline, with a message at the start.
    """
    if issubclass(kind, WandBLogger):
        offline_if_need_be()
    try:
        return FailsafeLogger(kind(config))
    except (OSError, wandb.errors.Error) as error:
        logging.error(
            f"{kind.__name__} cannot be started ({type(error).__name__}: {error}): nothing is "
            "logged there. The run continues."
        )
        return None


class FailsafeLogger:
    """Wraps ``logger``; after one of its methods has raised an OSError, all do nothing."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._lost = False

    def is_a(self, kind: type) -> bool:
        """Whether the wrapped logger is of a class."""
        return isinstance(self._logger, kind)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._logger, name)
        return functools.partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._lost:
            return None
        try:
            return method(*args, **kwargs)
        except OSError as error:  # connection errors are OSErrors
            self._lost = True
            logging.error(
                f"{type(self._logger).__name__} has failed ({type(error).__name__}: {error}): "
                "nothing more is logged there. The run continues, and logs there again when it is "
                "resumed."
            )
            return None
