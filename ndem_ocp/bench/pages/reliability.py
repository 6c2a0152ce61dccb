"""The tables of docs/reliability.md, from results/reliability.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, read, table

AREAS = {
    "checkpoints": "Checkpoints and resume",
    "slurm": "SLURM",
    "ranks": "Ranks",
    "data": "Bad data",
    "configuration": "Configuration mistakes",
}
COLUMNS = {
    "fault": "fault",
    "times": "tried",
    "happened": "what happened",
    "lost": "what was lost",
}


def reliability(results: Path) -> str:
    """Every fault that was tried, from the tests' own output."""
    files = read(results, "reliability")
    if files is None:
        return NOT_RUN
    out = []
    for area, title in AREAS.items():
        rows = [row for found in files.values() for row in found["rows"] if row["area"] == area]
        cells = [[_cell(row[key]) for key in COLUMNS] for row in rows]
        out += [f"### {title}", "", table(COLUMNS.values(), cells) if rows else NOT_RUN, ""]
    machines = {
        f"{found['hardware']['cores']} cores of {found['hardware']['cpu']}, "
        f"torch {found['hardware']['torch']}"
        for found in files.values()
    }
    commits = sorted({found["commit"][:10] for found in files.values()})
    failed = [line for found in files.values() for line in found["failed"]]
    short = [name for name, found in files.items() if found["short"]]
    out.append(
        f"Tried on {'; '.join(sorted(machines))}; commits {', '.join(commits)}; "
        "[all numbers](results/reliability.json). "
        + (f"With the short loops of CI: {', '.join(short)}. " if short else "")
        + (f"Failed: {'; '.join(failed)}." if failed else "No test failed.")
    )
    return "\n".join(out)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
