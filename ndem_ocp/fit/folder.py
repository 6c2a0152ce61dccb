"""The folder of a fit: its files, and what an earlier start has already done.

config.yml      the configuration, to edit and to train again
model.pt        the best checkpoint, with the energy reference
report.html     the page of ndem report; next to it report.md and report.csv
data/           train, val and test as LMDBs
eval/           errors of every structure
fit.json        the files and options of the fit
checkpoints/, logs/, results/, status/   written by the training
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem_kit.atomic_files import read_json, write_atomically, write_json
from fairchem_kit.launch.record import Record
from ndem_ocp.fit.errors import FitError

RUN_ID = "fit"
_STATE = "fit.json"
# these decide the data set; all others may change until there is a configuration
_OF_THE_DATA = {"files", "energy_key", "forces_key", "unit", "skip_bad", "seed"}
_OPTION = {"minutes": "--time", "unit": "--units"}


class Folder:
    """Paths below ``path``, and the state of the fit there."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.data, self.eval = self.path / "data", self.path / "eval"
        self.config, self.model = self.path / "config.yml", self.path / "model.pt"
        self.report = self.path / "report.html"
        self.best = self.path / "checkpoints" / RUN_ID / "best_checkpoint.pt"
        self._state = self.path / _STATE

    def open(self, made_of: Mapping[str, Any]) -> bool:
        """Begin a fit here, or continue the same one; returns whether there was one.

        Args:
            made_of: the files and options that decide the result, for JSON.

        Raises:
            FitError: for a folder not made by a fit, or by a fit of other files or options.
        """
        known = read_json(self._state)
        if known is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise FitError(
                    f"{self.path} exists, but was not made by ndem fit: give another --out DIR."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._state, {"made_of": dict(made_of)})
            return False
        before = known.get("made_of") or {}
        decided = set(made_of) if self.config.exists() else _OF_THE_DATA
        changed = _difference({key: before.get(key) for key in decided},
                              {key: made_of[key] for key in decided})  # fmt: skip
        if changed:
            raise FitError(
                f"{self.path} holds a fit of other files or options: {changed}. Give another --out "
                "DIR for a new model, the same options to continue that one, or move the folder "
                "away."
            )
        self.note("made_of", dict(made_of))
        return True

    def forget(self) -> None:
        """Undo :meth:`open` if no file was written."""
        if not self.has_data() and self.path.is_dir():
            if [path.name for path in self.path.iterdir()] == [_STATE]:
                self._state.unlink()
            with contextlib.suppress(OSError):  # not empty
                self.path.rmdir()

    def read(self, key: str) -> Any:
        """The value that :meth:`note` stored, or None."""
        return (read_json(self._state) or {}).get(key)

    def note(self, key: str, value: Any) -> None:
        write_json(self._state, {**(read_json(self._state) or {}), key: value})

    def write_config(self, text: str) -> None:
        write_atomically(self.config, text)

    def has_data(self) -> bool:
        return (self.data / "dataset.json").is_file()

    def is_trained(self) -> bool:
        return Record(self.path, RUN_ID).read().get("state") == "finished"

    def steps(self) -> tuple[int, int]:
        """Training steps taken, and those of the whole schedule."""
        record = Record(self.path, RUN_ID).read()
        return record["step"], record["total"]

    def splits(self) -> list[str]:
        """Those of val and test that exist."""
        return [name for name in ("val", "test") if (self.data / name).is_dir()]

    def shown(self, path: Path) -> str:
        """A path for messages: relative to the current directory if it is below it."""
        try:
            return str(path.relative_to(Path.cwd()))
        except ValueError:
            return str(path)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference, in words; empty if there is none."""
    for key in before.keys() | now.keys():
        if key == "files":
            continue
        if before.get(key) != now.get(key):
            option = _OPTION.get(key, f"--{key.replace('_', '-')}")
            return f"{option} was {_said(before.get(key))} and is {_said(now.get(key))}"
    old = {file["file"]: file for file in before.get("files", [])}
    new = {file["file"]: file for file in now.get("files", [])}
    for name in old.keys() ^ new.keys():
        return f"{name} {'was not' if name in new else 'was'} among the files"
    for name, file in new.items():
        if file != old[name]:
            return f"{name} has changed since"
    return ""


def _said(value: Any) -> str:
    return {None: "not given", "False": "not given", "True": "given"}.get(
        value if value is None else str(value), str(value)
    )
