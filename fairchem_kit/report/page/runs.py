"""Finding runs in the given paths, and reading their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import read_json
from fairchem_kit.files import existing
from fairchem_kit.history.file import FILE_NAME, HistoryError, read_history
from fairchem_kit.history.run_record import read_run_record
from fairchem_kit.history.validation_sets import validation_sets
from fairchem_kit.report.page.errors import ReportError

_SEED = re.compile(r"^(?P<arm>.+)-seed(?P<seed>\d+)$")  # a run directory of ndem sweep and submit
_CHECKPOINTS = ("best_checkpoint.pt", "checkpoint.pt")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        run_dir: fairchem's ``--run-dir``. run_id: its ``--timestamp-id``. logs: folder of the
            history. history: its lines, without steps repeated after a resume.
    """

    run_dir: Path
    run_id: str
    logs: Path
    history: list[dict[str, Any]] = field(repr=False)

    @cached_property
    def record(self) -> dict[str, Any]:
        """``run.json``; {} for a run of another logger or an older version."""
        return read_run_record(self.logs)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's configuration, from run.json or else from a checkpoint; {} without either."""
        if self.record.get("config"):
            return self.record["config"]
        for name in _CHECKPOINTS:
            path = self.run_dir / "checkpoints" / self.run_id / name
            if path.exists():
                import torch  # imported here, because most runs have a run.json

                try:
                    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except Exception:
                    continue  # a damaged file; the page reports that there is no configuration
                config = saved.get("config") if isinstance(saved, dict) else None
                return config if isinstance(config, dict) else {}
        return {}

    @property
    def command(self) -> dict[str, Any]:
        return self.config.get("cmd") or {}

    @property
    def arm(self) -> str:
        """Name shared with the same training on other seeds."""
        found = _SEED.match(self.run_dir.name)
        return found["arm"] if found else self.command.get("identifier") or self.run_dir.name

    @property
    def seed(self) -> int | None:
        found = _SEED.match(self.run_dir.name)
        return int(found["seed"]) if found else self.command.get("seed")

    @property
    def name(self) -> str:
        """Name to display: arm and seed, as in its directory."""
        return self.run_dir.name if _SEED.match(self.run_dir.name) else self.arm

    @property
    def ndem(self) -> dict[str, Any]:
        """``task.ndem`` with all defaults; {} in fairchem's plain trainers."""
        return (self.config.get("task") or {}).get("ndem") or {}

    @property
    def is_plain(self) -> bool | None:
        """Whether it has no second view; None if unknown."""
        if not self.config:
            return None
        return not self.ndem.get("coefficient")

    @cached_property
    def validated_on(self) -> list[dict[str, dict[str, Any]]]:
        """{split: path, selection and content of its data}, for each start that recorded it; for
        older versions, from the configuration."""
        starts = self.record.get("starts") or []
        recorded = [start.get("validation_sets") for start in starts] or [None]
        known = [
            {name: one for name, one in sets.items() if isinstance(one, dict)}
            for sets in recorded
            if isinstance(sets, dict)
        ]
        return known or ([validation_sets(self.config)] if self.config else [])

    @property
    def units(self) -> dict[str, str]:
        """{output: its unit}, for those with a unit in the configuration."""
        outputs = self.config.get("outputs")
        return {
            name: str(output["unit"])
            for name, output in (outputs.items() if isinstance(outputs, dict) else ())
            if isinstance(output, dict) and output.get("unit")
        }

    @property
    def steps(self) -> int:
        return int(self.history[-1]["step"])

    @property
    def epochs(self) -> float | None:
        return next((line["epoch"] for line in reversed(self.history) if "epoch" in line), None)

    @property
    def planned_epochs(self) -> float | None:
        return (self.config.get("optim") or {}).get("max_epochs")

    @property
    def devices(self) -> list[str]:
        """GPUs, or the processor, of all starts that recorded them."""
        found = []
        for start in self.record.get("starts") or []:
            known = start.get("hardware") or {}
            gpus = known.get("gpus") or []
            found.append(f"{len(gpus)} x {gpus[0]}" if gpus else known.get("cpu") or "")
        return [device for device in dict.fromkeys(found) if device]

    @property
    def checkpoints(self) -> dict[str, Any]:
        """The entry of the newest one in ``checkpoints.json``."""
        folder = self.run_dir / "checkpoints" / self.run_id
        return (read_json(folder / "checkpoints.json") or {}).get("newest") or {}

    @property
    def state(self) -> str:
        """finished, running, stopped or failed for runs of ``ndem train``; else unknown."""
        status = read_json(self.run_dir / "status" / f"{self.run_id}.json") or {}
        return str(status.get("state") or "not recorded")

    def lines(self, split: str) -> list[dict[str, Any]]:
        return [line for line in self.history if line["split"] == split]

    @cached_property
    def validation_splits(self) -> list[str]:
        """Names of its validation splits, the main one first, their mean last."""
        seen = dict.fromkeys(line["split"] for line in self.history if line["split"] != "train")
        middle = [name for name in seen if name not in ("val", "val_mean")]
        ends = [name for name in ("val", "val_mean") if name in seen]
        return [*ends[:1], *middle, *ends[1:]] if "val" in seen else [*middle, *ends]

    @property
    def primary_metric(self) -> str:
        """The metric on ``val`` by which the best checkpoint is chosen."""
        named = (self.config.get("evaluation_metrics") or {}).get("primary_metric")
        return named or self.checkpoints.get("primary_metric") or "forces_mae"

    @cached_property
    def best_step(self) -> int | None:
        """Step of the best validation so far, as chosen by fairchem; None without validation."""
        name = self.primary_metric
        lines = [line for line in self.lines("val") if name in line]
        if not lines:
            return self.lines("val")[-1]["step"] if self.lines("val") else None
        sign = 1 if "mae" in name else -1
        return min(lines, key=lambda line: sign * line[name])["step"]


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every training run in the paths: run directories, folders of them, log folders, histories.

    Raises:
        ReportError: for a path without runs; the message says how to get one.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        here = [run for run in map(_read, _histories(path)) if run is not None]
        if not here:
            raise ReportError(_nothing(path))
        found.update({run.logs.resolve(): run for run in here})
    return list(found.values())


