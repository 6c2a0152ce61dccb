"""Errors in a process that is not ours: the stock ``fairchem`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from fairchem_kit.commands.ending import explained, refuse


def say_it_in_a_sentence() -> None:
    """An error that the user can fix ends ``fairchem`` as it ends ``ndem``: with one sentence.

    Call it once torch's process group exists, because that sets a hook of its own. Ranks that
    ``fairchem --num-gpus`` starts, and all programs but ``fairchem``, keep their traceback.
    """
    before = sys.excepthook
    if Path(sys.argv[0]).name != "fairchem" or before.__module__ == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sentence = explained(error) if isinstance(error, Exception) else None
        if sentence is None:
            before(kind, error, trace)
        else:
            sys.exit(refuse(sentence))

    sys.excepthook = hook
