"""Compare our EquiformerV2 with fairchem's on the device: outputs, gradients, edges.

All numbers are relative errors (norm of the difference over the norm), with respect to fairchem's
unless stated otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndem_ocp.bench.clock import timed_calls
from ndem_ocp.bench.gpu.comparing import (
    CASTS,
    build,
    config,
    errors,
    moved,
    precisions_of,
    rattled,
    results_of,
    two_layers,
)
from ndem_ocp.bench.gpu.results import SMALL, Check, Results, precision

FORMS: dict[str, dict[str, Any]] = {
    "L4 M2": {"lmax_list": [4], "mmax_list": [2], "grid_resolution": 18},
    "L6 M3": {"lmax_list": [6], "mmax_list": [3], "grid_resolution": 18},
    "gates": {"lmax_list": [3], "mmax_list": [2], "use_gate_act": True, "use_grid_mlp": False},
    "checkpointing": {"lmax_list": [3], "mmax_list": [2], "activation_checkpoint": True},
}


def run(check: Check, out: Results) -> None:
    """In float64 first: there are no kernels for it that would have to be compiled."""
    from ndem_ocp.bench.batches import open_data, read_batches
    from ndem_ocp.testing.precision import default_dtype

    records = open_data(check.data() / "train")
    batch = rattled(read_batches(records, 3, 1).batches[0])
    names = list(FORMS)[: 1 if check.tiny else None]

    def compare(dtype: torch.dtype, form: str) -> None:
        with out.guarded(str(dtype), form), default_dtype(dtype):
            out.put(str(dtype), form, forms(check, batch, dtype, FORMS[form]))

    for form in names:
        compare(torch.float64, form)
    with out.guarded("two views"), default_dtype(torch.float64):
        out.put("two views", two_views(check, batch))
    compare(torch.float32, names[0])
    for name in ("upstream", "ours"):
        with out.guarded("precisions, error to float64", name):
            precisions(check, out, batch, name)
    edges(check, out, records)
    for form in names[1:]:
        compare(torch.float32, form)


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


def precisions(check: Check, out: Results, batch: Any, name: str) -> None:
    """Errors of one implementation in each precision, with respect to its own in float64."""
    from ndem_ocp.models.equiformer_names import to_ours
    from ndem_ocp.testing.precision import default_dtype

    model = (to_ours if name == "ours" else lambda m: m)(config(two_layers(check)))
    place = ("precisions, error to float64", name)
    with default_dtype(torch.float64):
        double = build(model, check)
        exact, expected = with_edges(double, moved(batch, check, torch.float64))
    single = build(model, check)
    single.load_state_dict(double.state_dict())
    del double
    for kind in precisions_of(check):
        with out.guarded(*place, kind), precision(kind):
            here = moved(batch, check, torch.float32)
            found, seen = with_edges(single, here, CASTS.get(kind))
            out.put(*place, kind, {**errors(found, exact), "other edges": others(seen, expected)})


def with_edges(
    model: Any, batch: Any, cast: torch.dtype | None = None
) -> tuple[dict[str, Tensor], set[tuple[int, ...]]]:
    """Outputs and gradients, and the edges that the model has used, without their cells."""
    from ndem_ocp.bench.clock import Stopwatch
    from ndem_ocp.models.graphs import edge_index_of

    graphs: list[Any] = []
    watch = Stopwatch(torch.device("cpu"))
    with timed_calls(model.backbone, "generate_graph", watch, "graph", graphs.append):
        found = results_of(model, batch, cast)
    counts: dict[tuple[int, int], int] = {}
    for graph in graphs:
        for source, target in edge_index_of(graph).T.tolist():
            counts[source, target] = counts.get((source, target), 0) + 1
    return found, {(*pair, number) for pair, most in counts.items() for number in range(most)}


def others(found: set[Any], expected: set[Any]) -> int:
    return len(found ^ expected)


def edges(check: Check, out: Results, records: Any) -> None:
    """Our edges on the device compared with fairchem's, and with ours on the CPU.

    Where neighbors are equally far, as in these structures before they are rattled, the CPU may
    choose others, but fairchem's code on the same device does not.
    """
    from fairchem.core.common.utils import radius_graph_pbc

    from ndem_ocp.bench.batches import read_batches
    from ndem_ocp.models.neighbors import periodic_edges

    for repeat in ((1, 1), (3, 2)):
        read = read_batches(records, 2 if check.tiny else 4, 1, repeat=repeat).batches[0]
        for cutoff, most in ((12.0, 20), (6.0, 500)):
            place = ("edges", f"{len(read.pos)} atoms, {cutoff} A, {most} neighbors")
            with out.guarded(*place):
                found = {}
                for words, batch in (("", read), ("rattled, ", rattled(read))):
                    there = keys(periodic_edges(moved(batch, check), cutoff, most, True))
                    theirs = keys(radius_graph_pbc(moved(batch, check), cutoff, most, True))
                    found[f"{words}edges"] = len(there)
                    found[f"{words}not fairchem's"] = others(there, theirs)
                here = keys(periodic_edges(rattled(read), cutoff, most, True))
                found["rattled, not the CPU's"] = others(there, here)
                out.put(*place, found)


def keys(graph: Any) -> set[tuple[int, ...]]:
    index, cells, _ = graph
    return set(map(tuple, torch.cat([index.T, cells.round().long()], dim=1).tolist()))
