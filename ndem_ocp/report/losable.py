"""A logger that a run can do without: when its service or its disk is gone, training goes on.

W&B writes through a process of its own. A scheduler that preempts a job sends SIGTERM to every
process of it, and W&B's ends at once; the next metric that is logged would end the run with it,
before it has saved the step that it was asked to finish.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import wandb
from fairchem.core.common.logger import WandBLogger

from ndem_ocp.report.wandb_mode import offline_if_need_be


def logger_or_none(kind: type, config: dict[str, Any]) -> Losable | None:
    """A logger of class ``kind``, which a run can do without; None if it cannot be made.

    W&B that cannot go online is offline, which is said at once.
    """
    if issubclass(kind, WandBLogger):
        offline_if_need_be()
    try:
        return Losable(kind(config))
    except (OSError, wandb.errors.Error) as error:
        logging.error(
            f"{kind.__name__} cannot be started ({type(error).__name__}: {error}): nothing is "
            "logged there. The run goes on."
        )
        return None


class Losable:
    """``logger``, whose methods do nothing any more after one of them has raised an OSError."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._lost = False

    def is_a(self, kind: type) -> bool:
        """Whether the logger behind this one is of a class."""
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
                f"{type(self._logger).__name__} is lost ({type(error).__name__}: {error}): nothing "
                "more is logged there. The run goes on; when it is resumed it logs again."
            )
            return None
