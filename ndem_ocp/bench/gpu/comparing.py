"""Models of the checks that compare numbers, their batches, outputs and gradients."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ndem_ocp.bench.gpu.results import TINY, Check

CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
RATTLE_A = 0.05


def precisions_of(check: Check) -> tuple[str, ...]:
    return ("fp32", "tf32", "bf16", *(["fp16"] if check.cuda else []))


def two_layers(check: Check) -> dict[str, Any]:
    """Keys of a backbone that is as wide as 31M's."""
    return TINY if check.tiny else {"num_layers": 2, "alpha_drop": 0.0, "drop_path_rate": 0.0}


def rattled(batch: Any) -> Any:
    """A copy with displaced atoms, always the same, so that no two neighbors are equally far.

    In a symmetric structure many tie at the last of the allowed neighbors, and rounding decides
    which of them is an edge.
    """
    batch = batch.clone()
    noise = torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0))
    batch.pos = batch.pos + RATTLE_A * noise.to(batch.pos)
    return batch


def config(backbone: dict[str, Any]) -> dict[str, Any]:
    """fairchem's 31M with changed keys of its backbone."""
    from ndem_ocp.bench.configs import read_config
    from ndem_ocp.models.equiformer_names import to_upstream

    model = to_upstream(copy.deepcopy(read_config("31M")["model"]))
    model["backbone"].update({"grid_resolution": 8} if "lmax_list" in backbone else {}, **backbone)
    return model


def build(model: dict[str, Any], check: Check) -> Any:
    from fairchem.core.common.registry import registry

    arguments = dict(model)
    torch.manual_seed(0)
    return registry.get_model_class(arguments.pop("name"))(**arguments).to(check.device)


def moved(batch: Any, check: Check, dtype: torch.dtype = torch.float32) -> Any:
    made = batch.clone().to(check.device)
    made.pos = made.pos.to(dtype)
    return made


@contextlib.contextmanager
def frames_from_the_cpu() -> Iterator[None]:
    """Draw the random rotation about each edge on the CPU, wherever the model is."""
    from unittest import mock

    from fairchem.core.models.equiformer_v2 import edge_rot_mat, equiformer_v2

    from ndem_ocp.models.equiformer import frames

    original = edge_rot_mat.init_edge_rot_mat

    def drawn(vector: Tensor) -> Tensor:
        return original(vector.detach().cpu()).to(vector)

    with (
        mock.patch.object(equiformer_v2, "init_edge_rot_mat", drawn, create=True),
        mock.patch.object(frames, "init_edge_rot_mat", drawn),
    ):
        yield


def results_of(model: Any, batch: Any, cast: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs and all gradients of a weighted sum of them, as float64 on the CPU."""
    device = batch.pos.device
    model.zero_grad(set_to_none=True)
    with frames_from_the_cpu():
        torch.manual_seed(3)
        with torch.autocast(device.type, dtype=cast, enabled=cast is not None):
            out = model(batch)
        out = {k: next(iter(v.values())) if isinstance(v, dict) else v for k, v in out.items()}
        total = sum((value.double() * _wave(value)).sum() for value in out.values())
        total.backward()
    flat = [
        (p.grad if p.grad is not None else torch.zeros_like(p)).flatten().double().cpu()
        for _, p in sorted(model.named_parameters())
    ]
    return {**{k: v.detach().double().cpu() for k, v in out.items()}, "gradient": torch.cat(flat)}


def _wave(like: Tensor) -> Tensor:
    """Fixed, all different weights of a sum."""
    count = torch.arange(like.numel(), device=like.device, dtype=torch.float64)
    return torch.sin(1.0 + count).view_as(like)


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: float((found[name] - value).norm() / value.norm().clamp_min(1e-30))
        for name, value in expected.items()
    }
