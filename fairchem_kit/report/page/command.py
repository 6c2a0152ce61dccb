"""``ndem report``: compare runs on one HTML page, with their table as Markdown and CSV.

    ndem report RUN... --out report.html

RUN is a run directory, a folder of them (of ndem sweep or ndem submit), or a history.jsonl. Runs
named ARM-seedN, or with the same identifier, are one arm: mean and confidence band over their
seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_kit.commands.options import describe
from fairchem_kit.files import writable_folder, write_text


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem report``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a folder of them")
    add("--out", type=Path, default=Path("report.html"), help="default: report.html")
    add("--title", help="title of the page; default: the names of the arms")
    add("--baseline", metavar="ARM",
        help="arm with which the others are compared; default: the arm named plain")  # fmt: skip
    add("--eval", nargs="+", type=Path, default=[], metavar="DIR",
        help="folders of ndem eval; those in RUN/eval* and ./eval are always found")  # fmt: skip
    add("--wandb", action="store_true",
        help="also log the evaluations to their W&B runs: page, tables, numbers")  # fmt: skip
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--compare", action="store_true", default=True,
        help="show the runs of an arm as one line with a band over their seeds (the default)",
    )  # fmt: skip
    group.add_argument(
        "--each", dest="compare", action="store_false", help="show every run as a separate line"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and both tables; print the table and what is missing."""
    from fairchem_kit.report.page.errors import ReportError
    from fairchem_kit.report.page.evaluations import find_evaluations
    from fairchem_kit.report.page.runs import find_runs

    out = args.out / "report.html" if args.out.is_dir() else args.out
    if out.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"--out {out}: the page is an HTML file; name it {out.name}.html.")
    runs = find_runs(args.runs)
    evaluations, notes = find_evaluations(runs, args.eval)
    if args.wandb and not evaluations:
        raise ReportError("--wandb logs evaluations, but there are none: run ndem eval first.")

    from fairchem_kit.report.page.build import Report

    report = Report(runs, evaluations, notes, args.title, args.compare, args.baseline)
    writable_folder(out.parent)
    written = {out: report.page(), out.with_suffix(".md"): report.markdown()}
    written[out.with_suffix(".csv")] = report.csv()
    for path, text in written.items():
        write_text(path, text)
    print(report.markdown())
    for line in report.missing:
        print(f"not in the report: {line}")
    print(f"wrote {', '.join(map(str, written))}")
    if args.wandb:
        from fairchem_kit.report.page.to_wandb import log_evaluations

        print(f"logged to W&B: {', '.join(log_evaluations(evaluations))}")
    return 0
