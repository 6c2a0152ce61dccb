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


class Losable:
    """``logger``, whose methods do nothing any more after one of them has raised an OSError."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._lost = False

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
