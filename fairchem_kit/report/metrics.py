"""Titles and units of logged metrics, for pages and panels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: of the range of sigma, in the names of NDeM's metrics by sigma
QUARTERS = 4
EFWT = "energy_forces_within_threshold"
#: the first metrics of a split; the others follow in the order in which they were logged
_ORDER = ("energy_mae", "forces_mae", "forces_cosine_similarity", EFWT, "forces_magnitude_error")
_KINDS = {
    "mae": "MAE",
    "mse": "MSE",
    "rmse": "RMSE",
    "cosine_similarity": "cosine",
    "magnitude_error": "magnitude error",
}
_NO_METRICS = ("step", "split", "time_s", "process_s", "epoch", "loss")


@dataclass(frozen=True)
class Metric:
    """One column of a table, one figure.

    Attributes:
        name: in the log. title: to display. unit: "" for a plain number. factor: logged value ->
            displayed value.
    """

    name: str
    title: str
    unit: str = ""
    factor: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


def unit_text(label: str) -> str:
    """The display form of a label of ``training.units``: meV_per_A -> meV/Å."""
    text = re.sub(r"_(\d)$", r"^\1", label.replace("_per_", "/")).replace("_", "/")
    return re.sub(r"(^|/)A(?=$|/)", r"\1Å", text)


def describe(name: str) -> Metric:
    """Describe a metric of fairchem's evaluator, or one of ours with its unit."""
    if name == EFWT:
        return Metric(name, "EFwT", "%", 100.0)
    if name == "energy_within_threshold":
        return Metric(name, "EwT", "%", 100.0)
    found = re.match(r"^(.+?)_(mae|mse|rmse|cosine_similarity|magnitude_error)(?:_(.+))?$", name)
    if not found:
        return Metric(name, name.replace("_", " "))
    output, kind, unit = found.groups()
    output = {"forces": "force"}.get(output, output)
    title = f"{output[0].upper()}{output[1:]} {_KINDS[kind]}"
    if kind == "cosine_similarity":
        return Metric(name, title)
    return Metric(name, title, unit_text(unit) if unit else "unit of the data")


def validation_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics among the names in a validation's record: well-known ones first; of a metric
    logged in two units, the one with its unit in the name."""
    names = [name for name in dict.fromkeys(names) if name not in _NO_METRICS]
    shown = [n for n in names if not any(m.startswith(f"{n}_") for m in names if m != n)]

    def place(name: str) -> int:
        for index, known in enumerate(_ORDER):
            if name == known or name.startswith(f"{known}_"):
                return index
        return len(_ORDER) + names.index(name)

    return [describe(name) for name in sorted(shown, key=place)]
