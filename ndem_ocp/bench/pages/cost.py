"""Tables in docs/cost.md from results/bench_*.json; GPU results (bench_*_cuda*.json) first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN

ARMS = {
    "upstream": "upstream, plain",
    "naive": "naive NDeM, two passes of upstream's model",
    "joint": "NDeM, one pass of upstream's model",
    "plain": "ours, plain",
    "ndem": "**ours, NDeM**",
    "dens": "DeNS on upstream's model",
}
SHORT = ("plain", "naive", "ndem", "dens")
PHASES = ("forward", "graph", "loss", "backward", "optimizer")


def step(results: Path) -> str:
    """All models, batch sizes and arms of ``ndem bench step``."""
    head = (
        "| model, batch | arm | step (ms) | forward | of it graph | loss | backward | optimizer "
        "| atoms/s | peak memory (MB) | time | processor time | memory |\n"
        "| --- |" + " --- |" * 12
    )
    return _with_picture(
        "![Time and memory of a step by arm](images/bench_step.png)",
        _tables(results, "step", head, _step_rows, without="fractions"),
    )


def _step_rows(found: dict[str, Any]) -> list[str]:
    rows = []
    for setting in found["settings"]:
        where = _where(found, setting)
        for arm, one in setting["arms"].items():
            wall = one["wall_s"]
            phases = [
                _ms(one["phases_s"][name]["median"]) if name in one["phases_s"] else ""
                for name in PHASES
            ]
            peak = f"{one['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in one else ""
            memory = f"{one['memory_ratio']:.2f}" if "memory_ratio" in one else ""
            rows.append(
                f"| {where} | {ARMS.get(arm, arm)} "
                f"| {_ms(wall['median'])} ({_ms(wall['q25'])}-{_ms(wall['q75'])}) "
                f"| {' | '.join(phases)} | {_number(one['atoms_per_s']['median'])} | {peak} "
                f"| {_spread(one['ratio'])} | {_ratio(one['process_ratio'])} | {memory} |"
            )
            where = ""
    return rows


def ratios(results: Path) -> str:
    """Time and memory of each arm as a ratio to upstream's plain step; for the README."""
    head = (
        "| model, batch | ours, plain | naive NDeM | **ours, NDeM** | DeNS "
        "| peak memory: naive NDeM | peak memory: **ours, NDeM** |\n| --- |" + " --- |" * 6
    )

    def rows(found: dict[str, Any]) -> list[str]:
        lines = []
        for setting in found["settings"]:
            arms = setting["arms"]
            times = [
                _ratio(arms.get(a, {}).get("ratio")) for a in ("plain", "naive", "ndem", "dens")
            ]
            memory = [arms.get(a, {}).get("memory_ratio") for a in ("naive", "ndem")]
            cells = [*times, *("" if m is None else f"{m:.2f}" for m in memory)]
            lines.append(f"| {_where(found, setting)} | {' | '.join(cells)} |")
        return lines

    return _tables(results, "step", head, rows, without="fractions")


def fractions(results: Path) -> str:
    """Time of an NDeM step against task.ndem.fraction."""
    head = "| model, batch | fraction | step (ms) | to upstream | to ours, plain |\n" + "| --- " * 5

    def rows(found: dict[str, Any]) -> list[str]:
        lines = []
        for setting in found["settings"]:
            plain = setting["arms"].get("plain")
            for arm in sorted(setting["arms"], key=_fraction):
                kind, _, fraction = arm.partition("@")
                if kind not in ("plain", "ndem"):
                    continue
                one = setting["arms"][arm]
                to_plain = (
                    one["wall_s"]["median"] / plain["wall_s"]["median"] if plain else float("nan")
                )
                lines.append(
                    f"| {_where(found, setting)} | {'0' if kind == 'plain' else fraction or '1'} "
                    f"| {_ms(one['wall_s']['median'])} | {_spread(one['ratio'])} | {to_plain:.2f} |"
                )
        return lines

    return _tables(results, "step", head + "|", rows, only="fractions")


def inference(results: Path) -> str:
    """Inference: energies and forces."""
    head = (
        "| model, batch | arm | ms | structures/s | atoms/s | time | processor time "
        "| forces differ by |\n| --- |" + " --- |" * 7
    )

    def rows(found: dict[str, Any]) -> list[str]:
        lines = []
        for setting in found["settings"]:
            for arm, one in setting["arms"].items():
                wall = one["wall_s"]
                difference = one["difference"].get("forces")
                lines.append(
                    f"| {_where(found, setting)} | {arm} "
                    f"| {_ms(wall['median'])} ({_ms(wall['q25'])}-{_ms(wall['q75'])}) "
                    f"| {_number(one['structures_per_s']['median'])} "
                    f"| {_number(one['atoms_per_s']['median'])} | {_spread(one['ratio'])} "
                    f"| {_ratio(one['process_ratio'])} "
                    f"| {'' if difference is None else f'{difference:.0e}'} |"
                )
        return lines

    return _tables(results, "inference", head, rows)


