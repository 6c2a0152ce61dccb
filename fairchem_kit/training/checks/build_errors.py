"""Settings that only fail when the host builds something from them, said in a sentence."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from fairchem_kit.commands.ending import TRACEBACK
from fairchem_kit.errors import ConfigError, UserError

#: what constructors raise for values that they cannot use
_OF_VALUES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    *(ValueError, NotImplementedError),
)
_OF_RANKS = ("torch/distributed", "torch/nn/parallel")


@contextlib.contextmanager
def said_of(section: str) -> Iterator[None]:
    """Name the section of the configuration from which something cannot be built.

    Raises:
        ConfigError: instead of an error of a constructor, with the line that raised it.
    """
    try:
        yield
    except UserError:
        raise
    except _OF_VALUES as error:
        frames = traceback.extract_tb(error.__traceback__)
        files = [Path(frame.filename).as_posix() for frame in frames]
        if any(part in file for part in _OF_RANKS for file in files):
            raise  # another rank is gone
        last = frames[-1]
        text = str(error).strip().partition("\n")[0] or (last.line or "")
        raise ConfigError(
            f"{section}: it cannot be built with these settings: {type(error).__name__}: {text} "
            f"({Path(last.filename).name}, line {last.lineno}). {TRACEBACK}=1 in the environment "
            "shows the whole traceback."
        ) from error
