"""Tables in docs/cost.md from results/bench_*.json; GPU results (bench_*_cuda*.json) first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, table

ARMS = {
    "upstream": "upstream, plain",
    "naive": "naive NDeM, two passes of upstream's model",
    "joint": "NDeM, one pass of upstream's model",
    "plain": "ours, plain",
    "ndem": "**ours, NDeM**",
    "dens": "DeNS on upstream's model",
}
PHASES = ("forward", "graph", "loss", "backward", "optimizer")
Row = list[Any]


def step(results: Path) -> str:
    """All models, batch sizes and arms of ``ndem bench step``."""
    head = ["model, batch", "arm", "step (ms)", "forward", "of it graph", "loss", "backward",
            "optimizer", "atoms/s", "peak memory (MB)", "time", "processor time",
            "memory"]  # fmt: skip

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for setting in found["settings"]:
            where = _where(found, setting)
            for arm, one in setting["arms"].items():
                phases = one["phases_s"]
                yield [
                    where,
                    ARMS.get(arm, arm),
                    _quartiles_ms(one["wall_s"]),
                    *(_ms(phases[name]["median"]) if name in phases else "" for name in PHASES),
                    _number(one["atoms_per_s"]["median"]),
                    f"{one['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in one else "",
                    _spread(one["ratio"]),
                    _ratio(one["process_ratio"]),
                    _two_digits(one.get("memory_ratio")),
                ]
                where = ""

    return _with_picture(
        "![Time and memory of a step by arm](images/bench_step.png)",
        _tables(results, "step", head, rows, without="fractions"),
    )


def ratios(results: Path) -> str:
    """Time and memory of each arm as a ratio to upstream's plain step; for the README."""
    head = ["model, batch", "ours, plain", "naive NDeM", "**ours, NDeM**", "DeNS",
            "peak memory: naive NDeM", "peak memory: **ours, NDeM**"]  # fmt: skip

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for setting in found["settings"]:
            arms = setting["arms"]
            times = [arms.get(arm, {}).get("ratio") for arm in ("plain", "naive", "ndem", "dens")]
            memory = [arms.get(arm, {}).get("memory_ratio") for arm in ("naive", "ndem")]
            yield [_where(found, setting), *map(_ratio, times), *map(_two_digits, memory)]

    return _tables(results, "step", head, rows, without="fractions")


def fractions(results: Path) -> str:
    """Time of an NDeM step against task.ndem.fraction."""
    head = ["model, batch", "fraction", "step (ms)", "to upstream", "to ours, plain"]

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for setting in found["settings"]:
            plain = setting["arms"].get("plain")
            for arm in sorted(setting["arms"], key=_fraction):
                kind, _, fraction = arm.partition("@")
                if kind not in ("plain", "ndem"):
                    continue
                one = setting["arms"][arm]
                median = one["wall_s"]["median"]
                to_plain = median / plain["wall_s"]["median"] if plain else float("nan")
                yield [
                    _where(found, setting),
                    "0" if kind == "plain" else fraction or "1",
                    _ms(median),
                    _spread(one["ratio"]),
                    f"{to_plain:.2f}",
                ]

    return _tables(results, "step", head, rows, only="fractions")


def inference(results: Path) -> str:
    """Inference: energies and forces."""
    head = ["model, batch", "arm", "ms", "structures/s", "atoms/s", "time", "processor time",
            "forces differ by"]  # fmt: skip

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for setting in found["settings"]:
            for arm, one in setting["arms"].items():
                difference = one["difference"].get("forces")
                yield [
                    _where(found, setting),
                    arm,
                    _quartiles_ms(one["wall_s"]),
                    _number(one["structures_per_s"]["median"]),
                    _number(one["atoms_per_s"]["median"]),
                    _spread(one["ratio"]),
                    _ratio(one["process_ratio"]),
                    "" if difference is None else f"{difference:.0e}",
                ]

    return _tables(results, "inference", head, rows)


def data(results: Path) -> str:
    """Data readers by number of workers, and what the models in the step table need."""
    head = ["reader", "workers", "structures/s", "atoms/s", "until the first batch (s)",
            "to fairchem's"]  # fmt: skip

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for row in found["rows"]:
            speed = row["structures_per_s"]
            yield [
                f"`{row['reader']}`",
                row["workers"],
                f"{_number(speed['median'])} ({_number(speed['q25'])}-{_number(speed['q75'])})",
                _number(row["atoms_per_s"]["median"]),
                f"{row['start_s']['median']:.2f}",
                _spread(row["ratio"]),
            ]

    def below(found: dict[str, Any]) -> str:
        needed = [
            f"{ARMS.get(arm, arm).strip('*')}: {_number(need['atoms_per_s'])} atoms/s, "
            f"{need['workers']} worker(s)"
            for arm, need in (found.get("needed") or {}).items()
            if need["workers"] is not None
        ]
        return f"Workers of `ndem_lmdb` that keep it fed: {'; '.join(needed)}." if needed else ""

    return _tables(results, "data", head, rows, below)


def scaling(results: Path) -> str:
    """How the cost of a step grows: exponents, and ratios at both ends."""
    head = ["grows", "from, to", "arm", "step from, to (ms)", "exponent", "to upstream from, to"]

    def rows(found: dict[str, Any]) -> Iterator[Row]:
        for axis in found["axes"].values():
            first, last = axis["points"][0], axis["points"][-1]
            for arm, k in axis["exponent"].items():
                ends = (first["arms"][arm], last["arms"][arm])
                yield [
                    axis["what"],
                    f"{first['value']}, {last['value']} ({first['edges']:,}, {last['edges']:,} "
                    "edges)",
                    ARMS.get(arm, arm),
                    ", ".join(_ms(end["wall_s"]["median"]) for end in ends),
                    _two_digits(k),
                    ", ".join(_ratio(end["ratio"]) for end in ends),
                ]

    return _with_picture(
        "![Cost against atoms, edges, degree, layers and batch](images/bench_scaling.png)",
        _tables(results, "scaling", head, rows),
    )


def _with_picture(picture: str, table: str) -> str:
    """The table with its figure, which experiments/cost.py draws; paths relative to docs/."""
    return table if table == NOT_RUN else f"{picture}\n\n{table}"


def _tables(
    results: Path,
    what: str,
    head: Row,
    rows: Callable[[dict[str, Any]], Iterator[Row]],
    below: Callable[[dict[str, Any]], str] = lambda found: "",
    *,
    only: str = "",
    without: str = "?",
) -> str:
    """One table per machine with all results of a command, and their origin.

    Args:
        results: folder of results/bench_WHAT*.json.
        head: of the table.
        rows: of one file.
        below: a sentence about one file, below the table.
        only, without: parts of the files' names.
    """
    out = []
    for device in ("cuda", "cpu"):
        paths = [
            path
            for path in sorted(results.glob(f"bench_{what}*.json"))
            if ("cuda" in path.stem.split("_")) == (device == "cuda")
            and without not in path.stem
            and only in path.stem
        ]
        if not paths:
            continue
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if what == "step":  # from the smallest model to the largest
            order = sorted(range(len(found)), key=lambda i: _parameters(found[i]))
            found, paths = [found[i] for i in order], [paths[i] for i in order]
        made = table(head, [row for one in found for row in rows(one)])
        out += [made, *filter(None, map(below, found)), _origin(found, paths)]
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


def _quartiles_ms(found: dict[str, float]) -> str:
    return f"{_ms(found['median'])} ({_ms(found['q25'])}-{_ms(found['q75'])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else _two_digits(found["median"])


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
