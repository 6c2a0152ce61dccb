"""Provoke every fault and write what happened to results/reliability.json:
`python -m ndem_ocp.bench.experiments.reliability [FILE ...] [--short] [--out FILE]`.

Runs the tests that break runs and data on purpose, one file at a time, with long loops (200 kills,
50 two-rank runs). This takes an hour on two cores, or minutes with --short. With FILE (such as
test_resume.py) only these tests are run, and the results of all others are kept; each result has
its own commit. ndem_ocp.bench.pages.write makes the tables in docs/reliability.md. A fault whose
test failed or did not run has no row; failed tests are listed in the file.
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

from fairchem_kit.provenance import provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout

RESULTS = ROOT / "results/reliability.json"


def files_with_faults() -> list[Path]:
    """Test files that record faults with ``observed``."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in found if "observed(" in path.read_text(encoding="utf-8")]


def run(path: Path, short: bool) -> dict[str, Any]:
    """Run the tests in a file; returns provenance, last line of output, failures, rows."""
    print(f"{path.name} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.touch()
        environment = {**os.environ, "NDEM_RELIABILITY": str(rows), "OMP_NUM_THREADS": "1"}
        if not short:
            environment["NDEM_SOAK"] = "1"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=7200", str(path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    output = done.stdout.strip().splitlines() or ["no output"]
    failed = [line for line in output if line.startswith(("FAILED", "ERROR"))]
    print(f"  {output[-1]}", *failed, sep="\n  ", flush=True)
    result = {"outcome": output[-1], "failed": failed, "short": short, "rows": merged(lines)}
    return {**provenance(ROOT), **result}


def merged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per fault and outcome, in order, with the total number of tries."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        key = tuple(line[name] for name in ("area", "fault", "happened", "lost"))
        if key in rows:
            rows[key]["times"] += line["times"]
        else:
            rows[key] = dict(line)
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="test files; default: all")
    parser.add_argument("--short", action="store_true", help="short loops, as in CI")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    files = {path.name: path for path in files_with_faults()}
    unknown = set(args.files) - files.keys()
    if unknown:
        parser.error(f"no faults in {', '.join(sorted(unknown))}; choose from {', '.join(files)}")
    failed = 0
    for name in args.files or files:
        found = run(files[name], args.short)
        failed |= bool(found["failed"])
        # read again, because another process may have written it in the meantime
        results = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
        results = {key: value for key, value in results.items() if key in files} | {name: found}
        text = json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False)
        args.out.write_text(text + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(in_checkout(main))
