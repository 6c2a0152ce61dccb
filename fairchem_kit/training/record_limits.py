"""Options of our record reader that follow from the model and the run."""

from __future__ import annotations

from pathlib import Path

from fairchem_kit.data.reader import limits_from_model
from fairchem_kit.training.component import Component

READER_FORMATS = ("ndem_lmdb", "ndem_ocp.LmdbReader", "fairchem_kit.data.reader.dataset.LmdbReader")


class RecordLimits(Component):
    """Adds the model's limits and the path of the log of skipped records to data set sections."""

    def before_datasets(self) -> None:
        limits = limits_from_model(self.config["model"])
        log = str(Path(self.config["cmd"]["logs_dir"]) / "bad_records.jsonl")
        for name in ("dataset", "val_dataset", "test_dataset", "relax_dataset"):
            section = self.config.get(name)
            if section and section.get("format") in READER_FORMATS:
                self.config[name] = {**limits, "bad_records_log": log, **section}
