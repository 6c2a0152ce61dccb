"""The style of all figures; importing this module sets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fairchem_kit.files import replacing

TRAIN, VAL, MUTED = "#4477aa", "#ee6677", "#888888"  # Paul Tol's bright scheme
plt.rcParams.update(
    {
        "figure.dpi": 150,
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)
    return path
