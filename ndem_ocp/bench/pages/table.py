"""What the tables of all pages share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairchem_kit.markdown import table

__all__ = ["NOT_RUN", "read", "spread", "table"]

NOT_RUN = "not run"


def spread(summary: dict[str, Any], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    shown = f" ± {summary['stdev']:.{digits}f}" if summary["stdev"] is not None else ""
    return f"{summary['mean']:.{digits}f}{shown}"


def read(results: Path, name: str) -> Any:
    """The content of results/NAME.json; None if there is none."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