def _histories(path: Path) -> Iterable[Path]:
    if existing(path, ReportError).is_file():
        return [path] if path.name == FILE_NAME else []
    return sorted(path.rglob(FILE_NAME))


def _nothing(path: Path) -> str:
    return (
        f"{path}: no {FILE_NAME} of a training run was found in it. Runs whose configuration has "
        "logger.name: ndem_ocp.HistoryLogger write one; logger.inner passes on to W&B or "
        "TensorBoard."
    )


def _read(path: Path) -> Run | None:
    """The run of a history; None if it only validated or predicted."""
    try:
        history = read_history(path)
    except HistoryError as error:
        raise ReportError(f"{error}. Correct or remove the line.") from error
    if not any(line["split"] == "train" for line in history):
        return None
    logs = path.parent
    return Run(_run_dir(logs), logs.resolve().name, logs, history)


def _run_dir(logs: Path) -> Path:
    """RUN_DIR of RUN_DIR/logs/LOGGER/ID; the folder itself for a history that was copied."""
    whole = logs.resolve()
    if len(whole.parents) < 3 or whole.parents[1].name != "logs":
        return logs
    if len(logs.parts) >= 3:
        return logs.parents[2]
    return Path(os.path.relpath(whole.parents[2]))  # the command was started in the run directory


def arms_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by arm, plain training first, else in the order given; seeds in order."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    for name, members in arms.items():
        arms[name] = sorted(members, key=lambda run: (run.seed is None, run.seed, run.run_id))
    plain = [name for name in arms if all(run.is_plain for run in arms[name])]
    return {name: arms[name] for name in [*plain, *(n for n in arms if n not in plain)]}


def one_by_one(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Every run as an arm of its own."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        name = run.name
        arms[name if name not in arms else f"{run.run_dir}/{run.run_id}"] = [run]
    return arms
