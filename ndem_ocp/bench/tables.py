"""The tables that the commands of ``ndem bench`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairchem_kit.provenance import hardware
from fairchem_kit.words import counted

NOT_RUN = "-"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first is aligned left, numbers right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def head_lines(result: dict[str, Any]) -> str:
    """What will be measured and where."""
    found = hardware()
    if result["device"].startswith("cuda"):
        machine = found["gpus"][0]
    else:
        machine = f"{found['cpu']}, {counted(result['threads'], 'thread')}"
    precision = f"{result['dtype']}{', amp' if result['amp'] else ''}"
    if result["matmul_precision"] != "highest":
        precision += f", matrix products {result['matmul_precision']}"
    return f"{result['model']}; {result['data']['path']}; {precision}; {machine}"


def number(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, without an exponent."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text else text


def step_table(setting: dict[str, Any]) -> str:
    """One batch size of ``ndem bench step``."""
    head = [
        "arm", "step ms", "quartiles", "forward", "(graph)", "loss", "backward", "optimizer",
        "CPU ms", "atoms/s", "peak MB", "time", "CPU time", "memory",
    ]  # fmt: skip
    rows = []
    for arm, found in setting["arms"].items():
        wall, phases = found["wall_s"], found["phases_s"]
        rows.append(
            [
                arm,
                _ms(wall["median"]),
                f"{_ms(wall['q25'])}-{_ms(wall['q75'])}",
                *(
                    _ms(phases[name]["median"]) if name in phases else NOT_RUN
                    for name in ("forward", "graph", "loss", "backward", "optimizer")
                ),
                _ms(found["process_s"]["median"]),
                number(found["atoms_per_s"]["median"]),
                f"{found['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in found else NOT_RUN,
                _ratio(found.get("ratio", {}).get("median")),
                _ratio(found.get("process_ratio", {}).get("median")),
                _ratio(found.get("memory_ratio")),
            ]
        )
    loading = ", ".join(
        f"{name} {1000 * found['median']:.2f} ms" for name, found in setting["loading_s"].items()
    )
    first = next(iter(setting["arms"].values()))
    title = (
        f"batch {setting['batch_size']}: {setting['atoms']['median']:.0f} atoms, "
        f"{counted(first['edges'], 'edge')}; median of {setting['rounds']} rounds; last three "
        "columns: ratios to upstream"
    )
    return f"{title}\n{text_table(head, rows)}\nreading and collating a batch: {loading}"


def ratios_line(settings: Sequence[dict[str, Any]]) -> str:
    """The last line of ``ndem bench step``, of the first batch size."""
    arms = settings[0]["arms"] if settings else {}
    values = {
        name: _ratio(arms.get(name, {}).get("ratio", {}).get("median"))
        for name in ("plain", "naive", "ndem")
    }
    values["memory"] = _ratio(arms.get("ndem", {}).get("memory_ratio"))
    return "ratios: " + " ".join(f"{name}={value}" for name, value in values.items())


def inference_table(settings: Sequence[dict[str, Any]]) -> str:
    """All batch sizes of ``ndem bench inference``."""
    head = [
        "batch", "atoms", "arm", "ms", "quartiles", "(graph)", "structures/s", "atoms/s", "time",
        "CPU time", "forces differ by",
    ]  # fmt: skip
    rows = []
    for setting in settings:
        for arm, found in setting["arms"].items():
            wall, phases = found["wall_s"], found["phases_s"]
            rows.append(
                [
                    str(setting["batch_size"]),
                    f"{setting['atoms']['median']:.0f}",
                    arm,
                    _ms(wall["median"]),
                    f"{_ms(wall['q25'])}-{_ms(wall['q75'])}",
                    _ms(phases["graph"]["median"]) if "graph" in phases else NOT_RUN,
                    number(found["structures_per_s"]["median"]),
                    number(found["atoms_per_s"]["median"]),
                    _ratio(found["ratio"]["median"]),
                    _ratio(found["process_ratio"]["median"]),
                    f"{found['difference'].get('forces', 0.0):.0e}",
                ]
            )
    return text_table(head, rows)


def data_table(result: dict[str, Any], needed: dict[str, dict[str, Any]]) -> str:
    """``ndem bench data``, and how many workers each model needs."""
    head = ["reader", "workers", "structures/s", "quartiles", "atoms/s", "start s", "to lmdb"]
    rows = []
    for row in result["rows"]:
        speed = row["structures_per_s"]
        rows.append(
            [
                row["reader"],
                str(row["workers"]),
                number(speed["median"]),
                f"{number(speed['q25'])}-{number(speed['q75'])}",
                number(row["atoms_per_s"]["median"]),
                f"{row['start_s']['median']:.2f}",
                _ratio(row["ratio"]["median"]),
            ]
        )
    lines = [
        f"{result['data']['path']}; batches of {result['batch_size']}, "
        f"{result['batches']} in a pass",
        text_table(head, rows),
    ]
    for name, found in needed.items():
        workers = found["workers"]
        lines.append(
            f"{name}, {number(found['atoms_per_s'])} atoms/s: "
            + (
                "measure --workers 1 as well"
                if workers is None
                else f"{counted(workers, 'worker')}"
            )
        )
    return "\n".join(lines)


def scaling_table(name: str, axis: dict[str, Any]) -> str:
    """One axis of ``ndem bench scaling``."""
    arms = list(axis["exponent"])
    head = [name, "batch", "atoms", "edges", *(f"{arm} ms" for arm in arms)]
    head += [f"{arm}/upstream" for arm in arms[1:]]
    rows = []
    for point in axis["points"]:
        found = point["arms"]
        rows.append(
            [
                str(point["value"]),
                str(point["batch_size"]),
                f"{point['atoms']['median']:.0f}",
                str(point["edges"]),
                *(_ms(found[arm]["wall_s"]["median"]) for arm in arms),
                *(_ratio(found[arm]["ratio"]["median"]) for arm in arms[1:]),
            ]
        )
    growth = ", ".join(f"{arm} {k:.2f}" for arm, k in axis["exponent"].items() if k is not None)
    return f"{axis['what']}\n{text_table(head, rows)}\nexponents: {growth or NOT_RUN}"


def _ms(seconds: float) -> str:
    return number(1000 * seconds)


def _ratio(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.2f}"
