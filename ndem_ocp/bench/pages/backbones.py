"""The table in docs/backbones.md, from results/backbones.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, read, table

# Tests of the contract in the order of the columns, and the titles of the columns.
CHECKS = {
    "test_equivariance": "float32 error",
    "test_equivariance_float64": "float64 error",
    "test_forces_are_the_energys_gradient": "f = -dE/dX",
    "test_one_backbone_forward_per_training_step": "one forward",
    "test_gradients_reach_the_backbone_and_both_heads": "gradients",
    "test_coefficient_zero_is_the_plain_trainer": "λ = 0",
    "test_evaluation_is_the_plain_model": "evaluation",
    "test_training_lowers_both_losses": "learns",
    "test_checkpoint_round_trip": "checkpoint",
}


def backbones(results: Path) -> str:
    """Results of the contract tests for every backbone."""
    found = read(results, "backbones")
    if found is None:
        return NOT_RUN
    rows, notes = [], []
    for entry in found["backbones"].values():
        mark = ""
        if entry["note"]:
            notes.append(f"{len(notes) + 1}. {entry['name']}, {entry['forces']}: {entry['note']}")
            mark = f" ({len(notes)})"
        size = entry["size"]
        head_cell = f"{size['module']} ({size['auxiliary_head']:,} of {size['model']:,})"
        name = entry["name"]
        if entry["config"]:
            name = f"[{name}](../{entry['config']})"
        cells = [f"{name}{mark}", entry["forces"], head_cell]
        cells += [_cell(entry["checks"].get(check, {})) for check in CHECKS]
        rows.append(cells)
    hardware, versions = found["hardware"], found["versions"]
    head = ["backbone", "forces", "f' (parameters of all)", *CHECKS.values()]
    lines = [
        table(head, rows),
        "",
        "Errors are the larger of the main forces' and f' under rotation, translation and "
        'renumbering, relative to the largest component; "-": does not apply. '
        f"fairchem-core {versions['fairchem-core']}, torch {versions['torch']}, "
        f"{hardware['cpu']}, commit {found['commit'][:10]}; "
        "[all numbers](results/backbones.json).",
        "",
        *notes,
    ]
    return "\n".join(lines)


def _cell(check: dict[str, Any]) -> str:
    if check.get("outcome") == "skipped":
        return "-"
    if check.get("outcome") != "passed":
        return "**failed**" if check else "not run"
    if "forces_error" in check:
        return f"{max(check['forces_error'], check['noisy_forces_error']):.0e}"
    return f"{check['gradient_error']:.0e}" if "gradient_error" in check else "yes"
