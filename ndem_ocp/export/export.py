"""``ndem export``: write a checkpoint that plain fairchem loads without this package.

Everything needed only for training is left out (auxiliary head, optimizer, schedule, random
states), and the configuration is translated into fairchem's names. The weights are by default the
moving average, as in validation: fairchem's calculator does not read an average from a file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor, nn

from fairchem_kit.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from fairchem_kit.checkpoints.config import building, check_config
from fairchem_kit.inference.process import unchanged_process
from fairchem_kit.inference.weights import AUTO, chosen_weights, plain_normalizers
from fairchem_kit.words import counted
from ndem_ocp.export.plain_config import plain_config, plain_model

OF_THE_DATA = ("elements", "energy_reference")  # read by this package's calculator only
KEPT = ("elementrefs", "val_metrics", "scale_dict")


@dataclass
class ExportReport:
    """What was written to the file; ``str()`` is a printout.

    Attributes:
        source, out: the files. weights: "ema" or "last". step: of the run, None if unknown.
        parameters: their number in the exported weights. dropped: number left out, by module.
        changed: sentences about the configuration.
    """

    source: Path
    out: Path
    weights: str
    step: int | None
    parameters: int
    dropped: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kind = {"ema": "the moving average (EMA)", "last": "those of the last step (no EMA)"}
        lines = [
            f"{self.out}: {counted(self.parameters, 'parameter')} from {self.source}"
            + (f" at step {self.step}" if self.step is not None else ""),
            f"  weights: {kind[self.weights]}",
            *(
                f"  left out: {name} ({counted(count, 'parameter')})"
                for name, count in self.dropped.items()
            ),
            *(f"  configuration: {change}" for change in self.changed),
        ]
        return "\n".join(lines)


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    weights: str = AUTO,
    overwrite: bool = False,
    unsafe: bool = False,
) -> ExportReport:
    """Write a plain checkpoint.

    Args:
        checkpoint: of this package or of fairchem. out: the file to write.
        weights: see :func:`fairchem_kit.inference.weights.chosen_weights`.
        overwrite: replace ``out``.
        unsafe: read the checkpoint even if that runs code in it.

    Raises:
        CheckpointError: if the file cannot be read, plain fairchem has no such network, or ``out``
            exists.
    """
    source, out = Path(checkpoint), Path(out)
    if out.exists() and (not overwrite or (source.exists() and out.samefile(source))):
        raise CheckpointError(f"{out} exists: give another name, or --overwrite to replace it.")
    if not out.resolve().parent.is_dir():
        raise CheckpointError(f"{out}: its folder does not exist; create it first.")
    content = read_checkpoint(source, unsafe=unsafe)
    config = content.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), (Mapping, str)):
        raise CheckpointError(f"{source} contains no configuration, so its model is not known.")
    with unchanged_process(torch.device("cpu")):
        check_config(config, source)
        model = plain_model(config, source)
        with building(source):
            trained, plain = _built(config["model"], config), _built(model, config)
        state, kind = chosen_weights(content, trained, weights, source)
        exported, dropped = _fitting(state, plain.state_dict(), source)
    config, changed = plain_config(config, model)
    saved = {
        "state_dict": exported,
        "normalizers": plain_normalizers(content),
        **{key: content[key] for key in KEPT if content.get(key) is not None},
        "config": config,
        "amp": None,
        "exported_from": {"file": source.name, "step": content.get("step"), "weights": kind},
        "weights": kind,
    }
    for key in OF_THE_DATA:
        if content.get(key) is not None:
            saved[key] = content[key]
    write_checkpoint(saved, out)
    numbers = sum(parameter.numel() for parameter in plain.parameters())
    return ExportReport(source, out, kind, content.get("step"), numbers, dropped, changed)


def _built(model: Any, config: Mapping[str, Any]) -> nn.Module:
    """The network of a model section, with random weights."""
    if isinstance(model, str):  # fairchem's layout before 1.0
        model = {"name": model, **(config.get("model_attributes") or {})}
    arguments = copy.deepcopy(dict(model))
    return registry.get_model_class(arguments.pop("name"))(**arguments)


def _fitting(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Weights of the plain network, and how many parameters of each other module are left out.

    Raises:
        CheckpointError: if a weight of the plain network is missing or has another shape.
    """
    wrong = [n for n, v in target.items() if n not in state or state[n].shape != v.shape]
    if wrong:
        raise CheckpointError(
            f"{source}: its weights are not those of the network in its configuration; "
            f"{len(wrong)} do not fit, the first is {wrong[0]}."
        )
    dropped: dict[str, int] = {}
    for name in _left(state, target):
        parts = name.split(".")
        module = ".".join(parts[: 2 if len(parts) > 2 else 1])
        dropped[module] = dropped.get(module, 0) + state[name].numel()
    return {name: state[name].detach().clone() for name in target}, dropped


def _left(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Iterator[str]:
    return (name for name, value in state.items() if name not in target and value.numel())
