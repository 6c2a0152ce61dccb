"""The table in docs/fairchem2.md, from results/fairchem2_step.json."""

from __future__ import annotations

from pathlib import Path

from ndem_ocp.bench.pages.table import NOT_RUN, read, table

NAMES = {
    "direct": "direct forces",
    "conserving": "conserving forces",
    "experts": "8 experts, direct",
}


def fairchem2_step(results: Path) -> str:
    """The cost of a step in each arm, relative to fairchem's plain step."""
    found = read(results, "fairchem2_step")
    if found is None:
        return NOT_RUN
    models = found["models"]
    arms = [arm for arm in next(iter(models.values())) if arm != "fairchem, plain"]
    rows = []
    for arm in arms:
        cells = (
            f"{values[arm]['ratio']:.2f} ({values[arm]['quartiles'][0]:.2f} to "
            f"{values[arm]['quartiles'][1]:.2f})"
            for values in models.values()
        )
        rows.append([arm, *cells])
    hardware = found["hardware"]
    lines = [
        table(["training step", *(NAMES[model] for model in models)], rows),
        "",
        f"Processor time of a step as a ratio to fairchem's plain step on the same batch: median "
        f"(quartiles) of {found['rounds']} rounds. {found['batch']}; "
        f"{found['size']['sphere_channels']} channels, {found['size']['num_layers']} layers. "
        f"{hardware['cpu']}, one thread on a machine shared with other work, torch "
        f"{hardware['torch']}, commit {found['commit'][:10]}; "
        "[all numbers](results/fairchem2_step.json).",
    ]
    return "\n".join(lines)


FAIRCHEM2_TABLES = {"fairchem2_step": fairchem2_step}
