"""Two ranks against one: gradients of NDeM, and all-reduced means."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.distributed as dist
from fairchem.core.common.registry import registry
from fairchem.core.datasets import create_dataset, data_list_collater
from fairchem.core.modules.loss import DDPLoss

from conftest import steps, tiny_config, trainer_of
from helpers import default_dtype, state_of, use_float64_graphs
from ndem_ocp.method import Forces, NDeMSettings, Noise, draw_noise, ndem_loss, step_generator
from ndem_ocp.method import objective as objective_module
from ndem_ocp.models import two_view_config, with_second_view
from ndem_ocp.second_views.draws import Draws
from ndem_ocp.second_views.make import MakeOptions, make_second_views
from ranks import fork_ranks, free_port

pytestmark = pytest.mark.ddp

# Gate activations make the random edge frames a gauge that no result depends on.
EXACT = {"use_gate_act": True, "use_grid_mlp": False, "drop_path_rate": 0.0, "alpha_drop": 0.0}


def gradients(config, source, rank: int, parts: list[list[int]], fraction: float):
    """Gradients of 100 L_F + L_NDeM on the structures ``parts[rank]``, as a training step does.

    The noise is drawn once for all structures, so that every way of sharing them sees the same.
    """
    settings = NDeMSettings(fraction=fraction)
    dataset = create_dataset(source, "train")
    frames = [dataset[i] for i in range(sum(map(len, parts)))]
    everything = data_list_collater(frames, otf_graph=True)
    noise = draw_noise(
        everything.pos.double(),
        everything.batch,
        len(frames),
        everything.fixed,
        settings,
        step_generator(0, 0, 1),
    )
    mine = parts[rank]
    atoms = torch.isin(everything.batch, torch.tensor(mine))
    batch = data_list_collater([frames[i] for i in mine], otf_graph=True)
    batch.pos, batch.cell = batch.pos.double(), batch.cell.double()
    noise = noise._make(part if part is None else part[atoms] for part in noise)

    torch.manual_seed(0)
    model = registry.get_model_class(config["name"])(
        **{key: value for key, value in config.items() if key != "name"}
    ).double()
    use_float64_graphs(model.backbone)
    torch.manual_seed(100 + rank)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    wrapped.train()
    out = wrapped(with_second_view(batch, noise.eps, noise.viewed))
    clean, free = out["forces"]["forces"], batch.fixed == 0
    reduce = DDPLoss("l2mae", reduction="mean")
    force_loss = reduce(clean[free], batch.forces[free].double(), natoms=batch.natoms)
    auxiliary = ndem_loss(
        Forces(clean, out["noisy_forces"], None),
        noise,
        free,
        settings,
        mean=lambda per_atom: reduce.mean(per_atom, per_atom, None),
    )
    energy = out["energy"]["energy"].sum() * 0.0  # every parameter takes part, as in training
    (100 * force_loss + auxiliary.loss + energy).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rank_main(rank, port, config, source, parts, fraction, out):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(parts))
    with default_dtype(torch.float64):
        result = gradients(config, source, rank, parts, fraction)
    if rank == 0:
        torch.save(result, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_two_ranks_give_the_gradients_of_one(demo_data, tmp_path, fraction):
    """Ragged: one structure on rank 0, three on rank 1. DDP averages what DDPLoss prepared."""
    model = tiny_config(demo_data)["model"]
    model["backbone"].update(EXACT)
    config = two_view_config(model, NDeMSettings())
    source = {
        "src": str(demo_data / "train"),
        "format": "lmdb",
        "key_mapping": {"y": "energy", "force": "forces"},
    }
    # With half of the structures viewed, each rank keeps one of them (structures 0 and 2 or 3).
    settings = NDeMSettings(fraction=fraction)
    viewed = draw_viewed(source, settings)
    first = viewed[0]
    parts = [[first], [i for i in range(4) if i != first]]
    with default_dtype(torch.float64):
        expected = gradients(copy.deepcopy(config), source, 0, [[*range(4)]], fraction)

    out = tmp_path / "gradients.pt"
    fork_ranks(2, rank_main, free_port(), config, source, parts, fraction, out)
    got = torch.load(out)
    assert got.keys() == expected.keys()
    assert any(name.startswith("output_heads.noisy_forces") for name in got)
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-9)
        assert (got[name] - gradient).abs().max() <= 1e-8 * scale, name


def draw_viewed(source, settings) -> list[int]:
    dataset = create_dataset(source, "train")
    batch = data_list_collater([dataset[i] for i in range(4)], otf_graph=True)
    noise = draw_noise(batch.pos, batch.batch, 4, batch.fixed, settings, step_generator(0, 0, 1))
    return [i for i in range(4) if bool(noise.viewed[batch.batch == i].all())]


# --- the trainer: tasks that start late ----------------------------------------------------------

START = 0.3  # of ten steps
STEPS = 6


def noise_of_positions(
    pos, graph_index, num_graphs, fixed, settings, generator, progress=0.0
) -> Noise:
    """In place of random noise: the same for an atom on whichever rank it is."""
    wave = torch.sin(1e3 * pos)
    moved = (wave[:, 0] > 0) & (fixed == 0)
    viewed = torch.ones_like(moved)
    if settings.objective == "dens":  # about half of the structures
        sums = torch.zeros(num_graphs).index_add(0, graph_index, wave[:, 1])
        viewed = (sums > 0)[graph_index]
        moved &= viewed
    sigma = torch.full_like(wave[:, 0], 0.05)
    return Noise(0.05 * wave * moved[:, None], sigma, moved, viewed)


def train(config, run_dir, batch_size: int) -> dict[str, torch.Tensor]:
    """Weights after STEPS steps of fairchem's loop on this process's share of the data."""
    config = copy.deepcopy(config)
    config["optim"]["batch_size"] = batch_size
    objective_module.draw_noise = noise_of_positions
    try:
        trainer = trainer_of(config, run_dir)
        steps(trainer, STEPS)
    finally:
        objective_module.draw_noise = draw_noise
    return {name: value.clone() for name, value in state_of(trainer).items()}


def trainer_rank(rank, port, config, run_dir, out):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    result = train(config, run_dir, batch_size=2)
    if rank == 0:
        torch.save(result, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ndem", "dens"])
def test_a_task_that_starts_late_is_the_same_on_two_ranks(demo_data, tmp_path, objective):
    """Three plain steps and three with the auxiliary head, which DDP must not wait for before."""
    config = tiny_config(demo_data, objective=objective, start=START)
    config["model"]["backbone"].update(EXACT)
    # Gradient descent: Adam would turn rounding errors into steps of full size.
    config["optim"].update(optimizer="SGD", optimizer_params={"weight_decay": 0.001})
    config["optim"]["num_workers"] = 0
    expected = train(config, tmp_path / "one", batch_size=4)

    out = tmp_path / "weights.pt"
    fork_ranks(2, trainer_rank, free_port(), config, tmp_path / "two", out)
    got = torch.load(out)
    assert got.keys() == expected.keys()
    untrained = train({**config, "optim": {**config["optim"], "lr_initial": 0.0}}, tmp_path, 4)
    for name, value in expected.items():
        moved = (value - untrained[name]).abs().max()
        assert (got[name] - value).abs().max() <= 1e-3 * moved + 1e-7, name
        if name.endswith(("noisy_forces.head.force_block.proj.weight", "force_embedding.weight")):
            assert moved > 0, name


@pytest.mark.slow
def test_second_views_are_the_same_on_two_ranks(demo_data, tmp_path):
    """Every structure is shown at its one view, on whichever rank it is."""
    views = tmp_path / "views.lmdb"
    options = MakeOptions(draws=Draws(1, 0.02, 0.05), pairs=10, progress=False)
    make_second_views(demo_data / "train", "ase.calculators.emt:EMT()", views, options)
    config = tiny_config(demo_data, target="second_views", second_views=str(views), share=1.0)
    config["model"]["backbone"].update(EXACT)
    config["optim"].update(optimizer="SGD", optimizer_params={"weight_decay": 0.001})
    config["optim"]["num_workers"] = 0
    expected = train(config, tmp_path / "one", batch_size=4)
    clean = copy.deepcopy(config)
    clean["task"]["ndem"]["share"] = 0.0
    other = train(clean, tmp_path / "clean", batch_size=4)

    out = tmp_path / "weights.pt"
    fork_ranks(2, trainer_rank, free_port(), config, tmp_path / "two", out)
    got = torch.load(out)
    assert got.keys() == expected.keys()
    assert any(not torch.allclose(other[name], expected[name]) for name in expected)
    untrained = train({**config, "optim": {**config["optim"], "lr_initial": 0.0}}, tmp_path, 4)
    for name, value in expected.items():
        moved = (value - untrained[name]).abs().max()
        assert (got[name] - value).abs().max() <= 1e-3 * moved + 1e-7, name
