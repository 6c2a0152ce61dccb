"""The results of a sweep: numbers with their origin, and a table."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from fairchem.core.common.utils import load_config

from fairchem_kit.checkpoints import read_checkpoint
from fairchem_kit.history.file import read_history
from fairchem_kit.history.run_record import read_run_record
from fairchem_kit.launch.sweep_file import DONE, LOGS, RUN_ID, Sweep, run_directory
from fairchem_kit.markdown import table
from fairchem_kit.provenance import config_hash, files_hash, provenance


def collect(
    sweep: Sweep, out: Path, arms: list[str], seeds: list[int], overrides: list[str]
) -> dict[str, Any]:
    """Every run's test errors and curve, and each arm's mean and standard deviation over seeds."""
    found = {
        arm: [_run(sweep, run_directory(out, arm, seed), seed) for seed in seeds] for arm in arms
    }
    return {
        **provenance(Path(__file__).resolve().parents[2]),
        "about": sweep.about,
        "sweep": os.path.relpath(sweep.path),
        "config": os.path.relpath(sweep.config),
        "overrides": overrides,
        "data": {
            "test": hash_of_data(sweep.test),
            **_run_data(run_directory(out, arms[0], seeds[0])),
        },
        "seeds": seeds,
        "metrics": sweep.metrics,
        "units": {name: name.partition("_mae_")[2] or "1" for name in sweep.metrics},
        "config_hash": {arm: hash_of_arm(sweep, arm, overrides) for arm in arms},
        "arms": {
            arm: {
                "overrides": sweep.arms[arm],
                "runs": runs,
                "summary": {
                    name: summary([r["test"][name] for r in runs]) for name in sweep.metrics
                },
            }
            for arm, runs in found.items()
        },
    }


def hash_of_arm(sweep: Sweep, arm: str, overrides: list[str]) -> str:
    """Hash of the settings of an arm's runs."""
    config = load_config(str(sweep.config))[0]
    return config_hash({"config": config, "changes": sweep.arms[arm], "all": overrides})


def _run(sweep: Sweep, where: Path, seed: int) -> dict[str, Any]:
    done = json.loads((where / DONE).read_text())
    test = done["test"]
    missing = [name for name in sweep.metrics if name not in test]
    if missing:
        raise ValueError(
            f"{sweep.path}: the runs have no metric {missing[0]!r}. They have: {', '.join(test)}."
        )
    logs = where / LOGS / done.get("run_id", RUN_ID)
    history = read_history(logs)
    starts = read_run_record(logs).get("starts") or []
    curve = [
        {**{key: r[key] for key in ("step", "time_s", "process_s")}, "value": r[sweep.metrics[0]]}
        for r in history
        if r["split"] == "val" and sweep.metrics[0] in r
    ]
    last = history[-1]
    return {
        "seed": seed,
        "commits": sorted({start["commit"] for start in starts}),
        "devices": sorted({_device(start) for start in starts if "hardware" in start}),
        "steps": last["step"],
        "wall_s": last["time_s"],
        "process_s": last.get("process_s"),
        "test": {name: test[name] for name in sweep.metrics},
        "validation": curve,
    }


def _device(start: dict[str, Any]) -> str:
    """The processor that a run was started on: a GPU, or the CPU if there is none or on request."""
    hardware = start["hardware"]
    on_cpu = not hardware["gpus"] or "--cpu" in start.get("command", "").split()
    return hardware["cpu"] if on_cpu else hardware["gpus"][0]


def _run_data(where: Path) -> dict[str, str]:
    """Hashes of the training and validation data, from the configuration in the checkpoint."""
    run_id = json.loads((where / DONE).read_text()).get("run_id", RUN_ID)
    best = where / "checkpoints" / run_id / "best_checkpoint.pt"
    saved = read_checkpoint(best)["config"]
    sections = {"train": saved.get("dataset"), "val": saved.get("val_dataset")}
    return {name: hash_of_data(section["src"]) for name, section in sections.items() if section}


def hash_of_data(source: str) -> str:
    """Hash of the files of a data set; ``source``: an LMDB file or its folder."""
    path = Path(source)
    return files_hash(path if path.is_dir() else path.parent)


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one run) and number of runs."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "stdev": spread, "runs": len(values)}


def markdown(result: dict[str, Any]) -> str:
    """One row per arm: steps, processor time, mean ± standard deviation of every metric."""
    metrics = result["metrics"]
    rows = []
    for name, arm in result["arms"].items():
        steps = sorted({run["steps"] for run in arm["runs"]})
        cost = [run["process_s"] for run in arm["runs"] if run["process_s"]]
        cells = [
            name,
            str(len(arm["runs"])),
            " to ".join(map(str, steps if len(steps) < 3 else (steps[0], steps[-1]))),
            f"{statistics.mean(cost):.0f}" if cost else "not measured",
            *(number(arm["summary"][metric]) for metric in metrics),
        ]
        rows.append(cells)
    return table(["arm", "seeds", "steps", "process time (s)", *metrics], rows) + "\n"


def number(values: dict[str, Any]) -> str:
    """0.123 ± 0.004, the spread being the standard deviation over seeds; of a :func:`summary`."""
    mean, stdev = values["mean"], values["stdev"]
    return f"{mean:.4g}" if stdev is None else f"{mean:.4g} ± {stdev:.2g}"
