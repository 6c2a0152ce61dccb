"""Tables of the README on OC20: relaxation trajectories, and the paper's Table 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, read, spread, table

NAMES = {
    "plain": "plain, S steps",
    "ndem": "NDeM, S steps",
    "plain-long": "plain, about NDeM's time",
}
TABLE_3 = (
    ("EquiformerV2, λ_E = 4, 31M", 232, 16.3),
    ("EquiformerV2, λ_E = 2, 153M", 230, 14.6),
    ("EquiformerV2, λ_E = 4, 153M", 227, 15.0),
    ("EquiformerV2 + DeNS, λ_E = 4, 160M", 221, 14.2),
    ("EquiformerV2 + NDeM, λ_E = 2, 157M", 229, 13.8),
    ("EquiformerV2 + NDeM, λ_E = 4, 157M", 219, 14.7),
)


def oc20_trajectories(results: Path) -> str:
    """Plain against NDeM on OC20 relaxation trajectories."""
    found = read(results, "oc20_trajectories")
    if found is None:
        return NOT_RUN
    head = ["small EquiformerV2", "steps", "relative cost", "force MAE, new frames (eV/Å)",
            "force cosine, new frames", "force MAE, new systems (eV/Å)"]  # fmt: skip
    rows: list[list[Any]] = []
    for arm, values in found["arms"].items():
        frames, systems = values["summary"]["new_frames"], values["summary"]["new_systems"]
        steps = values["runs"][0]["steps"]
        per_step = found["step_time_s"]["ratio"] if arm == "ndem" else 1.0
        cost = steps * per_step / found["arms"]["plain"]["runs"][0]["steps"]
        errors = (
            frames["forces_mae"], frames["forces_cosine_similarity"], systems["forces_mae"],
        )  # fmt: skip
        rows.append([NAMES[arm], steps, f"{cost:.2f}", *(spread(each, 4) for each in errors)])
    zero_frames = found["arms"]["plain"]["runs"][0]["new_frames"]["zero_force_mae"]
    zero_systems = found["zero_force_mae"]
    rows.append(["predicting no force", "", "", f"{zero_frames:.4f}", "", f"{zero_systems:.4f}"])
    hardware = found["hardware"]
    lines = [
        table(head, rows),
        "",
        f"Mean ± standard deviation over {len(found['seeds'])} seeds. {found['train_frames']} "
        f"training frames of 22 systems; errors on {found['val_frames']} other frames of these "
        f"systems and on {found['val_frames']} frames of 4 other systems. One step of NDeM took "
        f"{found['step_time_s']['ratio']:.2f} times a plain one. {hardware['cpu']}, one thread per "
        f"run, torch {hardware['torch']}, commit {found['commit'][:10]}; "
        "[all numbers](results/oc20_trajectories.json).",
    ]
    return "\n".join(lines)


def paper_table_3(results: Path) -> str:
    """The paper's OC20 rows with ours beside them."""
    head = ["OC20 S2EF validation, All+MD", "paper: energy (meV)", "paper: forces (meV/Å)", "ours"]
    return table(head, [[*row, NOT_RUN] for row in TABLE_3])
