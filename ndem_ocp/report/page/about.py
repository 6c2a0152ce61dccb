"""What ran: configuration, commit, data, hardware, weights; and what could not be found out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ndem_ocp.report.page.curves import Arms
from ndem_ocp.report.page.evaluations import Evaluation
from ndem_ocp.report.page.runs import Run
from ndem_ocp.report.page.series import cost, summary
from ndem_ocp.report.page.table import number
from ndem_ocp.training.resume import changed_settings


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of one run, for people."""
    starts = run.record.get("starts") or []
    config, optim = run.config, run.config.get("optim") or {}
    found = [
        ("directory", f"{run.run_dir} (run {run.run_id})"),
        ("state", run.state),
        ("steps", f"{run.history[-1]['step']}{_epochs(run, optim)}"),
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


def method(run: Run) -> str:
    """Plain training, or the objective with the settings that matter most."""
    if run.is_plain is None:
        return "not recorded"
    if run.is_plain:
        return "plain training"
    ndem = run.ndem
    parts = [f"{ndem.get('objective', 'ndem')}, coefficient {ndem['coefficient']:g}"]
    for key, unit in (("sigma_min", " Å"), ("sigma_max", " Å"), ("corrupt_ratio", "")):
        if ndem.get(key) is not None:
            parts.append(f"{key} {ndem[key]:g}{unit}")
    parts.append(f"norm {ndem.get('norm')}")
    return ", ".join(parts)


def _epochs(run: Run, optim: dict[str, Any]) -> str:
    epoch = next((line["epoch"] for line in reversed(run.history) if "epoch" in line), None)
    if epoch is None:
        return ""
    planned = f" of {optim['max_epochs']}" if "max_epochs" in optim else ""
    return f" (epoch {epoch:.3g}{planned})"


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
    return f"{optim['batch_size']} structures a rank" + (f", {ranks} rank(s)" if ranks else "")


def _weights(run: Run) -> str:
    decay = (run.config.get("optim") or {}).get("ema_decay")
    if not run.config:
        return "not recorded"
    return f"moving average (EMA), decay {decay}" if decay else "the step's own (no EMA)"


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


def cost_rows(arms: Arms) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what the steps of each arm cost, relative to the first arm's."""
    head = ["arm", "s/step", "relative", "atoms/s", "peak memory (GB)", "waiting for data (%)"]
    head += ["second view's share of forward and backward (%)", "whole time (min)"]
    rows = []
    base = None
    for arm, runs in arms.items():
        values = {
            name: summary([_scaled(cost(run, name), factor) for run in runs])
            for name, factor in (
                ("s_per_step", 1), ("atoms_per_s", 1), ("memory_GB", 1),
                ("data_share_of_time", 100), ("ndem_share_of_time", 100),
            )
        }  # fmt: skip
        seconds = values["s_per_step"]
        base = base or seconds
        relative = f"{seconds.mean / base.mean:.2f}" if seconds and base else "-"
        whole = summary([_scaled(run.history[-1].get("time_s"), 1 / 60) for run in runs])
        cells = [number(value) for value in values.values()]
        rows.append([arm, cells[0], relative, *cells[1:], number(whole)])
    return head, rows


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def missing(arms: Arms, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the page does not show, and what would make it."""
    runs = [run for members in arms.values() for run in members]
    judged = {id(e.run) for e in evaluations}
    notes = []

    def note(which: list[Run], text: str) -> None:
        if which:
            names = ", ".join(run.name for run in which)
            notes.append(f"{'All runs' if len(which) == len(runs) > 1 else names}: {text}")

    note(
        [run for run in runs if not run.record],
        "no run.json beside the history (made by an older version), so commit and hardware are "
        "not known.",
    )
    note([run for run in runs if not run.config], "no configuration was found.")
    note(
        [run for run in runs if not run.validation_splits],
        "no validation yet: optim.eval_every is longer than the run so far.",
    )
    note(
        [run for run in runs if run.validation_splits == ["val"]],
        "validated on one split. task.validation_splits adds others, and their mean.",
    )
    note(
        [run for run in runs if cost(run, "s_per_step") is None],
        "no throughput or memory: fairchem's own trainer does not log them, nor does a run shorter "
        "than --print-every steps.",
    )
    note(
        [run for run in runs if id(run) not in judged],
        "no parity and no errors by element, size of the force or adsorbate. Make them with "
        f"`ndem eval {_example(runs)} --data SPLIT... --out {runs[0].run_dir}/eval`.",
    )
    return notes + _unlike(arms) + _shorter(arms)


def _example(runs: Sequence[Run]) -> Path:
    run = runs[0]
    return run.run_dir / "checkpoints" / run.run_id / "best_checkpoint.pt"


def _unlike(arms: Arms) -> list[str]:
    """Arms whose runs differ in more than the seed: their band mixes different things."""
    notes = []
    for arm, runs in arms.items():
        for run in runs[1:]:
            if runs[0].config and run.config:
                changes = changed_settings(runs[0].config, run.config)
                if changes:
                    notes.append(
                        f"{run.run_dir.name} is no repetition of {runs[0].run_dir.name}, though "
                        f"both are in the arm {arm!r}: {'; '.join(changes)}."
                    )
    return notes


def _shorter(arms: Arms) -> list[str]:
    """Runs that end before the others of their arm, whose mean ends there."""
    notes = []
    for runs in arms.values():
        ends = [run.history[-1]["step"] for run in runs]
        notes += [
            f"{run.run_dir.name} has {end} steps so far and others of its arm {max(ends)}: the "
            "arm's curves end there, and its row of the table joins runs of unequal length."
            for run, end in zip(runs, ends)
            if end < max(ends)
        ]
    return notes