def data(results: Path) -> str:
    """Data readers by number of workers, and what the models in the step table need."""
    head = (
        "| reader | workers | structures/s | atoms/s | until the first batch (s) "
        "| to fairchem's |\n| --- |" + " --- |" * 5
    )

    def rows(found: dict[str, Any]) -> list[str]:
        lines = []
        for row in found["rows"]:
            speed = row["structures_per_s"]
            lines.append(
                f"| `{row['reader']}` | {row['workers']} | {_number(speed['median'])} "
                f"({_number(speed['q25'])}-{_number(speed['q75'])}) "
                f"| {_number(row['atoms_per_s']['median'])} | {row['start_s']['median']:.2f} "
                f"| {_spread(row['ratio'])} |"
            )
        needed = [
            f"{ARMS.get(arm, arm).strip('*')}: {_number(need['atoms_per_s'])} atoms/s, "
            f"{need['workers']} worker(s)"
            for arm, need in (found.get("needed") or {}).items()
            if need["workers"] is not None
        ]
        if needed:
            lines += ["", f"Workers of `ndem_lmdb` that keep it fed: {'; '.join(needed)}."]
        return lines

    return _tables(results, "data", head, rows)


def scaling(results: Path) -> str:
    """How the cost of a step grows: exponents, and ratios at both ends."""
    head = (
        "| grows | from, to | arm | step from, to (ms) | exponent | to upstream from, to |\n| --- |"
        + " --- |" * 5
    )

    def rows(found: dict[str, Any]) -> list[str]:
        lines = []
        for axis in found["axes"].values():
            first, last = axis["points"][0], axis["points"][-1]
            for arm, k in axis["exponent"].items():
                ends = (first["arms"][arm], last["arms"][arm])
                lines.append(
                    f"| {axis['what']} | {first['value']}, {last['value']} "
                    f"({first['edges']:,}, {last['edges']:,} edges) | {ARMS.get(arm, arm)} "
                    f"| {', '.join(_ms(end['wall_s']['median']) for end in ends)} "
                    f"| {'' if k is None else f'{k:.2f}'} "
                    f"| {', '.join(_ratio(end['ratio']) for end in ends)} |"
                )
        return lines

    return _with_picture(
        "![Cost against atoms, edges, degree, layers and batch](images/bench_scaling.png)",
        _tables(results, "scaling", head, rows),
    )


def _with_picture(picture: str, table: str) -> str:
    """The table with its figure, which experiments/cost.py draws; paths relative to docs/."""
    return table if table == NOT_RUN else f"{picture}\n\n{table}"


def _tables(
    results: Path, what: str, head: str, rows: Any, only: str | None = None, without: str = "?"
) -> str:
    """One table per machine with all results of a command, and their origin."""
    out = []
    for device in ("cuda", "cpu"):
        paths = [
            path
            for path in sorted(results.glob(f"bench_{what}*.json"))
            if ("cuda" in path.stem.split("_")) == (device == "cuda")
            and without not in path.stem
            and (only is None or only in path.stem)
        ]
        if not paths:
            continue
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if what == "step":  # from the smallest model to the largest
            order = sorted(range(len(found)), key=lambda i: _parameters(found[i]))
            found, paths = [found[i] for i in order], [paths[i] for i in order]
        lines = [line for one in found for line in rows(one)]
        out.append("\n".join([head, *lines, "", _origin(found, paths)]))
    return "\n\n".join(out) or NOT_RUN


def _fraction(arm: str) -> float:
    """Fraction of the structures that have a second view in an arm."""
    kind, _, fraction = arm.partition("@")
    return float(fraction or kind == "ndem")


def _parameters(found: dict[str, Any]) -> int:
    arms = [setting["arms"]["upstream"] for setting in found["settings"]]
    return max((arm["parameters"] for arm in arms), default=0)


def _origin(found: list[dict[str, Any]], paths: list[Path]) -> str:
    hardware = found[0]["hardware"]
    machine = hardware["gpus"][0] if str(found[0].get("device")).startswith("cuda") else (
        f"{hardware['cpu']}, {found[0]['threads']} thread(s)" if "threads" in found[0]
        else f"{hardware['cores']} cores of {hardware['cpu']}"
    )  # fmt: skip
    commits = sorted({one["commit"][:10] for one in found})
    sets = sorted({f"{one['data']['path']} ({one['data']['hash']})" for one in found})
    links = ", ".join(f"[{path.stem}](results/{path.name})" for path in paths)
    return (
        f"Median (quartiles) of interleaved rounds on {', '.join(sets)}. {machine}, torch "
        f"{hardware['torch']}, commit {', '.join(commits)}; all numbers: {links}."
    )


def _where(found: dict[str, Any], setting: dict[str, Any]) -> str:
    edges = next(iter(setting["arms"].values())).get("edges")
    size = f"{setting['atoms']['median']:.0f} atoms" + (f", {edges:,} edges" if edges else "")
    return f"{found['model_name']} ({sizes(found['model'])}), batch {setting['batch_size']}: {size}"


def sizes(model: str) -> str:
    """Layers and degrees from the description of a model."""
    parts = model.split(", ")
    return ", ".join(part for part in parts[1:] if "channels" not in part) or model


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f}"


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['q25']:.2f}-{found['q75']:.2f})"


COST_TABLES = {
    "bench_ratios": ratios,
    "bench_step": step,
    "bench_fractions": fractions,
    "bench_inference": inference,
    "bench_data": data,
    "bench_scaling": scaling,
}
