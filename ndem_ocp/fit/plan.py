"""Which model and settings a fit uses, each with its reason on one line.

docs/fit.md lists them, and docs/settings.md gives the reasons.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairchem_kit.data.statistics import Statistics
from fairchem_kit.words import counted
from ndem_ocp.fit.dataset import FitData
from ndem_ocp.fit.errors import FitError

ET, EQUIFORMER = "et", "equiformer_v2"
MODELS = (ET, EQUIFORMER)
# Sizes: configs/md17/small.yml and configs/md17/base.yml (the published one).
_ET = {
    True: {"hidden_channels": 32, "num_layers": 2, "num_heads": 4, "cutoff": 5.0},
    False: {"hidden_channels": 128, "num_layers": 6, "num_heads": 8, "cutoff": 5.0},
}
# configs/oc20/small.yml; the larger one is between it and configs/oc20/31M.yml.
_EQUIFORMER = {
    True: {
        "num_layers": 2, "degree": 2, "max_radius": 6.0, "max_neighbors": 12, "width": 32,
        "num_heads": 4, "attention": 16, "value": 8, "grid_resolution": 8,
    },
    False: {
        "num_layers": 4, "degree": 4, "max_radius": 8.0, "max_neighbors": 20, "width": 64,
        "num_heads": 8, "attention": 32, "value": 16, "grid_resolution": 18,
    },
}  # fmt: skip
_STEPS_IN_AN_EPOCH = 10  # at least, if there are enough frames
_BATCH = 8
_ATOMS = 256  # in a batch, on a CPU: in minutes, many small steps learn more than a few large ones


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        model: et or equiformer_v2. sizes: values of the model's template. batch_size: structures.
        normalizer: {energy: (mean, stdev), forces: (mean, stdev)}, eV and eV/A.
        second_views: a file of them, or None. periodic: whether there are surfaces or crystals.
        reasons: {choice: sentence}, in the order to print them.
    """

    model: str
    sizes: Mapping[str, Any]
    batch_size: int
    normalizer: Mapping[str, tuple[float, float]]
    second_views: str | None
    periodic: bool
    reasons: dict[str, str] = field(default_factory=dict)


def make_plan(data: FitData, asked: str | None, cpu: bool, second_views: str | None) -> Plan:
    """Choose by data and machine.

    Raises:
        FitError: for a model that is not installed.
    """
    model, why = _model(data.pbc, asked)
    train = data.train
    batch, why_batch = _batch(train, cpu)
    energy = (train.energy_mean or 0.0, train.energy_stdev or 0.0)
    if energy[1] < 1e-6:  # all energies equal: use the scale of the forces
        energy = (energy[0], train.force_rms or 1.0)
    plan = Plan(
        model=model,
        sizes=_sizes(model, data, cpu),
        batch_size=batch,
        normalizer={"energy": energy, "forces": (0.0, train.force_rms or 1.0)},
        second_views=second_views,
        periodic=data.periodic,
    )
    decided = data.entry["fit"]
    plan.reasons.update(
        split=decided["split"],
        energies=decided["reference"],
        model=why,
        size=(
            "small: for minutes on a CPU and some hundred to some thousand frames"
            if cpu
            else "the larger one, because there is a GPU"
        ),
        batch=why_batch,
        objective=_objective(second_views),
    )
    return plan


def cutoff_of(pbc: str, asked: str | None, cpu: bool) -> float:
    """The cutoff in A of the model for structures of this periodicity, which decides which atoms
    are isolated."""
    model, _ = _model(pbc, asked)
    return float(_ET[cpu]["cutoff"] if model == ET else _EQUIFORMER[cpu]["max_radius"])


def _batch(train: Statistics, cpu: bool) -> tuple[int, str]:
    few = train.frames // _STEPS_IN_AN_EPOCH
    heavy = round(_ATOMS * train.frames / train.atoms) if cpu else _BATCH
    batch = max(1, min(_BATCH, few, heavy))
    why = ""
    if batch == few < min(_BATCH, heavy):
        why = f": at least {_STEPS_IN_AN_EPOCH} steps per epoch"
    elif batch < _BATCH:
        why = f": about {_ATOMS} atoms per step, for many steps"
    return batch, f"{counted(batch, 'structure')}{why}"


def _model(pbc: str, asked: str | None) -> tuple[str, str]:
    installed = importlib.util.find_spec("torchmdnet") is not None
    if asked == ET and not installed:
        raise FitError(
            "--model et needs TorchMD-NET: in a checkout, pip install '.[molecules]' "
            "(docs/install.md), or leave --model out."
        )
    name = {ET: "TorchMD-NET ET, forces as the energy's gradient",
            EQUIFORMER: "EquiformerV2, direct forces"}  # fmt: skip
    if asked is not None:
        return asked, f"{name[asked]}: as asked"
    if "T" in pbc:
        return EQUIFORMER, f"{name[EQUIFORMER]}: the structures are periodic ({pbc})"
    if installed:
        return ET, f"{name[ET]}: molecules without a cell, and forces that conserve energy in MD"
    return EQUIFORMER, (
        f"{name[EQUIFORMER]}: TorchMD-NET, the better choice for molecules, is not installed "
        "(docs/install.md)"
    )


def _objective(second_views: str | None) -> str:
    if second_views is not None:
        return (
            f"second views from {second_views} replace structures; steps cost the same as plain "
            "ones"
        )
    return (
        "plain training. Where frames are few, second views can lower the force error: "
        "--second-views data, or MODULE:CALL for a potential that you have installed "
        "(docs/second_views.md). "
        "The paper's NDeM did not pay for its cost in runs of minutes (docs/settings.md); "
        "task.ndem.coefficient: 1 adds it"
    )


def _sizes(model: str, data: FitData, cpu: bool) -> dict[str, Any]:
    train = data.train
    largest = max(train.elements)
    if model == ET:
        return {**_ET[cpu], "max_z": max(100, largest + 1)}
    mean = train.atoms / train.frames
    degree = _EQUIFORMER[cpu]["max_neighbors"]
    if not data.periodic:  # small molecules: each atom sees all others
        degree = min(degree, max(1, math.floor(mean) - 1))
    return {
        **_EQUIFORMER[cpu],
        "max_num_elements": max(90, largest + 1),
        "avg_num_nodes": round(mean, 1),
        "avg_degree": float(degree),
    }
