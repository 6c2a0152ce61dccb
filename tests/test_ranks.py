"""One, two and four ranks agree: losses, gradients, weights and metrics of NDeM's own trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.modules.evaluator import Evaluator

from conftest import tiny_config
from fairchem_kit.training.no_free_atoms import NoFreeAtomsEvaluator
from ranks import EXACT, Batches, Case, Seen, run_case, run_ranks
from reliability import observed

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

WORLDS = (2, 4)
ROUNDING = 1e-9
SINGLE = {"forces_cosine_similarity"}  # fairchem computes it in float32
PER_BATCH = {"loss", "ndem_loss"}  # averaged over steps and ranks, not over structures
OBJECTIVES = ("ndem", "noisy_nodes", "dens")


def shares(*steps: list[int], sizes: dict[int, list[int]]) -> dict[int, Batches]:
    """The structures of each step, cut into the ``sizes`` of each number of ranks."""
    cut: dict[int, Batches] = {1: [[step] for step in steps]}
    for world, parts in sizes.items():
        ends = [sum(parts[: i + 1]) for i in range(world)]
        starts = [0, *ends[:-1]]
        cut[world] = [[step[a:b] for a, b in zip(starts, ends)] for step in steps]
    return cut


STEPS = ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
RAGGED = {2: [1, 5], 4: [1, 1, 1, 3]}
VAL = shares([0, 1, 2, 3, 4, 5], sizes=RAGGED)


def ragged(**options: Any) -> Case:
    return Case(train=shares(*STEPS, sizes=RAGGED), val=VAL, **options)


SAMPLER = Case(batch_size=4, first_n=10)
DRAWN = Case(
    train={1: [[[0]], [[0]]], 2: [[[0], [0]]] * 2, 4: [[[0]] * 4] * 2}, val=VAL, random=True
)
CASES = {
    "drawn": DRAWN,
    # The first rank gets no noise at all.
    **{f"still {name}": ragged(ndem={"objective": name}, still={0, 6}) for name in OBJECTIVES},
    # The first rank has no free atom in the first step, and none in the validation.
    **{f"fixed {name}": ragged(ndem={"objective": name}, without_free={0}) for name in OBJECTIVES},
    # No rank has.
    "all fixed": ragged(without_free=set(STEPS[0])),
    "sampler": SAMPLER,
    "drawn again": DRAWN,
    "drawn, seed 1": replace(DRAWN, seed=1),
}


@pytest.fixture(scope="module")
def config(demo_data: Path) -> dict[str, Any]:
    config = tiny_config(demo_data)
    config["model"]["backbone"].update(EXACT)
    # Gradient descent: Adam would turn rounding errors into steps of full size.
    config["optim"].update(optimizer="SGD", optimizer_params={"weight_decay": 0.001})
    config["optim"].update(num_workers=0, ema_decay=0.5)
    return config


@pytest.fixture(scope="module")
def one(config, tmp_path_factory) -> dict[str, Seen]:
    return run_case(0, CASES, config, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=WORLDS)
def several(request, config, tmp_path_factory) -> list[dict[str, Seen]]:
    """Each rank's view of every case."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    return run_ranks(request.param, folder, run_case, CASES, config, folder)


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: str
) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    assert found.keys() == expected.keys()
    largest = 0.0
    for name, value in expected.items():
        if value.is_floating_point():
            scale = value.abs().max().clamp_min(1e-6)
            difference = ((found[name] - value).abs().max() / scale).item()
            assert difference <= ROUNDING, f"{what}: {name}"
            largest = max(largest, difference)
    return largest


def close(name: str, value: float) -> Any:
    return pytest.approx(value, rel=1e-5 if name in SINGLE else ROUNDING, nan_ok=True)


def assert_same_run(ranks: list[Seen], one: Seen) -> float:
    """What the ranks did together is what the single rank did.

    Returns the largest relative difference of the gradients and weights.
    """
    differences = []
    assert [sorted(step) for step in together(ranks)] == [sorted(s) for s in one.structures]
    for losses, expected in zip(zip(*(seen.losses for seen in ranks)), one.losses, strict=True):
        assert math.isfinite(expected)
        assert sum(losses) / len(ranks) == pytest.approx(expected, rel=ROUNDING)
    for seen in ranks:
        for step, (found, expected) in enumerate(zip(seen.gradients, one.gradients, strict=True)):
            differences.append(assert_close(found, expected, f"gradient of step {step}"))
        differences.append(assert_close(seen.weights, one.weights, "weights"))
    assert_same_sums(ranks, one)
    for seen in ranks:
        assert seen.val.keys() == one.val.keys()
        for name, expected in one.val.items():
            assert seen.val[name]["metric"] == close(name, expected["metric"]), name
            if name not in PER_BATCH:
                assert seen.val[name]["numel"] == expected["numel"], name
    return max(differences)


def assert_same_sums(ranks: list[Seen], one: Seen) -> None:
    """Training metrics: fairchem's are each rank's own, and their sums over the ranks are the
    single rank's; NDeM's are the same on every rank."""
    assert set().union(*(seen.sums for seen in ranks)) == one.sums.keys()
    for name, (total, count) in one.sums.items():
        mean = close(name, total / count if count else 0)
        parts = [seen.sums[name] for seen in ranks]
        if name.startswith("ndem_"):
            for part in parts:
                assert part[0] / part[1] == mean, name
            continue
        assert sum(part[0] for part in parts) / max(sum(part[1] for part in parts), 1) == mean, name
        if name not in PER_BATCH:
            assert sum(part[1] for part in parts) == count, name


def agree(difference: float) -> str:
    return (
        "losses, gradients, weights, metrics and validation are one rank's; largest relative "
        f"difference of a gradient or weight {difference:.0e} (float64)"
    )


