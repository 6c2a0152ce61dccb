"""Facts about runs: configuration, commit, data, hardware, weights; and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fairchem_kit.report.page.arm import method
from fairchem_kit.report.page.comparable import Arms
from fairchem_kit.report.page.evaluations import Evaluation
from fairchem_kit.report.page.runs import Run
from fairchem_kit.report.page.series import cost, summary
from fairchem_kit.report.page.table import number, without_empty_columns
from fairchem_kit.words import counted


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) pairs describing a run."""
    starts = run.record.get("starts") or []
    config, optim = run.config, run.config.get("optim") or {}
    found = [
        ("directory", f"{run.run_dir} (run {run.run_id})"),
        ("state", run.state),
        ("steps", f"{run.steps}{_epochs(run)}"),
        ("method", method(run)),
        ("model", _model(run)),
        ("data", _data(config)),
        ("batch", _batch(run, optim)),
        ("seed", "not recorded" if run.seed is None else str(run.seed)),
        ("weights in validation", _weights(run)),
        ("best checkpoint", _best(run)),
        ("time", _time(run, starts)),
        ("commit", _distinct(starts, "commit")),
        ("hardware", _hardware(starts)),
        ("started", _distinct(starts, "date")),
    ]
    return [(what, value) for what, value in found if value]


def _epochs(run: Run) -> str:
    if run.epochs is None:
        return ""
    planned = "" if run.planned_epochs is None else f" of {run.planned_epochs}"
    return f" (epoch {run.epochs:.3g}{planned})"


def _model(run: Run) -> str:
    model = run.config.get("model") or {}
    name = (model.get("backbone") or {}).get("model") or model.get("name") or "not recorded"
    count = (run.record.get("summary") or {}).get("num_params")
    return f"{name}, {count / 1e6:.2f} M parameters" if count else str(name)


def _data(config: dict[str, Any]) -> str:
    sections = {"train": "dataset", "val": "val_dataset"}
    parts = [
        f"{name}: {config[key]['src']}"
        for name, key in sections.items()
        if (config.get(key) or {}).get("src")
    ]
    more = (config.get("task") or {}).get("validation_splits") or {}
    parts += [f"{n}: {s if isinstance(s, str) else s.get('src')}" for n, s in more.items()]
    return "; ".join(parts) or "not recorded"


def _batch(run: Run, optim: dict[str, Any]) -> str:
    starts = run.record.get("starts") or []
    ranks = starts[-1].get("ranks") if starts else None
    if "batch_size" not in optim:
        return ""
    return f"{counted(optim['batch_size'], 'structure')} per rank" + (
        f", {counted(ranks, 'rank')}" if ranks else ""
    )


def _weights(run: Run) -> str:
    decay = (run.config.get("optim") or {}).get("ema_decay")
    if not run.config:
        return "not recorded"
    return f"moving average (EMA), decay {decay}" if decay else "those of the step (no EMA)"


def _best(run: Run) -> str:
    if run.best_step is None:
        return "none: no validation yet"
    return f"step {run.best_step}, by {run.primary_metric} on val"


def _time(run: Run, starts: Sequence[Any]) -> str:
    seconds = run.history[-1].get("time_s")
    if seconds is None:
        return ""
    text = f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    return f"{text}, validation included" + (f", {len(starts)} starts" if len(starts) > 1 else "")


def _distinct(starts: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(s[key]) for s in starts if s.get(key))) or "not recorded"


def _hardware(starts: Sequence[dict[str, Any]]) -> str:
    texts = []
    for start in starts:
        known = start.get("hardware") or {}
        gpus = known.get("gpus") or []
        device = f"{len(gpus)} x {gpus[0]}" if gpus else known.get("cpu") or ""
        texts.append(f"{device}, torch {known.get('torch')}")
    return "; ".join(dict.fromkeys(texts)) or "not recorded"


def config_text(run: Run) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(run.config, sort_keys=True, allow_unicode=True) if run.config else ""


def cost_rows(arms: Arms, baseline: str | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cost table: each arm's steps, relative to the baseline's."""
    head = ["arm", "s/step", f"relative to {baseline}", "atoms/s", "peak memory (GB)"]
    head += ["waiting for data (%)", "second view's share of forward and backward (%)"]
    head += ["whole time (min)"]
    rows = []
    base = summary([cost(run, "s_per_step") for run in arms.get(baseline or "", [])])
    for arm, runs in arms.items():
        values = {
            name: summary([_scaled(cost(run, name), factor) for run in runs])
            for name, factor in (
                ("s_per_step", 1), ("atoms_per_s", 1), ("memory_GB", 1),
                ("data_share_of_time", 100), ("ndem_share_of_time", 100),
            )
        }  # fmt: skip
        seconds = values["s_per_step"]
        relative = f"{seconds.mean / base.mean:.2f}" if seconds and base else "-"
        whole = summary([_scaled(run.history[-1].get("time_s"), 1 / 60) for run in runs])
        cells = [number(value) for value in values.values()]
        rows.append([arm, cells[0], relative, *cells[1:], number(whole)])
    return without_empty_columns(head, rows)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def missing(arms: Arms, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the page does not show, and how to add it."""
    runs = [run for members in arms.values() for run in members]
    evaluated = {id(e.run) for e in evaluations}
    notes = []

    def note(which: list[Run], text: str) -> None:
        if which:
            names = ", ".join(run.name for run in which)
            notes.append(f"{'All runs' if len(which) == len(runs) > 1 else names}: {text}")

    note(
        [run for run in runs if not run.record],
        "no run.json next to the history (made by an older version), so commit and hardware are "
        "not known.",
    )
    note([run for run in runs if not run.config], "no configuration was found.")
    note(
        [run for run in runs if not run.validation_splits],
        "no validation yet: optim.eval_every is longer than the run so far.",
    )
    note(
        [run for run in runs if run.validation_splits == ["val"] and id(run) not in evaluated],
        "validated on one split. task.validation_splits adds others, and their mean.",
    )
    note(
        [run for run in runs if cost(run, "s_per_step") is None],
        "no throughput or memory: fairchem's own trainer does not log them, nor does a run shorter "
        "than --print-every steps.",
    )
    lacking = [run for run in runs if id(run) not in evaluated]
    if lacking:
        note(
            lacking,
            "no parity and no errors by element, size of the force or adsorbate. Make them with "
            f"`ndem eval {_example(lacking[0])} --data SPLIT... --out {lacking[0].run_dir}/eval`.",
        )
    return notes


def _example(run: Run) -> Path:
    return run.run_dir / "checkpoints" / run.run_id / "best_checkpoint.pt"
