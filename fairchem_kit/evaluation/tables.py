"""The output of an evaluation: a printed table, metrics.json, table.md, table.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairchem_kit.files import write_text
from fairchem_kit.markdown import table
from fairchem_kit.units.columns import Column

MEAN = "mean"
METRICS_FILE, MARKDOWN_FILE, CSV_FILE = "metrics.json", "table.md", "table.csv"


def table_of(
    columns: Sequence[Column], splits: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Split -> column key -> value in the column's unit; for several splits also their mean.

    Args:
        columns: of the tables. splits: split -> fairchem's metric -> value in the data's unit.
    """
    rows = {
        name: {c.key: metrics[c.metric] * c.factor for c in columns if c.metric in metrics}
        for name, metrics in splits.items()
    }
    if len(rows) > 1:
        # Over the splits, not over the structures: as OC20's tables average their four.
        rows[MEAN] = {
            c.key: math.fsum(row[c.key] for row in rows.values()) / len(rows)
            for c in columns
            if all(c.key in row for row in rows.values())
        }
    return rows


def markdown(
    columns: Sequence[Column], rows: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]
) -> str:
    """The table, one row per split."""
    head = ["split", "structures", *(c.heading for c in columns)]
    cells = [
        [name, counts.get(name, ""), *(_cell(row.get(c.key), c.digits) for c in columns)]
        for name, row in rows.items()
    ]
    return table(head, cells, right_from=1) + "\n"


def as_csv(
    columns: Sequence[Column], rows: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]
) -> str:
    """The same as CSV: full precision, keys with their units as header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "structures", *(c.key for c in columns)])
    for name, row in rows.items():
        writer.writerow([name, counts.get(name, ""), *(row.get(c.key, "") for c in columns)])
    return text.getvalue()


def write_tables(
    folder: Path, about: Mapping[str, Any], caption: str, columns: Sequence[Column]
) -> str:
    """Write metrics.json, table.md and table.csv; returns the Markdown.

    Args:
        folder: must exist. about: the content of metrics.json, including ``splits`` and ``table``.
            caption: one sentence below the table. columns: of the table.

    Raises:
        OutputError: if writing fails.
    """
    counts = {name: split["structures"] for name, split in about["splits"].items()}
    text = f"{markdown(columns, about['table'], counts)}\n{caption}\n"
    write_text(folder / MARKDOWN_FILE, text)
    write_text(folder / CSV_FILE, as_csv(columns, about["table"], counts))
    write_text(folder / METRICS_FILE, json.dumps(_plain(about), indent=1) + "\n")
    return text


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _plain(value: Any) -> Any:
    """JSON has no NaN: an undefined metric is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
