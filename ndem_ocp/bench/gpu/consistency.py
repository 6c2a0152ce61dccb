"""Compare our EquiformerV2 with itself on the device: kernels and torch's code, two equal steps,
the device and the CPU.

All numbers are relative errors (norm of the difference over the norm). The most important ones
come first, and none needs another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ndem_ocp.bench.gpu.comparing import (
    CASTS,
    build,
    config,
    errors,
    frames_from_the_cpu,
    moved,
    precisions_of,
    rattled,
    results_of,
    two_layers,
)
from ndem_ocp.bench.gpu.results import Check, Results, precision


def run(check: Check, out: Results) -> None:
    from ndem_ocp.bench.batches import open_data, read_batches
    from ndem_ocp.models.equiformer_names import to_ours

    batch = rattled(read_batches(open_data(check.data() / "train"), 3, 1).batches[0])
    model = build(to_ours(config(two_layers(check))), check)

    def step(cast: torch.dtype | None = None) -> dict[str, Tensor]:
        return results_of(model, moved(batch, check, torch.float32), cast)

    for kind in precisions_of(check):
        _kernels(out, kind, partial(step, CASTS.get(kind)))
    _twice(out, step)
    if check.cuda:
        name = "device against CPU, float32"
        with out.guarded(name), precision("fp32"):
            here = step()
            out.put(name, errors(here, results_of(model.cpu(), batch.clone())))
    with out.guarded("training steps"):
        out.put("training steps", training_steps(check))


def _kernels(out: Results, kind: str, step: Callable[[], dict[str, Tensor]]) -> None:
    """Kernels against torch's code in one precision, and which of them passed their own test."""
    from ndem_ocp.models.equiformer import kernels

    with out.guarded("kernels, to torch's code", kind), precision(kind):
        found = step()
        with kernels.without_kernels():
            expected = step()
        out.put("kernels, to torch's code", kind, errors(found, expected))
    with out.guarded("kernels in use"):
        out.put("kernels in use", _in_use())


def _in_use() -> dict[str, dict[str, bool]]:
    """{kernel: {dtype and products: whether it agreed with torch's code on a few rows}}."""
    from ndem_ocp.models.equiformer import kernels

    used: dict[str, dict[str, bool]] = {}
    for (name, dtype, _, products, *_), agreed in kernels._agreed.items():
        label = f"{dtype}, products: {products}".removeprefix("torch.")
        part = used.setdefault(name, {})
        part[label] = part.get(label, True) and agreed
    return used


def _twice(out: Results, step: Callable[[], dict[str, Tensor]]) -> None:
    """Errors between two steps that should be equal, in float32."""
    from ndem_ocp.models.equiformer import kernels

    contexts = {
        "kernels": contextlib.nullcontext,
        "torch's code": kernels.without_kernels,
        "task.deterministic": deterministic,
    }
    for words, context in contexts.items():
        with out.guarded("the same step twice", words), precision("fp32"), context():
            first = step()
            out.put("the same step twice", words, errors(step(), first))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """As with task.deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


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
