"""``ndem dashboard``: make W&B panels for the runs of a project.

    ndem dashboard --project ndem-oc20                    # for all runs of the project
    ndem dashboard RUN...                                 # for these runs, in their project
    ndem dashboard RUN... --out dashboard.json            # to a file, without a network
    ndem dashboard --from dashboard.json                  # from that file, with a network

RUN is a run directory or a folder of them. Its history shows which splits and metrics it logs;
without RUN the panels are those of OC20. Panels refer to metrics by name, so they can be made
before or after an offline run is synced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import describe
from fairchem_kit.files import existing, existing_file, writable_folder, write_text
from fairchem_kit.report.dashboard.errors import DashboardError

_CURVATURE = "ndem_curvature_"
_CHANGE = "ndem_change_error_"


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem dashboard``."""
    describe(parser, __doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="show only these")
    add("--project", help="default: logger.project of the runs")
    add("--entity", help="user or team; default: logger.entity of the runs, or your own")
    add("--name", default="NDeM", help="name of the saved view (default: NDeM)")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the specification to this file; needs no network",
    )
    add("--dry-run", action="store_true", help="list the panels; needs no network")
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="make the panels from a file written with --out",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Make the workspace, or write its specification, or list its panels."""
    if args.source is not None and args.runs:
        raise DashboardError("the file of --from names its runs: leave out RUN.")

    if args.source is not None:
        existing_file(args.source, DashboardError)
    for path in args.runs:
        existing(path, DashboardError)

    from fairchem_kit.report.dashboard import workspace as made

    if args.source is not None:
        workspace = made.read_specification(args.source)
        workspace.project = args.project or workspace.project
        workspace.entity = args.entity or workspace.entity
    else:
        workspace = _from_runs(args)
    if args.dry_run:
        print(listing(workspace))
    if args.out is not None:
        writable_folder(args.out.parent)
        text = json.dumps(made.specification(workspace), indent=1)
        write_text(args.out, text + "\n")
        print(f"wrote {args.out}; `ndem dashboard --from {args.out}` makes it in W&B.")
    if args.dry_run or args.out is not None:
        return 0
    print(f"made {made.save(workspace)}")
    return 0


def _from_runs(args: argparse.Namespace) -> Any:
    from fairchem_kit.report.dashboard.panels import sections
    from fairchem_kit.report.dashboard.workspace import make_workspace
    from fairchem_kit.report.page.runs import find_runs

    runs = find_runs(args.runs) if args.runs else []
    project = args.project or _setting(runs, "project")
    if not project:
        raise DashboardError(
            "no project: give --project, or runs whose configuration has logger.project."
        )
    entity = args.entity or _setting(runs, "entity") or ""
    chosen = sections(**_what_they_log(runs)) if runs else sections()
    ids = [run.command.get("timestamp_id") or run.run_id for run in runs]
    return make_workspace(args.name, chosen, project, entity, ids)


def _setting(runs: Sequence[Any], key: str) -> str | None:
    """``logger.KEY``, which must be the same in all runs.

    Raises:
        DashboardError: if it differs: a workspace belongs to one project.
    """
    loggers = [run.config.get("logger") for run in runs]
    found = {(one or {}).get(key) if isinstance(one, dict) else None for one in loggers} - {None}
    if len(found) > 1:
        raise DashboardError(
            f"the runs have different values of logger.{key} ({', '.join(sorted(found))}): give "
            f"--{key}, or runs with the same value."
        )
    return found.pop() if found else None


def _what_they_log(runs: Sequence[Any]) -> dict[str, Any]:
    """Splits, metrics and names with units in the runs' histories."""
    from fairchem_kit.report.page.evaluations import find_evaluations
    from fairchem_kit.report.page.table import MOST_METRICS, metrics_of, splits_of

    found: dict[str, Any] = {}
    if splits_of(runs):
        found["splits"] = splits_of(runs)
        found["metrics"] = [metric.name for metric in metrics_of(runs)[:MOST_METRICS]]
    names = dict.fromkeys(key for run in runs for line in run.lines("train")[-9:] for key in line)
    curvature = [name for name in names if name.startswith(_CURVATURE)]
    if curvature:
        found["curvature"] = curvature[0]
    change = [name for name in names if name.startswith(_CHANGE)]
    found["change"] = change[0].removeprefix(_CHANGE) if change else None
    evaluations, _ = find_evaluations(runs, [])
    found["evaluated"] = list(dict.fromkeys(s for e in evaluations for s in e.splits))
    return found


def listing(workspace: Any) -> str:
    """Sections and panels as text."""
    lines = [f"{workspace.name}: {workspace.entity or '(your own)'}/{workspace.project}"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        for panel in section.panels:
            keys = getattr(panel, "y", None) or getattr(panel, "media_keys", None)
            keys = keys if isinstance(keys, list) else [keys or panel.table_name]
            shown = ", ".join(str(getattr(key, "name", key)) for key in keys)
            lines.append(f"    {getattr(panel, 'title', None) or 'table'}: {shown}")
    return "\n".join(lines)