def test_ragged_batches_and_a_rank_without_noise(one, several):
    differences = []
    for name in (f"still {objective}" for objective in OBJECTIVES):
        ranks = [seen[name] for seen in several]
        assert not torch.cat(ranks[0].eps).any()
        assert torch.cat([eps for seen in ranks[1:] for eps in seen.eps]).any()
        differences.append(assert_same_run(ranks, one[name]))
        assert any("noisy_forces" in parameter for parameter in one[name].gradients[0])
    observed(
        "ranks",
        f"ragged batches on {len(several)} ranks, the first without any noise",
        len(differences),
        agree(max(differences)),
        "nothing",
    )


def test_a_rank_without_a_free_atom(one, several):
    differences = []
    for name in (f"fixed {objective}" for objective in OBJECTIVES):
        differences.append(assert_same_run([seen[name] for seen in several], one[name]))
        assert math.isfinite(one[name].val["forces_mae"]["metric"])
    observed(
        "ranks",
        f"the first of {len(several)} ranks has no free atom in a step and in the validation",
        len(differences),
        agree(max(differences)),
        "nothing",
    )


def test_no_rank_has_a_free_atom(one, several):
    """The force losses are then zero, and the energy is trained on all the same."""
    single = one["all fixed"]
    difference = assert_same_run([seen["all fixed"] for seen in several], single)
    energy = [name for name in single.gradients[0] if name.startswith("output_heads.energy")]
    assert any(single.gradients[0][name].any() for name in energy)
    noisy = [name for name in single.gradients[0] if "noisy_forces" in name]
    assert noisy
    assert not any(single.gradients[0][name].any() for name in noisy)
    observed(
        "ranks",
        f"none of {len(several)} ranks has a free atom in a step",
        1,
        f"the energy is trained on; {agree(difference)}",
        "nothing",
    )


def together(ranks: list[Seen]) -> list[list[int]]:
    """The structures of each step, over all ranks."""
    return [list(chain(*step)) for step in zip(*(seen.structures for seen in ranks))]


def test_a_data_set_that_the_ranks_cannot_share_evenly(config, several, tmp_path):
    """fairchem's sampler gives every rank as many structures, the first ones of the order again.

    Ten structures are 4, 4, 2 for one rank and for two. Four ranks take three each: the last step
    and the last validation batch hold two structures a second time, which count twice.
    """
    ranks = [seen["sampler"] for seen in several]
    steps = together(ranks)
    order = [number for step in steps for number in step]
    again = order[10:]
    assert sorted(order[:10]) == list(range(10))
    assert again == ([] if len(ranks) == 2 else order[:2])
    val = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, *([0, 1] if len(ranks) == 4 else [])]]
    alone = replace(SAMPLER, train={1: [[step] for step in steps]}, val={1: [[v] for v in val]})
    once = replace(alone, val={1: [[v] for v in [*val[:2], [8, 9]]]})
    rest = replace(alone, val={1: [[[0, 1]]]})
    expected = run_case(0, {"alone": alone, "once": once, "rest": rest}, config, tmp_path)
    difference = assert_same_run(ranks, expected["alone"])
    if again:  # and so they are not the means over the data set
        for name in ("energy_mae", "forces_mae"):
            found, whole, part = (
                seen.val[name] for seen in (ranks[0], expected["once"], expected["rest"])
            )
            assert found["numel"] == whole["numel"] + part["numel"]
            assert found["total"] == pytest.approx(whole["total"] + part["total"], rel=ROUNDING)
            assert found["metric"] != pytest.approx(whole["metric"], rel=1e-4)
    observed(
        "ranks",
        f"10 structures for {len(several)} ranks, batches of 4 in all",
        1,
        f"{len(again)} structures are counted twice, as by fairchem; else {agree(difference)}",
        "nothing",
    )


def test_noise_differs_between_ranks_and_steps_and_comes_again(one, several):
    """Every rank has the same structure in every step, so equal noise would be equal tensors."""
    drawn = [eps for seen in several for eps in seen["drawn"].eps]
    assert len(drawn) == 2 * len(several)
    for i, first in enumerate(drawn):
        assert first.any()
        assert not any(torch.equal(first, other) for other in drawn[:i])
    for seen in several:
        again, other = seen["drawn again"], seen["drawn, seed 1"]
        for step, eps in enumerate(seen["drawn"].eps):
            assert torch.equal(again.eps[step], eps)
            assert not torch.equal(other.eps[step], eps)
    for step, eps in enumerate(one["drawn"].eps):  # rank 0 draws what a single rank draws
        assert torch.equal(several[0]["drawn"].eps[step], eps)

    observed(
        "ranks",
        f"the same structure on {len(several)} ranks and in 2 steps",
        len(drawn),
        "different noise on every rank and in every step; the same in a second run of the process",
        "nothing",
    )


@pytest.mark.parametrize(("natoms", "systems"), [([2, 0], 1), ([0, 0], 0)])
def test_thresholds_skip_structures_without_free_atoms(natoms, systems):
    """fairchem's metric fails on such a structure once its energy is good enough."""
    metric = "energy_forces_within_threshold"
    fairchems = Evaluator("ocp", {"energy": ["mae"], "misc": [metric]})
    perfect = {
        "energy": torch.zeros(2, 1),
        "forces": torch.zeros(sum(natoms), 3),
        "natoms": torch.tensor(natoms),
    }
    with pytest.raises(RuntimeError, match="max"):
        fairchems.eval(perfect, perfect)
    found = NoFreeAtomsEvaluator(fairchems, set()).eval(perfect, perfect)
    assert found["energy_mae"]["numel"] == 2
    assert (found[metric]["total"], found[metric]["numel"]) == (systems, systems)
    assert isinstance(found[metric]["total"], int)
