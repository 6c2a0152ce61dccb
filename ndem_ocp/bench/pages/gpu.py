"""Tables of docs/cost.md on GPUs: what is predicted, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ndem_ocp.bench.pages.table import NOT_RUN, read, table

# what is compared with fairchem's: (words, part of both files, arm, aim)
AIMS = (
    ("a plain step", "step", "plain", "0.5"),
    ("a step with NDeM", "step", "ndem", "0.9"),
    ("a step with `place: instead`", "step", "instead", "as plain"),
    ("energies and forces", "inference", "plain", "0.5"),
)
KINDS = ("tf32", "fp32")
ARMS = ("upstream", "plain", "ndem")
MEMORY = (
    ("fairchem's, plain", "upstream"),
    ("plain", "plain"),
    ("NDeM", "ndem"),
    ("`place: instead`", "instead"),
)


def gpu_predicted(results: Path) -> str:
    """Ratios to fairchem's plain step: aims, predictions of gpu/predict.py, measurements."""
    found = read(results, "gpu_predicted")
    if found is None:
        return NOT_RUN
    cards, rows = measured(results), []
    for words, part, arm, aim in AIMS:
        for kind in KINDS:
            both = [found[part][name] for name in (arm, f"{arm}, kernels")]
            predicted = [f"{each[f'{kind}, to upstream']:.2f}" for each in both]
            seen = [_seen(cards, part, kind, name) for name in (f"{arm}, torch's code", arm)]
            rows.append([words, kind.upper(), aim, *predicted, *seen])
    head = ["ratio to fairchem's", "products", "aim", "predicted: torch's code"]
    head += ["predicted: kernels", "measured: torch's code", "measured: kernels"]
    device, commit = found["device"], _commit(found)
    origin = (
        f"{found['model']}, {found['layers']} layers, {found['atoms']} atoms in a batch, predicted "
        f"for one {device['name']} by `python -m ndem_ocp.bench.gpu.predict`, commit {commit}; "
        "[all numbers](results/gpu_predicted.json). "
        f"Measured: {_origin(cards)}."
    )
    return f"{table(head, rows)}\n\n{origin}"


def gpu_memory(results: Path) -> str:
    """Peak memory of a training step: predictions of gpu/predict.py, measurements."""
    found = read(results, "gpu_predicted")
    if found is None or "memory" not in found:
        return NOT_RUN
    cards, rows = measured(results), []
    for words, arm in MEMORY:
        for code, with_kernels in (("torch's code", False), ("kernels", True)):
            if arm == "upstream" and with_kernels:
                continue
            each = found["memory"][f"{arm}, kernels" if with_kernels else arm]
            label = arm if with_kernels or arm == "upstream" else f"{arm}, torch's code"
            rows.append(
                [
                    words, "fairchem's" if arm == "upstream" else code, f"{each['GiB']:.1f}",
                    f"{each['to upstream']:.2f}", _peaks(cards, label),
                ]
            )  # fmt: skip
    head = ["a training step", "code", "predicted: GiB", "to fairchem's", "measured: GiB"]
    origin = (
        f"{found['model']}, {found['layers']} layers, {found['atoms']} atoms in a batch, float32, "
        "predicted by `python -m ndem_ocp.bench.gpu.predict`, commit "
        f"{_commit(found['memory'])}; [all numbers](results/gpu_predicted.json). "
        f"Measured: {_origin(cards)}."
    )
    return f"{table(head, rows)}\n\n{origin}"


def gpu_measured(results: Path) -> str:
    """Steps of every precision and batch size that were timed, and the time of kernels alone."""
    cards = measured(results)
    parts = [part for content in cards.values() if (part := _steps(content))]
    return "\n\n".join([*parts, f"Measured: {_origin(cards)}."]) if parts else NOT_RUN


def _steps(content: dict[str, Any]) -> str:
    times = (content.get("step_times") or {}).get("31M") or {}
    found = {label: each for label, each in times.items() if isinstance(each, dict)}
    rows = []
    for label in sorted(found, key=_place_of_label):
        setting = found[label]
        arms = {arm: setting.get(arm) or {} for arm in ("upstream", "plain", "ndem", "instead")}
        if not any(arms.values()):
            continue
        ms = [_number(arms[arm].get("ms"), "{:.0f}") for arm in ("upstream", "ndem")]
        ratios = [_number(each.get("to upstream")) for each in list(arms.values())[1:]]
        peaks = [_number(arms[arm].get("peak, GiB"), "{:.1f}") for arm in list(arms)[:3]]
        if "upstream" in setting.get("out of memory", ()):
            ms[0] = peaks[0] = "out of memory"
        rows.append([label, *ms, *ratios, *peaks])
    if not rows:
        return ""
    head = ["31M", "fairchem's: ms", "NDeM: ms", "ratio: plain", "NDeM", "`place: instead`"]
    head += ["fairchem's: GiB", "plain: GiB", "NDeM: GiB"]
    return "\n\n".join([table(head, rows), *_kernels(content)])


