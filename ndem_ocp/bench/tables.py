"""The tables that the commands of ``ndem bench`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndem_ocp.report.provenance import hardware

NOT_RUN = "-"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine_line(device: str, threads: int) -> str:
    """Where this was measured."""
    found = hardware()
    if device.startswith("cuda"):
        return f"{found['gpus'][0]}, torch {found['torch']}"
    return f"{found['cpu']}, {threads} thread(s), torch {found['torch']}"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, without an exponent."""
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
        f"{first['edges']} edges; median of {setting['rounds']} rounds; last columns: ratios to upstream"
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


def _ms(seconds: float) -> str:
    return number(1000 * seconds)


def _ratio(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.2f}"
