"""Write the tables in the README and docs/*.md from results/*.json:

    python -m ndem_ocp.bench.pages.write [--check]

Each table is between ``<!-- table: NAME -->`` and ``<!-- end table -->``. With ``--check`` no file
is written, and the exit status is 1 if a table differs. A missing result appears as "not run".
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.pages.backbones import backbones
from ndem_ocp.bench.pages.budgets import budgets
from ndem_ocp.bench.pages.cost import COST_TABLES
from ndem_ocp.bench.pages.fairchem2 import FAIRCHEM2_TABLES
from ndem_ocp.bench.pages.molecules import MOLECULE_TABLES, spread
from ndem_ocp.bench.pages.neighbors import neighbors
from ndem_ocp.bench.pages.second_views import SECOND_VIEWS_TABLES

# page -> path from it to the folder results/
PAGES = {
    ROOT / "README.md": "results/",
    ROOT / "docs" / "molecules.md": "../results/",
    ROOT / "docs" / "reliability.md": "../results/",
    ROOT / "docs" / "cost.md": "../results/",
    ROOT / "docs" / "second_views.md": "../results/",
    ROOT / "docs" / "fairchem2.md": "../results/",
    ROOT / "docs" / "backbones.md": "../results/",
    ROOT / "docs" / "neighbors.md": "../results/",
}
NAMES = {
    "plain": "plain, S steps",
    "ndem": "NDeM, S steps",
    "plain-long": "plain, about NDeM's time",
}


def oc20_trajectories(results: Path) -> str:
    """Plain and NDeM on OC20 relaxation trajectories."""
    path = results / "oc20_trajectories.json"
    if not path.exists():
        return "not run"
    found = json.loads(path.read_text())
    rows = [
        "| small EquiformerV2 | steps | relative cost | force MAE, new frames (eV/Å) "
        "| force cosine, new frames | force MAE, new systems (eV/Å) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, values in found["arms"].items():
        frames, systems = values["summary"]["new_frames"], values["summary"]["new_systems"]
        steps = values["runs"][0]["steps"]
        per_step = found["step_time_s"]["ratio"] if arm == "ndem" else 1.0
        cost = steps * per_step / found["arms"]["plain"]["runs"][0]["steps"]
        rows.append(
            f"| {NAMES[arm]} | {steps} | {cost:.2f} | {spread(frames['forces_mae'], 4)} "
            f"| {spread(frames['forces_cosine_similarity'], 4)} "
            f"| {spread(systems['forces_mae'], 4)} |"
        )
    zero_frames = found["arms"]["plain"]["runs"][0]["new_frames"]["zero_force_mae"]
    rows.append(
        f"| predicting no force | | | {zero_frames:.4f} | | {found['zero_force_mae']:.4f} |"
    )
    hardware = found["hardware"]
    rows += [
        "",
        f"Mean ± standard deviation over {len(found['seeds'])} seeds. {found['train_frames']} "
        f"training frames of 22 systems; errors on {found['val_frames']} other frames of these "
        f"systems and on {found['val_frames']} frames of 4 other systems. One step of NDeM took "
        f"{found['step_time_s']['ratio']:.2f} times a plain one. {hardware['cpu']}, one thread per "
        f"run, torch {hardware['torch']}, commit {found['commit'][:10]}; "
        "[all numbers](results/oc20_trajectories.json).",
    ]
    return "\n".join(rows)


def paper_table_3(results: Path) -> str:
    """The paper's OC20 results next to ours."""
    rows = [
        "| OC20 S2EF validation, All+MD | paper: energy (meV) | paper: forces (meV/Å) | ours |",
        "| --- | --- | --- | --- |",
    ]
    for name, energy, forces in (
        ("EquiformerV2, λ_E = 4, 31M", 232, 16.3),
        ("EquiformerV2, λ_E = 2, 153M", 230, 14.6),
        ("EquiformerV2, λ_E = 4, 153M", 227, 15.0),
        ("EquiformerV2 + DeNS, λ_E = 4, 160M", 221, 14.2),
        ("EquiformerV2 + NDeM, λ_E = 2, 157M", 229, 13.8),
        ("EquiformerV2 + NDeM, λ_E = 4, 157M", 219, 14.7),
    ):
        rows.append(f"| {name} | {energy} | {forces} | not run |")
    return "\n".join(rows)


AREAS = {
    "checkpoints": "Checkpoints and resume",
    "slurm": "SLURM",
    "ranks": "Ranks",
    "data": "Bad data",
    "configuration": "Configuration mistakes",
}


def reliability(results: Path) -> str:
    """All faults that were tried, as recorded by the tests."""
    path = results / "reliability.json"
    if not path.exists():
        return "not run"
    files = json.loads(path.read_text(encoding="utf-8"))
    out = []
    for area, title in AREAS.items():
        rows = [row for found in files.values() for row in found["rows"] if row["area"] == area]
        out += [f"### {title}", ""]
        if rows:
            out += [
                "| fault | tried | what happened | what was lost |",
                "| --- | --- | --- | --- |",
            ]
        out += [
            f"| {' | '.join(_cell(row[key]) for key in ('fault', 'times', 'happened', 'lost'))} |"
            for row in rows
        ] or ["not run"]
        out.append("")
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


TABLES = {
    "reliability": reliability,
    "oc20_trajectories": oc20_trajectories,
    "budgets": budgets,
    "backbones": backbones,
    "neighbors": neighbors,
    "paper_table_3": paper_table_3,
    **MOLECULE_TABLES,
    **COST_TABLES,
    **SECOND_VIEWS_TABLES,
    **FAIRCHEM2_TABLES,
}


def filled(text: str, results: Path, link: str = "results/") -> str:
    """``text`` with all tables updated; links to results/ start with ``link``.

    Raises:
        ValueError: for a marker with an unknown table, or without an end.
    """
    out, rest = "", text
    while (start := rest.find("<!-- table: ")) >= 0:
        head_end = rest.index("-->", start) + 3
        name = rest[start + 12 : head_end - 3].strip()
        end = rest.find("<!-- end table -->", head_end)
        if name not in TABLES or end < 0:
            raise ValueError(f"unknown table, or no end marker: {name}")
        table = TABLES[name](results).replace("](results/", f"]({link}")
        out += f"{rest[:head_end]}\n{table}\n"
        rest = rest[end:]
    return out + rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    different = 0
    for page, link in PAGES.items():
        old = page.read_text(encoding="utf-8")
        new = filled(old, ROOT / "results", link)
        different |= int(new != old)
        if not args.check:
            page.write_text(new, encoding="utf-8")
    return different if args.check else 0


if __name__ == "__main__":
    sys.exit(in_checkout(main))
