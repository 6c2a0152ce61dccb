"""Building a fairchem trainer without side effects in the user's process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from fairchem_kit.training.resume.rng import generators_kept


@contextlib.contextmanager
def unchanged_process(device: torch.device) -> Iterator[None]:
    """Undo the side effects of building a fairchem trainer.

    Building one seeds Python, numpy, torch and CUDA, sets cudnn's flags, gives the root logger a
    level and handlers, and logs the whole configuration. Warnings are still shown.
    """
    root, cudnn = logging.getLogger(), torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        with generators_kept(device):
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        cudnn.deterministic, cudnn.benchmark = flags
