"""Write the tables in the README and docs/*.md from results/*.json:

    python -m ndem_ocp.bench.pages.write [--check]

Each table is between ``<!-- table: NAME -->`` and ``<!-- end table -->``. With ``--check`` no file
is written, and the exit status is 1 if a table differs. A missing result appears as "not run".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.pages.backbones import backbones
from ndem_ocp.bench.pages.budgets import budgets
from ndem_ocp.bench.pages.cost import COST_TABLES
from ndem_ocp.bench.pages.curvature import CURVATURE_TABLES
from ndem_ocp.bench.pages.fairchem2 import FAIRCHEM2_TABLES
from ndem_ocp.bench.pages.gpu import GPU_TABLES
from ndem_ocp.bench.pages.molecules import MOLECULE_TABLES
from ndem_ocp.bench.pages.neighbors import neighbors
from ndem_ocp.bench.pages.oc20 import oc20_trajectories, paper_table_3
from ndem_ocp.bench.pages.reliability import reliability
from ndem_ocp.bench.pages.second_views import SECOND_VIEWS_TABLES
from ndem_ocp.bench.pages.vibrations import vibrations

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
TABLES = {
    "reliability": reliability,
    "oc20_trajectories": oc20_trajectories,
    "budgets": budgets,
    "backbones": backbones,
    "neighbors": neighbors,
    "paper_table_3": paper_table_3,
    "vibrations": vibrations,
    **MOLECULE_TABLES,
    **COST_TABLES,
    **GPU_TABLES,
    **SECOND_VIEWS_TABLES,
    **CURVATURE_TABLES,
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
