"""A run's metrics as a file: one JSON line per logged step, in addition to W&B or TensorBoard.

    logger:
      name: ndem_ocp.HistoryLogger
      inner: wandb            # or tensorboard, or null
      project: my-project     # keys of the inner logger

Works with every fairchem trainer, in every process, online and offline.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import wandb
from fairchem.core.common.logger import Logger, WandBLogger
from fairchem.core.common.registry import registry

from fairchem_kit.history.failsafe import logger_or_none
from fairchem_kit.history.file import FILE_NAME, find_history, read_history
from fairchem_kit.history.run_record import add_summary, write_run_record

__all__ = ["FILE_NAME", "HistoryLogger", "find_history", "read_history"]


@registry.register_logger("ndem_history")
class HistoryLogger(Logger):
    """Writes ``history.jsonl`` into the run's log directory, next to a ``run.json`` that says what
    ran, and passes everything on to the logger named ``inner``.

    A line holds ``step``, ``split``, ``time_s`` (wall time since the logger was made),
    ``process_s`` (processor time of this process since its start, which other programs on a shared
    machine do not stretch) and the metrics of that call. A run that is resumed appends to its file:
    the times continue, and a line ``{"resumed": step, ...}`` says which earlier lines it replaces.

    The inner logger's curves never go back: steps that it got from an earlier start of the run are
    not sent again, and W&B, which refuses a step below its last one, never gets such a step.
    If the inner logger fails, for example because its service was killed, the run continues
    without it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        settings = config["logger"] if isinstance(config["logger"], dict) else {}
        self.path = Path(config["cmd"]["logs_dir"]) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_run_record(self.path.parent, config)
        before = _last_times(self.path)
        self._started = time.monotonic() - before["time_s"]
        self._busy_before = before["process_s"]
        inner = settings.get("inner")
        self._passed_on = _last_steps(self.path) if inner else {}
        self._first_step, self._lost = 0, False
        self._inner = logger_or_none(registry.get_logger_class(inner), config) if inner else None
        if self._inner is not None and self._inner.is_a(WandBLogger):
            # W&B itself says 0 in a new run, and in every run that is resumed offline.
            last = max(self._passed_on.values(), default=-1)
            self._first_step = max(last + 1, wandb.run.starting_step)

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        plain = {key: _plain(value) for key, value in update_dict.items()}
        numbers = {key: value for key, value in plain.items() if _is_number(value)}
        elapsed = round(time.monotonic() - self._started, 3)
        busy = round(self._busy_before + time.process_time(), 3)
        record = {
            "step": int(step),
            "split": split,
            "time_s": elapsed,
            "process_s": busy,
            **numbers,
        }
        self._append(record)
        passed_on = self._passed_on
        new = {k: v for k, v in update_dict.items() if step > passed_on.get((split, k), -1)}
        if new:
            # A validation interrupted by a kill is repeated at a step that W&B has closed.
            self._pass_on("log", new, max(int(step), self._first_step), split)

    def resumed(self, step: int, evaluates: bool) -> None:
        """Record that the run resumes after ``step``, and whether it evaluates that step again.

        0 is a run that starts again in the directory of one that died before it saved.
        """
        if self.path.exists() and self.path.stat().st_size:
            self._append({"resumed": int(step), "evaluates": evaluates})

    def _append(self, record: dict[str, Any]) -> None:
        # One whole line per write, so a killed run loses no earlier line. Its last line may be
        # incomplete and must not be joined with this one.
        try:
            torn = _is_torn(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json.dumps(record) + "\n")
            self._lost = False
        except OSError as error:  # a logger never ends a run
            if not self._lost:
                logging.error(
                    f"{self.path} cannot be written ({error}): the history of this run has a gap "
                    "from here. The run continues."
                )
            self._lost = True

    def watch(self, model: torch.nn.Module, log_freq: int = 1000) -> None:
        self._pass_on("watch", model, log_freq=log_freq)

    def log_plots(self, plots: list[Any]) -> None:
        self._pass_on("log_plots", plots)

    def mark_preempting(self) -> None:
        self._pass_on("mark_preempting")

    def log_summary(self, summary_dict: dict[str, Any]) -> None:
        add_summary(self.path.parent, summary_dict)
        self._pass_on("log_summary", summary_dict)

    def log_artifact(self, name: str, type: str, file_location: str) -> None:
        self._pass_on("log_artifact", name, type, file_location)

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("log_table", *args, **kwargs)

    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._inner is not None:
            getattr(self._inner, method)(*args, **kwargs)


def _is_torn(path: Path) -> bool:
    """Whether a kill left the last line of a file incomplete."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def _last_times(path: Path) -> dict[str, float]:
    """``time_s`` and ``process_s`` at the end of a history, zeros without one."""
    times = {"time_s": 0.0, "process_s": 0.0}
    try:
        records = read_history(path) if path.exists() else []
    except ValueError as error:  # not a reason to stop training
        logging.warning(f"{error}; the run's times start at zero again.")
        return times
    for record in reversed(records):
        if times.keys() <= record.keys():
            return {key: record[key] for key in times}
    return times


def _last_steps(path: Path) -> dict[tuple[str, str], int]:
    """{(split, metric): last step at which it was logged}, including steps that a resume
    discards."""
    last: dict[tuple[str, str], int] = {}
    if not path.exists():
        return last
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and {"step", "split"} <= record.keys():
                for name in record.keys() - {"split", "time_s", "process_s"}:
                    key, step = (record["split"], name), int(record["step"])
                    last[key] = max(step, last.get(key, -1))
    return last


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _is_number(value: Any) -> bool:
    """JSON has no NaN: values that are not finite are left out of the line."""
    return isinstance(value, (int, float)) and math.isfinite(value)
