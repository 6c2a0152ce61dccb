"""The table in docs/neighbors.md, from results/neighbors.json."""

from __future__ import annotations

from pathlib import Path

from ndem_ocp.bench.pages.table import NOT_RUN, read, table

# A, neighbours, structures: as in ndem_ocp.bench.experiments.neighbors
CUTOFF, NEIGHBORS, BATCH = 12.0, 20, 8


def neighbors(results: Path) -> str:
    """Times of neighbour searches."""
    found = read(results, "neighbors")
    if found is None:
        return NOT_RUN
    batches = found["batches"]
    structures = sum(len(batch["atoms"]) for batch in batches)
    total = {
        name: sum(batch["seconds"][name] for batch in batches) for name in batches[0]["seconds"]
    }
    rows = [
        [name, f"{1e3 * each / structures:.2f}", f"{each / total['fairchem, one view']:.3f}"]
        for name, each in total.items()
    ]
    atoms = [number for batch in batches for number in batch["atoms"]]
    agreed = {name: sum(batch["agree"][name] for batch in batches) for name in batches[0]["agree"]}
    said = ", ".join(f"{name} {number} of {len(batches)}" for name, number in agreed.items())
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    hardware = found["hardware"]
    lines = [
        table(["search", "ms per structure", "of fairchem's for one view"], rows),
        "",
        f"{structures} structures of {min(atoms)} to {max(atoms)} atoms in batches of {BATCH}; "
        f"cutoff {CUTOFF:g} Å, {NEIGHBORS} neighbours, strictly. One thread of {hardware['cpu']}, "
        f"torch {hardware['torch']}, {packages}, commit {found['commit'][:10]}; "
        "[all numbers](results/neighbors.json).",
        f"Batches whose edges are fairchem's, ties included: {said}.",
    ]
    return "\n".join(lines)
