"""Compare our EquiformerV2 with fairchem's on the device: outputs, gradients, edges, steps.

All numbers are relative errors (norm of the difference over the norm), with respect to fairchem's
unless stated otherwise.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ndem_ocp.bench.gpu.results import SMALL, TINY, Check, Results, precision

FORMS: dict[str, dict[str, Any]] = {
    "L4 M2": {"lmax_list": [4], "mmax_list": [2], "grid_resolution": 18},
    "L6 M3": {"lmax_list": [6], "mmax_list": [3], "grid_resolution": 18},
    "gates": {"lmax_list": [3], "mmax_list": [2], "use_gate_act": True, "use_grid_mlp": False},
    "checkpointing": {"lmax_list": [3], "mmax_list": [2], "activation_checkpoint": True},
}


def run(check: Check, out: Results) -> None:
    from fairchem.core.common.utils import setup_imports

    import ndem_ocp
    from ndem_ocp.bench.batches import open_data, read_batches
    from ndem_ocp.testing.precision import default_dtype

    setup_imports()
    ndem_ocp.register()
    records = open_data(check.data() / "train")
    batch = read_batches(records, 3, 1).batches[0]
    for dtype in (torch.float64, torch.float32):
        for form in list(FORMS)[: 1 if check.tiny else None]:
            with out.guarded(str(dtype), form), default_dtype(dtype):
                out.put(str(dtype), form, forms(check, batch, dtype, FORMS[form]))
    with out.guarded("two views"), default_dtype(torch.float64):
        out.put("two views", two_views(check, batch))
    with out.guarded("edges"):
        out.put("edges", edges(check, records))
    with out.guarded("precisions, error to float64"):
        precisions(check, out, batch)
    with out.guarded("training steps"):
        out.put("training steps", training_steps(check))


def forms(check: Check, batch: Any, dtype: torch.dtype, form: dict[str, Any]) -> dict[str, float]:
    """Ours with fairchem's weights; without fairchem's checkpointing, which gives wrong results."""
    from ndem_ocp.models.equiformer_names import to_ours

    upstream = build(config({**SMALL, **form, "activation_checkpoint": False}), check)
    ours = build(to_ours(config({**SMALL, **form})), check)
    ours.load_state_dict(upstream.state_dict())
    expected = results_of(upstream, moved(batch, check, dtype))
    return errors(results_of(ours, moved(batch, check, dtype)), expected)


def two_views(check: Check, batch: Any) -> dict[str, float]:
    from ndem_ocp.method import NDeMSettings
    from ndem_ocp.models import two_view_config, with_second_view
    from ndem_ocp.models.equiformer_names import to_ours

    plain = config({**SMALL, **FORMS["L4 M2"]})
    here = moved(batch, check, torch.float64)
    seen = here.batch == 1
    wave = torch.sin(torch.arange(here.pos.numel(), device=check.device).double())
    eps = 0.05 * wave.view_as(here.pos) * seen[:, None]
    models = [build(two_view_config(m, NDeMSettings()), check) for m in (plain, to_ours(plain))]
    models[1].load_state_dict(models[0].state_dict())
    expected, found = (results_of(m, with_second_view(here.clone(), eps, seen)) for m in models)
    return errors(found, expected)


def precisions(check: Check, out: Results, batch: Any) -> None:
    """Two layers as wide as in 31M: errors with respect to float64 in each precision."""
    from ndem_ocp.models.equiformer_names import to_ours
    from ndem_ocp.testing.precision import default_dtype

    width = TINY if check.tiny else {"num_layers": 2, "alpha_drop": 0.0, "drop_path_rate": 0.0}
    for name, change in (("upstream", lambda m: m), ("ours", to_ours)):
        with default_dtype(torch.float64):
            double = build(change(config(width)), check)
            exact = results_of(double, moved(batch, check, torch.float64))
        single = build(change(config(width)), check)
        single.load_state_dict(double.state_dict())
        del double
        for kind in ("fp32", "tf32", "bf16", "fp16"):
            cast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
            if check.left() < 5 or (kind == "fp16" and not check.cuda):
                continue
            with out.guarded("precisions, error to float64", name, kind), precision(kind):
                found = results_of(single, moved(batch, check, torch.float32), cast)
                out.put("precisions, error to float64", name, kind, errors(found, exact))
        if name == "ours":
            _ours_alone(check, out, single, batch)


def _ours_alone(check: Check, out: Results, model: Any, batch: Any) -> None:
    """Kernels against torch's code, the same step twice, and the device against the CPU."""
    from ndem_ocp.models.equiformer import kernels

    def step(cast: torch.dtype | None = None) -> dict[str, Tensor]:
        return results_of(model, moved(batch, check, torch.float32), cast)

    for kind in ("fp32", "tf32", "bf16", *(["fp16"] if check.cuda else [])):
        cast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
        with out.guarded("kernels, to torch's code", kind), precision(kind):
            found = step(cast)
            with kernels.without_kernels():
                out.put("kernels, to torch's code", kind, errors(found, step(cast)))
    used = {f"{key[0]}, {key[1]}": agreed for key, agreed in kernels._agreed.items()}
    out.put("kernels in use", used)
    here = step()
    out.put("the same step twice", "kernels", errors(step(), here))
    with kernels.without_kernels():
        out.put("the same step twice", "torch's code", errors(step(), step()))
    with out.guarded("the same step twice", "task.deterministic"), deterministic():
        out.put("the same step twice", "task.deterministic", errors(step(), step()))
    if check.cuda:
        out.put("device against CPU, float32", errors(here, results_of(model.cpu(), batch.clone())))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """As with task.deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def edges(check: Check, records: Any) -> dict[str, Any]:
    """Our edges on the device compared with fairchem's, and with ours on the CPU."""
    from fairchem.core.common.utils import radius_graph_pbc

    from ndem_ocp.bench.batches import read_batches
    from ndem_ocp.models.neighbors import periodic_edges

    found = {}
    for repeat in ((1, 1), (3, 2)):
        for cutoff, most in ((12.0, 20), (6.0, 500)):
            batch = read_batches(records, 2 if check.tiny else 4, 1, repeat=repeat).batches[0]
            there = periodic_edges(batch.clone().to(check.device), cutoff, most, True)
            theirs = radius_graph_pbc(batch.clone().to(check.device), cutoff, most, True)
            here = periodic_edges(batch.clone(), cutoff, most, True)
            on_device, on_cpu = keys(there), keys(here)
            found[f"{len(batch.pos)} atoms, {cutoff} A, {most} neighbors"] = {
                "edges": len(on_device),
                "not fairchem's": len(on_device ^ keys(theirs)),
                "not the CPU's": len(on_device ^ on_cpu),
            }
    return found


def keys(graph: Any) -> set[tuple[int, ...]]:
    index, cells, _ = graph
    return set(map(tuple, torch.cat([index.T, cells.round().long()], dim=1).tolist()))


def training_steps(check: Check) -> dict[str, list[float]]:
    """Losses of five NDeM steps on the CPU and on the device."""
    from ndem_ocp.bench.gpu.whole_run import small_config
    from ndem_ocp.testing import steps, trainer_of

    found = {}
    with frames_from_the_cpu():
        for name in ("cpu", *(["cuda"] if check.cuda else [])):
            torch.manual_seed(0)
            trainer = trainer_of(
                small_config(check), check.work / f"steps-{name}", cpu=name == "cpu"
            )
            found[name] = steps(trainer, 5)
    return found


# --- models, batches, errors ---------------------------------------------------------------------


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


def moved(batch: Any, check: Check, dtype: torch.dtype) -> Any:
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
