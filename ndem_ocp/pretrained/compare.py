"""Compare settings and normalizers of a fairchem checkpoint with those of a new run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import nn

from fairchem_kit.checkpoints.config import OLD_TARGETS
from ndem_ocp.models.equiformer_names import UPSTREAM

CLOSE = 0.03  # relative difference of normalizers below which they count as equal
# Settings of a backbone that do not affect the meaning of weights, and settings that affect it only
# slightly.
_HARMLESS = re.compile(r"drop|otf_graph|weight_init|regress_|direct_forces|checkpointing|^model$")
_MINOR = re.compile(r"max_neighbors|avg_|use_pbc|num_elements|^enforce_")


def settings_differences(theirs: Any, ours: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences between two backbones' settings: those to refuse, and those to only report.

    Args:
        theirs: the checkpoint's configuration, of any fairchem version. ours: that of the run.
    """
    there, here = _backbone(theirs), _backbone(ours)
    if not there or not here:
        return [], ["The settings of the two backbones could not be compared."]
    problems: list[str] = []
    notes: list[str] = []
    if "model" in there and "model" in here and not _same_class(there["model"], here["model"]):
        problems.append(
            f"The checkpoint's backbone is a {there['model']}, this run's a {here['model']}."
        )
    for key in sorted(there.keys() & here.keys()):
        if there[key] == here[key] or _HARMLESS.search(key):
            continue
        line = f"model.backbone.{key}: {there[key]} in the checkpoint, {here[key]} in this run."
        (notes if _MINOR.search(key) else problems).append(line)
    return problems, notes


def normalizer_differences(
    given: Mapping[str, Any], normalizers: Mapping[str, nn.Module]
) -> list[str]:
    """A sentence for every normalizer of the run that differs from the checkpoint's.

    Args:
        given: states of the checkpoint's normalizers, by output. normalizers: those of the run.
    """
    theirs = normalizer_numbers(given)
    found = []
    for name, normalizer in normalizers.items():
        ours, other = _numbers(normalizer.state_dict()), theirs.get(name)
        if ours is None or other is None or _agree(ours, other):
            continue
        found.append(
            f"The normalizer of {name} differs from the checkpoint's: mean {ours[0]:.5g} and stdev "
            f"{ours[1]:.5g} here, mean {other[0]:.5g} and stdev {other[1]:.5g} there. The "
            "loaded heads predict in the checkpoint's units, so the first steps only correct the "
            f"scale. Unless you want that, set dataset.train.transforms.normalizer.{name}: "
            f"{{mean: {other[0]:.8g}, stdev: {other[1]:.8g}}}, or task.init_from.normalizers: "
            "checkpoint for all of them, or heads: none."
        )
    return found


def normalizer_numbers(given: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    """{output: (mean, stdev)} of a checkpoint's normalizers, under current names of outputs.

    None instead of a pair if these are not two numbers.
    """
    return {OLD_TARGETS.get(name, name): _numbers(value) for name, value in given.items()}


def _backbone(config: Any) -> dict[str, Any]:
    """The backbone's settings in a configuration of any fairchem version."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if isinstance(model, str):  # before fairchem 1.0
        model = config.get("model_attributes")
    if not isinstance(model, Mapping):
        return {}
    section = model.get("backbone", model)
    return {key: value for key, value in section.items() if key not in ("name", "heads")}


def _same_class(one: str, other: str) -> bool:
    one, other = (UPSTREAM.get(name, name) for name in (one, other))  # same network
    try:
        return registry.get_model_class(one) is registry.get_model_class(other)
    except RuntimeError:
        return one == other


def _numbers(state: Any) -> tuple[float, float] | None:
    """(mean, stdev) from a normalizer's state, also under older names."""
    if not isinstance(state, Mapping):
        return None
    mean, stdev = state.get("mean"), state.get("rmsd", state.get("std"))
    if mean is None or stdev is None:
        return None
    both = [torch.as_tensor(value).double().flatten() for value in (mean, stdev)]
    return None if any(v.numel() != 1 for v in both) else (both[0].item(), both[1].item())


def _agree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    scale = max(abs(one[1]), abs(other[1]))
    return all(abs(a - b) <= CLOSE * scale for a, b in zip(one, other))
