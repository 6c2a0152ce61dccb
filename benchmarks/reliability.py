"""Try every fault and write what happened to results/reliability.json:
`python benchmarks/reliability.py [--short] [--out FILE] [-- PYTEST OPTIONS]`.

Runs the tests that break runs and data on purpose, with their long loops (200 kills, 50 two-rank
runs; an hour on two cores; --short for minutes), one file at a time. The table of
docs/reliability.md is made from the result by benchmarks/readme_tables.py. A fault whose test did
not run, or failed, has no row; failed tests are in the file too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ndem_ocp.report.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results/reliability.json"


def files_with_faults() -> list[Path]:
    """Test files that record rows with ``observed``."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in found if "observed(" in path.read_text(encoding="utf-8")]


def run(path: Path, rows: Path, short: bool, options: list[str]) -> str:
    """Run one file's tests; its last line of output."""
    environment = {**os.environ, "NDEM_RELIABILITY": str(rows), "OMP_NUM_THREADS": "1"}
    if not short:
        environment["NDEM_SOAK"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=7200", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    print(f"{path.name}: {last}", flush=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "; ".join([last, *failed])


def merged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each fault and outcome, in order; how often it was tried is added up."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("area", "fault", "happened", "lost"))
        if key in rows:
            rows[key]["times"] += line["times"]
        else:
            rows[key] = dict(line)
    return sorted(rows.values(), key=lambda row: row["area"])


def main() -> int:
    head, options = sys.argv[1:], []
    if "--" in head:
        head, options = head[: head.index("--")], head[head.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the loops as CI has them")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(head)
    made = provenance(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.touch()
        tests = {p.name: run(p, rows, args.short, options) for p in files_with_faults()}
        lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    result = {**made, "short": args.short, "tests": tests, "rows": merged(lines)}
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {args.out}: {len(result['rows'])} faults")
    return int(any("FAILED" in text or "ERROR" in text for text in tests.values()))


if __name__ == "__main__":
    sys.exit(main())
