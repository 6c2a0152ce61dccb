"""The panels as a W&B workspace, and its specification as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairchem_kit.report.dashboard.errors import DashboardError
from fairchem_kit.report.dashboard.panels import Panel, Section

FORMAT = "ndem dashboard 1"
_MISSING = (
    "ndem dashboard needs the package wandb-workspaces: pip install 'wandb-workspaces>=0.4.13,<0.5'"
    " (or '.[dashboard]' in a checkout)."
)


def _modules() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise DashboardError(_MISSING) from error
    return reports, workspaces


def make_workspace(
    name: str,
    sections: Sequence[Section],
    project: str,
    entity: str = "",
    run_ids: Sequence[str] = (),
) -> Any:
    """Make the workspace without saving it; does not use the network.

    Args:
        name: of the saved view. run_ids: W&B ids of the runs to show; none: all.

    Raises:
        DashboardError: if wandb-workspaces is not installed.
    """
    reports, workspaces = _modules()
    runs = workspaces.RunsetSettings(
        filters=[workspaces.Metric("ID").isin(list(run_ids))] if run_ids else []
    )
    return workspaces.Workspace(
        name=name,
        entity=entity,
        project=project,
        sections=[_section(reports, workspaces, section) for section in sections],
        settings=workspaces.WorkspaceSettings(max_runs=50),
        runset_settings=runs,
    )


def _section(reports: Any, workspaces: Any, section: Section) -> Any:
    rows = -(-len(section.panels) // section.columns)
    return workspaces.Section(
        name=section.name,
        panels=[_panel(reports, panel) for panel in section.panels],
        is_open=section.is_open,
        layout_settings=workspaces.SectionLayoutSettings(columns=section.columns, rows=rows),
    )


def _panel(reports: Any, panel: Panel) -> Any:
    if panel.kind == "media":
        return reports.MediaBrowser(title=panel.title, num_columns=1, media_keys=list(panel.keys))
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=panel.keys[0])
    if panel.kind == "scatter":
        return reports.ScatterPlot(
            title=panel.title,
            x=reports.Config(panel.x),
            y=reports.SummaryMetric(panel.keys[0]),
        )
    group = {}
    if panel.group is not None:
        group = {
            "groupby": reports.Config(panel.group),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "stderr",
        }
    return reports.LinePlot(
        title=panel.title,
        x={"step": "Step", "time": "RelativeTime(Wall)"}[panel.x],
        y=list(panel.keys),
        title_y=panel.unit or None,
        **group,
    )


def specification(workspace: Any) -> dict[str, Any]:
    """Everything that would be sent to W&B, as plain values."""
    view = workspace._to_model()
    spec = view.spec.model_dump_json(by_alias=True, exclude_none=True)
    return {
        "format": FORMAT,
        "name": workspace.name,
        "project": workspace.project,
        "entity": workspace.entity,
        "spec": json.loads(spec),
    }


def read_specification(path: Path) -> Any:
    """The workspace in a file of :func:`specification`, without saving it.

    Raises:
        DashboardError: if it is not such a file.
    """
    _, workspaces = _modules()
    from wandb_workspaces.workspaces import internal

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        view = internal.View(
            entity=found["entity"],
            project=found["project"],
            display_name=found["name"],
            name="",
            id="",
            spec=internal.WorkspaceViewspec.model_validate(found["spec"]),
        )
        return workspaces.Workspace._from_model(view)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DashboardError(f"{path} is not a file of ndem dashboard --out ({error}).") from error


def save(workspace: Any) -> str:
    """Save the workspace in W&B; returns its address.

    Raises:
        DashboardError: without a login, or if W&B refuses.
    """
    import wandb

    if not wandb.login(prompt=False):
        raise DashboardError(
            "not logged in to W&B: run `wandb login`. Without a network, use --out FILE to write "
            "the dashboard's specification, and `ndem dashboard --from FILE` later."
        )
    if not workspace.entity:
        workspace.entity = wandb.Api().default_entity
    try:
        workspace.save()
    except Exception as error:
        raise DashboardError(
            f"W&B refused the dashboard for {workspace.entity}/{workspace.project} "
            f"({type(error).__name__}: {error}). Does the project exist? An offline run "
            "creates it when it is synced: wandb sync RUN_DIR/logs/*/*/wandb/offline-run-*."
        ) from error
    return str(workspace.url)
