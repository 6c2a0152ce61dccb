"""Helpers that are not fixtures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from fairchem_kit.data.units import IN_EV
from ndem_ocp.testing import default_dtype, use_float64_graphs  # noqa: F401 (for the tests)


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Parameters are made on the meta device, buffers and all computing stays on the CPU.

    torch.device("meta") would also move tensors that fairchem's constructors convert to numpy.
    """
    register = torch.nn.Module.register_parameter

    def on_meta(module, name, parameter):
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def state_of(trainer) -> dict[str, torch.Tensor]:
    """Weights of a trainer's model, without the prefix of DDP."""
    return trainer._unwrapped_model.state_dict()


def in_unit(checkpoint: Path, path: Path, unit: str) -> Path:
    """A copy of a checkpoint whose predictions are the same in another unit."""
    content = torch.load(checkpoint, weights_only=False)
    outputs, normalizers = content["config"]["outputs"], content["normalizers"]
    for name, of_output in (("energy", unit), ("forces", f"{unit}/A")):
        outputs[name] |= {"unit": of_output, "report_unit": of_output}
        for key, value in normalizers[name].items():
            normalizers[name][key] = value / IN_EV[unit]
    torch.save(content, path)
    return path
