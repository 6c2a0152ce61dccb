"""``ndem bench scaling``: how a step's cost grows with one quantity at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ndem_ocp.bench.arms import arm_config
from ndem_ocp.bench.batches import find_data, open_data, read_batches
from ndem_ocp.bench.configs import resize
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.options import Common
from ndem_ocp.bench.rounds import REFERENCE, measure_arms

SUPERCELLS = {1: (1, 1), 2: (2, 1), 4: (2, 2), 6: (3, 2), 9: (3, 3), 16: (4, 4)}
BATCHES = 2


@dataclass(frozen=True)
class Point:
    """The measurement at one value of an axis."""

    config: dict[str, Any]
    batch_size: int
    supercell: tuple[int, int] = (1, 1)


def _neighbors(config: dict[str, Any], value: int) -> None:
    config["model"]["backbone"]["max_neighbors"] = value


def _degree(config: dict[str, Any], value: int) -> None:
    resize(config["model"]["backbone"], "", lmax=value)


def _layers(config: dict[str, Any], value: int) -> None:
    resize(config["model"]["backbone"], "", layers=value)


@dataclass(frozen=True)
class Axis:
    """A quantity that grows while everything else is constant."""

    what: str
    values: tuple[int, ...]
    key: str | None = None  # of the backbone, if a model may lack it
    change: Callable[[dict[str, Any], int], None] | None = None


AXES = {
    "atoms": Axis("atoms in a structure: supercells", (1, 2, 4, 9)),
    "edges": Axis("edges: max_neighbors", (5, 10, 20, 40), "max_neighbors", _neighbors),
    "L": Axis("largest degree L (M = 2 at most)", (1, 2, 4, 6), "lmax_list", _degree),
    "layers": Axis("layers", (1, 2, 4, 8), "num_layers", _layers),
    "batch": Axis("structures in a batch", (1, 2, 4, 8)),
}


class ScalingBench:
    """Points along every axis, all arms interleaved in each."""

    def __init__(self, common: Common, arms: list[str], batch_size: int) -> None:
        self.common, self.arms, self.batch_size = common, arms, batch_size
        self.data = find_data(common.data, common.progress)
        train = common.config["dataset"]["train"]
        self.dataset = open_data(self.data, key_mapping=train.get("key_mapping"))
        self.axes: dict[str, list[dict[str, Any]]] = {}
        self.interrupted = False

    def run(self, axes: list[str], repeats: int, warmup: int) -> Iterator[str]:
        """Measure axis by axis; yields the name of each finished axis, also if Ctrl-C cut it
        short."""
        for name in axes:
            self.axes[name] = []
            try:
                for value in AXES[name].values:
                    self._measure(name, value, repeats, warmup)
                    if self.interrupted:
                        break
            except KeyboardInterrupt:
                self.interrupted = True
            yield name
            if self.interrupted:
                return

    def point(self, axis: str, value: int) -> Point:
        """The measurement at a value of an axis.

        Raises:
            BenchError: if the model has no such setting.
        """
        config = copy.deepcopy(self.common.config)
        key, change = AXES[axis].key, AXES[axis].change
        if key is not None and key not in config["model"]["backbone"]:
            raise BenchError(f"--axes {axis}: model.backbone of {self.common.name} has no {key}.")
        if change is not None:
            change(config, value)
        if axis == "batch":
            return Point(config, value)
        # one structure of any size: the atoms of a batch are those of the structure
        cell = SUPERCELLS[value] if axis == "atoms" else (1, 1)
        return Point(config, 1 if axis == "atoms" else self.batch_size, cell)

    def _measure(self, axis: str, value: int, repeats: int, warmup: int) -> None:
        point, common = self.point(axis, value), self.common
        batches = read_batches(
            self.dataset, point.batch_size, BATCHES, common.seed, point.supercell
        )
        configs = {
            arm: arm_config(arm, point.config, self.data, point.batch_size, common.ours)
            for arm in self.arms
        }
        found = measure_arms(configs, batches, common, repeats, warmup, f"{axis} {value}")
        self.interrupted = found is None or found.pop("interrupted")
        if found is not None:
            edges = found["arms"][REFERENCE]["edges"]
            self.axes[axis].append(
                {"value": value, "batch_size": point.batch_size, "edges": edges, **found}
            )

    def result(self) -> dict[str, Any]:
        """The content of the JSON file, without provenance."""
        upstream = arm_config(REFERENCE, self.common.config, self.data, self.batch_size)
        return {
            "what": "seconds of one training step against one thing that grows",
            **self.common.described(upstream, self.data),
            "batch_size": self.batch_size,
            "units": {"wall_s": "s per step", "exponent": "k of seconds ~ x^k, least squares"},
            "interrupted": self.interrupted,
            "axes": {
                name: {
                    "what": AXES[name].what,
                    "points": points,
                    "exponent": {
                        arm: exponent(
                            [abscissa(name, point) for point in points],
                            [point["arms"][arm]["wall_s"]["median"] for point in points],
                        )
                        for arm in self.arms
                    },
                }
                for name, points in self.axes.items()
                if points
            },
        }


def abscissa(axis: str, point: dict[str, Any]) -> float:
    """The abscissa of a point: measured atoms or edges, else the value of the axis."""
    if axis == "atoms":
        return point["atoms"]["median"]
    if axis == "edges":
        return point["edges"]
    return point["value"]


def exponent(x: list[float], seconds: list[float]) -> float | None:
    """k of seconds ~ x^k by least squares of the logarithms; None without two different x."""
    if len(set(x)) < 2:
        return None
    log_x, log_s = [math.log(v) for v in x], [math.log(v) for v in seconds]
    mean_x, mean_s = sum(log_x) / len(x), sum(log_s) / len(x)
    covariance = sum((a - mean_x) * (b - mean_s) for a, b in zip(log_x, log_s))
    return covariance / sum((a - mean_x) ** 2 for a in log_x)