def _kernels(content: dict[str, Any]) -> list[str]:
    """A sentence on the time in kernels alone; [] if it was not measured."""
    found = content.get("kernels") or {}
    ms = {arm: (found.get(arm) or {}).get("step", {}).get("kernel ms") for arm in ARMS}
    if None in ms.values():
        return []
    return [
        f"The card works on a step ({found.get('batch')}) for {ms['upstream']:.0f} ms with "
        f"fairchem's code, for {ms['plain']:.0f} ms in a plain step of ours and for "
        f"{ms['ndem']:.0f} ms with NDeM (ratios {ms['plain'] / ms['upstream']:.2f} and "
        f"{ms['ndem'] / ms['upstream']:.2f}); in the rest of a step's time it waits for Python."
    ]


def _place_of_label(label: str) -> tuple[int, int]:
    """By products, then by batch size."""
    kind, batch, *_ = label.split(", ")
    kinds = ("tf32", "fp32", "bf16", "fp16")
    return kinds.index(kind) if kind in kinds else len(kinds), int(batch.split()[-1])


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return NOT_RUN if value is None else form.format(value)


def _commit(found: dict[str, Any]) -> str:
    commit = found["commit"]
    return commit[:10] + (" and changes since" if commit.endswith("-dirty") else "")


def _peaks(cards: dict[str, dict[str, Any]], arm: str) -> str:
    """What the step took on each card, for the batch size next to the predicted one."""
    found = []
    for content in cards.values():
        setting = _setting(content, "31M", "tf32, batch 8")
        if (peak := (setting.get(arm) or {}).get("peak, GiB")) is not None:
            found.append(f"{peak:.1f}")
    return ", ".join(found) or NOT_RUN


def measured(results: Path) -> dict[str, dict[str, Any]]:
    """{file name: result} of gpu_check.py on GPUs, the newest of each card."""
    found: dict[str, dict[str, Any]] = {}
    newest: dict[str, str] = {}
    for path in sorted((results / "gpu").glob("*.json"), key=lambda each: each.stem[-15:]):
        content = json.loads(path.read_text(encoding="utf-8"))
        card = (content.get("environment") or {}).get("card")
        if card:
            found.pop(newest.get(card["name"], ""), None)
            newest[card["name"]], found[path.name] = path.name, content
    return found


def _seen(cards: dict[str, dict[str, Any]], part: str, kind: str, arm: str) -> str:
    """The ratio on each card, for the batch size next to the predicted one."""
    numbers = []
    for content in cards.values():
        setting = _setting(content, "31M" if part == "step" else part, f"{kind}, batch 8")
        if part == "step":
            ratio = (setting.get(arm) or {}).get("to upstream")
        else:
            both = arm in setting and "upstream" in setting
            ratio = setting[arm] / setting["upstream"] if both else None
        if ratio is not None:
            numbers.append(f"{ratio:.2f}")
    return ", ".join(numbers) or NOT_RUN


def _setting(content: dict[str, Any], part: str, label: str) -> dict[str, Any]:
    """What was measured with these products and this batch size; {} if it was not.

    The file's label also has the number of atoms.
    """
    found = (content.get("step_times") or {}).get(part) or {}
    for name, setting in found.items():
        if f"{name}, ".startswith(f"{label}, ") and isinstance(setting, dict):
            return setting
    return {}


def _origin(cards: dict[str, dict[str, Any]]) -> str:
    links = []
    for name, content in cards.items():
        own = content["environment"]
        facts = [own["card"]["name"]]
        torch = (own.get("versions") or {}).get("torch")
        facts += [f"torch {torch}"] if torch else []
        facts += [date] if (date := own.get("date") or name[-20:-10]) else []
        facts += [f"commit {_commit(own)}"] if own.get("commit") else []
        atoms = _setting(content, "31M", "tf32, batch 8").get("atoms")
        facts += [f"{min(atoms)} to {max(atoms)} atoms in a batch"] if atoms else []
        links.append(f"{', '.join(facts)} ([all numbers](results/gpu/{name}))")
    return "; ".join(links) or f"{NOT_RUN} (`make gpu-check`)"


GPU_TABLES = {
    "gpu_predicted": gpu_predicted,
    "gpu_memory": gpu_memory,
    "gpu_measured": gpu_measured,
}
