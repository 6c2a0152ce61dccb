"""The fairchem command as a user runs it: a run, a run that is killed and resumed, evaluations."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ndem_ocp.bench.gpu.results import TINY, Check, Results


def small_config(check: Check, **optim: Any) -> dict[str, Any]:
    """Configuration of a small EquiformerV2 with NDeM on the generated data."""
    from ndem_ocp.bench.configs import read_config

    data = check.data()
    config = read_config("demo")
    config["model"]["backbone"].update(TINY)
    config["dataset"]["train"]["src"] = str(data / "train")
    config["dataset"]["val"]["src"] = str(data / "val_id")
    config["trainer"] = "ndem_ocp.NDeMTrainer"
    config["logger"] = {"name": "ndem_ocp.HistoryLogger", "inner": None}
    config["optim"].update(batch_size=4, eval_batch_size=8, **optim)
    return config


def run(check: Check, out: Results) -> None:
    length = {"max_epochs": 1 if check.tiny else 10, "eval_every": 5 if check.tiny else 20}
    config = small_config(check, **length, checkpoint_every=5, num_workers=2)
    path = check.work / "whole_run.yml"
    path.write_text(yaml.safe_dump(config))
    whole, broken = (_fairchem(check, name, path) for name in ("whole", "broken"))
    checkpoint = _checkpoints(check, "broken") / "checkpoint.pt"
    while check.left() > 15 and not checkpoint.exists() and broken.poll() is None:
        time.sleep(0.05)
    out.put(
        "killed", {"while it ran": broken.poll() is None, "had a checkpoint": checkpoint.exists()}
    )
    broken.kill()
    broken.wait()
    for name, process in (("whole", whole), ("broken", _fairchem(check, "broken", path))):
        out.put(name, _ended(check, name, process))
    with out.guarded("validations"):
        for name in ("whole", "broken"):
            out.put("validations", name, _last_validation(check.work / name))
    with out.guarded("evaluation"):
        for place in ("cuda", "cpu") if check.cuda else ("cpu",):
            out.put("evaluation", place, _evaluated(check, place))


def _checkpoints(check: Check, name: str) -> Path:
    return check.work / name / "checkpoints" / "run"


def _program(name: str) -> list[str]:
    """A command of this environment, even if its scripts are not installed."""
    module = {"fairchem": "fairchem.core._cli", "ndem": "ndem_ocp.cli"}[name]
    return [sys.executable, "-c", f"import sys, {module} as m; sys.exit(m.main())"]


def _fairchem(check: Check, name: str, config: Path) -> subprocess.Popen[Any]:
    (check.work / name).mkdir(exist_ok=True)
    words = ["--mode", "train", "--config-yml", str(config), "--run-dir", str(check.work / name)]
    words += ["--timestamp-id", "run", *([] if check.cuda else ["--cpu"])]
    with (check.work / f"{name}.txt").open("a") as log:
        return subprocess.Popen([*_program("fairchem"), *words], stdout=log, stderr=log)


def _ended(check: Check, name: str, process: subprocess.Popen[Any]) -> dict[str, Any]:
    try:
        status = process.wait(max(1.0, check.left() - 8))
    except subprocess.TimeoutExpired:
        process.kill()
        return {"error": "did not end in time"}
    if status == 0:
        return {"exit status": 0}
    last = (check.work / f"{name}.txt").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"exit status {status}: {' '.join(last)[-400:]}"}


def _last_validation(folder: Path) -> dict[str, Any]:
    from fairchem_kit.history.file import find_history, read_history

    records = read_history(find_history(folder), "val")
    if not records:
        return {"error": "none was written"}
    last = records[-1]
    return {key: last.get(key) for key in ("step", "forces_mae", "energy_mae")}


def _evaluated(check: Check, place: str) -> str:
    target = check.work / f"eval-{place}"
    words = ["eval", str(_checkpoints(check, "whole") / "best_checkpoint.pt"), "--out", str(target)]
    words += ["--data", str(check.data() / "val_id"), *(["--cpu"] if place == "cpu" else [])]
    try:
        done = subprocess.run(
            [*_program("ndem"), *words], capture_output=True, text=True,
            timeout=max(2, check.left()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "error: did not end in time"
    table = target / "table.csv"
    return table.read_text() if table.exists() else f"error: {(done.stdout + done.stderr)[-400:]}"
