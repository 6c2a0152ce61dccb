"""Losses of a step against the method's own, on batches of one and two data sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss, MAELoss, MSELoss, PerAtomMAELoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task, compute_loss
from models import hydra, slabs

from ndem_ocp.fairchem2.idle_parameters import IdleParameters
from ndem_ocp.fairchem2.losses import error_names
from ndem_ocp.fairchem2.model import PAIR, add_second_view, pair_name
from ndem_ocp.fairchem2.objectives import Beside, Instead, Now, logged, restricted, with_forces
from ndem_ocp.method import (
    NDeMSettings,
    Noise,
    ViewLabels,
    draw_noise,
    noise_target,
    step_generator,
    with_first_order_labels,
)


def task(name: str, datasets=("a", "b"), loss=None, rmsd=2.0, coefficient=10.0) -> Task:
    kind = next(kind for kind in ("energy", "forces", "stress") if kind in name)
    loss = loss or (L2NormLoss() if kind == "forces" else PerAtomMAELoss())
    return Task(
        name, "atom" if kind == "forces" else "system", kind,
        OutputSpec([3] if kind == "forces" else [1], "float32"), Normalizer(0.0, rmsd),
        list(datasets), DDPMTLoss(loss, coefficient=coefficient),
    )  # fmt: skip


def labelled(names=("energy", "forces"), without_forces=()):
    data = atomicdata_list_to_batch(slabs())
    generator = torch.Generator().manual_seed(4)
    for name in names:
        if "forces" in name:
            label = torch.randn(data.pos.shape, generator=generator)
            for structure in without_forces:
                label[data.batch == structure] = torch.inf
        elif "stress" in name:
            label = torch.randn(2, 9, generator=generator)
        else:
            label = torch.randn(2, generator=generator)
        data[name] = label
    data.dataset_name = ["a.train", "b.train"]
    return data


def noise_of(data, settings, **kwargs) -> Noise:
    noise = draw_noise(
        data.pos, data.batch, 2, data.fixed, settings, step_generator(0, 0, 1), **kwargs
    )
    return with_first_order_labels(noise, 2) if settings.instead else noise


def losses_of(objective, model, data, noise, weight=3.0):
    objective.prepare(data, noise, Now(weight, 0.0))
    out = model.train()(data)
    return out, compute_loss(objective.tasks, out, data)


def test_the_pair_loss_is_eq_17_over_the_atoms_that_count():
    settings = NDeMSettings(curvature=5.0, norm="squared_l2")
    model = add_second_view(hydra("direct"), settings, None, ["forces"])
    data = labelled()
    objective = Beside(settings, logged([task("energy"), task("forces")]), model)
    noise = noise_of(data, settings)
    out, losses = losses_of(objective, model, data, noise)
    clean, noisy = out[pair_name("forces")][PAIR].split(3, dim=1)
    free = data.fixed == 0
    residual = clean - noisy - noise_target(noise, settings, force_rms=2.0)
    wanted = residual[free].square().sum(-1).mean()
    assert losses["ndem_forces"].item() == pytest.approx(3.0 * wanted.item(), rel=1e-5)
    assert objective.log(100.0, torch.device("cpu"))["ndem_loss"] == pytest.approx(wanted.item())


def test_noisy_nodes_ask_for_the_noise_alone():
    settings = NDeMSettings(objective="noisy_nodes")
    model = add_second_view(hydra("direct"), settings, None, ["forces"])
    data = labelled()
    objective = Beside(settings, logged([task("forces")]), model)
    noise = noise_of(data, settings)
    out, losses = losses_of(objective, model, data, noise, weight=1.0)
    noisy = out[pair_name("forces")][PAIR][:, 3:]
    free = data.fixed == 0
    wanted = (noisy - noise.eps / 0.05)[free].square().sum(-1).mean()
    assert losses["ndem_forces"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_structures_without_forces_take_no_part():
    settings = NDeMSettings(fraction=1.0)
    model = add_second_view(hydra("direct"), settings, None, ["forces"])
    data = labelled(without_forces=(1,))
    tasks = logged([task("energy"), task("forces", ["a"])])
    objective = Beside(settings, tasks, model)
    noise = restricted(noise_of(data, settings), with_forces(data, tasks[1:]), data.batch)
    assert not noise.viewed[data.batch == 1].any()
    _, losses = losses_of(objective, model, data, noise)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_labels_of_structures_that_take_no_part_stay():
    data = labelled()
    noise = noise_of(data, NDeMSettings(target="second_views", share=1.0))
    labels = ViewLabels(torch.ones_like(noise.eps), torch.ones(2), torch.zeros_like(noise.sigma))
    first = torch.tensor([True, False])
    found = restricted(noise._replace(labels=labels), first, data.batch)
    assert found.labels.energy_remainder.tolist() == [1.0, 0.0]
    second = data.batch == 1
    assert not found.labels.force_change[second].any()
    assert not found.eps[second].any()
    assert found.labels.force_change[~second].all()


def test_data_sets_with_tasks_of_their_own_have_losses_of_their_own():
    """Heads wrapped by data set, as UMA's; each task has its own normalizer."""
    names = ["a_forces", "b_forces"]
    settings = NDeMSettings(curvature=5.0)
    model = add_second_view(hydra("by_data_set"), settings, None, names)
    data = labelled([*names, "a_energy", "b_energy"])
    data["a_forces"][data.batch == 1] = torch.inf
    data["b_forces"][data.batch == 0] = torch.inf
    data["a_energy"][1] = data["b_energy"][0] = torch.inf
    tasks = logged([
        task("a_energy", ["a"]), task("b_energy", ["b"]),
        task("a_forces", ["a"], rmsd=1.0), task("b_forces", ["b"], rmsd=4.0),
    ])  # fmt: skip
    objective = Beside(settings, tasks, model)
    noise = noise_of(data, settings)
    out, losses = losses_of(objective, model, data, noise)
    for number, (name, rms) in enumerate((("a_forces", 1.0), ("b_forces", 4.0))):
        clean, noisy = out[pair_name(name)][PAIR].split(3, dim=1)
        counted = (data.fixed == 0) & (data.batch == number)
        residual = clean - noisy - noise_target(noise, settings, force_rms=rms)
        wanted = 3.0 * residual[counted].square().sum(-1).mean()
        assert losses[pair_name(name)].item() == pytest.approx(wanted.item(), rel=1e-4)
    shown = objective.log(1.0, torch.device("cpu"))
    assert {"a_forces/ndem_loss", "b_forces/ndem_loss"} <= set(shown)


@pytest.mark.parametrize("loss", [PerAtomMAELoss, MSELoss])
def test_in_place_a_view_counts_with_its_weight(loss):
    settings = NDeMSettings(target="second_views", share=1.0, sigma_max=0.05)
    data = labelled(["energy", "forces", "stress"])
    x, energy, forces = data.pos.clone(), data.energy.clone(), data.forces.clone()
    noise = noise_of(data, settings)
    noise = noise._replace(
        viewed=data.batch == 0,
        eps=noise.eps * (data.batch == 0)[:, None],
        labels=ViewLabels(
            0.1 * torch.ones(len(x), 3) * (data.batch == 0)[:, None],
            torch.tensor([0.2, 0.0]),
            torch.zeros(len(x)),
        ),
    )
    energy_task = task("energy", loss=loss())
    force_task, stress_task = task("forces"), task("stress", loss=MAELoss())
    objective = Instead(settings, logged([energy_task, force_task, stress_task]))
    objective.prepare(data, noise, Now(0.5, 0.0))
    assert torch.equal(data.pos, x + noise.eps)
    assert torch.allclose(data.forces, forces + noise.labels.force_change)
    work = (forces * noise.eps)[data.batch == 0].sum()
    assert data.energy[0] == pytest.approx((energy[0] - work + 0.2).item(), rel=1e-5)
    assert data.energy[1] == energy[1]
    predicted = {
        "energy": {"energy": torch.zeros(2, requires_grad=True)},
        "forces": {"forces": torch.zeros(len(x), 3, requires_grad=True)},
        "stress": {"stress": torch.zeros(2, 9, requires_grad=True)},
    }
    plain = compute_loss([energy_task, force_task, stress_task], predicted, data)
    found = compute_loss(objective.tasks, predicted, data)
    single, free = one(data, 0), data.fixed == 0
    alone = {
        "energy": {"energy": torch.zeros(1, requires_grad=True)},
        "forces": {"forces": torch.zeros(len(single.pos), 3, requires_grad=True)},
    }
    only = compute_loss([energy_task, force_task], alone, single)
    share = {"energy": 0.5, "forces": free[data.batch == 0].sum() / free.sum()}
    for name in ("energy", "forces"):
        less = plain[name] - 0.5 * share[name] * only[name]
        assert found[name].item() == pytest.approx(less.item(), rel=1e-4)
    # nobody knows the stress of X + eps
    unviewed = (data.stress[1] / 2.0).abs().sum() / 18 * 10
    assert found["stress"].item() == pytest.approx(unviewed.item(), rel=1e-4)
    assert "ndem_change_error_eV_per_A" in objective.log(1.0, torch.device("cpu"))


def one(data, number):
    """One structure of a batch, with its labels."""
    atoms = data.batch == number
    single = atomicdata_list_to_batch([slabs()[number]])
    for name in ("energy", "forces"):
        single[name] = data[name][atoms if name == "forces" else slice(number, number + 1)]
    single.dataset_name = [data.dataset_name[number]]
    return single


def test_first_order_shows_a_view_without_a_force():
    settings = NDeMSettings(target="first_order", share=1.0)
    data = labelled()
    objective = Instead(settings, logged([task("energy"), task("forces")]))
    objective.prepare(data, noise_of(data, settings), Now(1.0, 0.0))
    predicted = {
        "energy": {"energy": torch.zeros(2, requires_grad=True)},
        "forces": {"forces": torch.zeros(len(data.pos), 3, requires_grad=True)},
    }
    losses = compute_loss(objective.tasks, predicted, data)
    assert losses["forces"].item() == 0.0
    assert losses["energy"].item() > 0.0


@pytest.mark.parametrize(
    ("name", "loss", "error", "factor"),
    [
        ("energy", PerAtomMAELoss(), "energy_per_atom_mae_eV_per_atom", 0.2),
        ("forces", L2NormLoss(), "forces_l2norm_eV_per_A", 0.2),
        ("oc20_forces", MSELoss(), "oc20_forces_mse_(eV_per_A)2", 0.4),
        ("stress", MAELoss(), "stress_mae_eV_per_A3", 0.2),
    ],
)
def test_an_error_is_named_with_its_unit(name, loss, error, factor):
    names = error_names(task(name, loss=loss, rmsd=2.0, coefficient=10.0))
    assert names == {f"loss_{name}": 1.0, error: pytest.approx(factor)}


def test_idle_parameters_are_left_alone_and_start_as_new():
    main, auxiliary = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([main, auxiliary], lr=0.1, weight_decay=0.5)
    idle_parameters = IdleParameters(optimizer, [auxiliary])

    def step(idle, starts=False):
        idle_parameters.set(idle, starts)
        (main.square().sum() + (0.0 if idle else 1.0) * auxiliary.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(True), step(True)
    assert torch.equal(auxiliary, torch.ones(3))
    idle_parameters.complete()  # a checkpoint is written
    assert torch.equal(auxiliary, torch.ones(3))
    step(True)
    step(False, starts=True)
    fresh = torch.nn.Parameter(torch.ones(3))
    other = torch.optim.AdamW([fresh], lr=0.1, weight_decay=0.5)
    fresh.sum().backward()
    other.step()
    assert torch.equal(auxiliary, fresh)
    assert optimizer.state[main]["step"] == 4


def test_learned_curvature_is_kept_from_weight_decay():
    settings = NDeMSettings(learned_curvature=True)
    model = add_second_view(hydra("direct"), settings, None, ["forces"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    IdleParameters(optimizer, model.auxiliary).keep_from_decay(model.log_curvature)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[1]["params"] == [model.log_curvature]
    data = labelled()
    objective = Beside(settings, logged([task("forces")]), model)
    _, losses = losses_of(objective, model, data, noise_of(data, settings))
    sum(losses.values()).backward()
    assert model.log_curvature.grad.item() != 0.0


def test_the_length_of_training_is_the_shorter_limit():
    from ndem_ocp.fairchem2.unit import total_steps

    def state(**limits):
        return SimpleNamespace(train_state=SimpleNamespace(dataloader=range(7), **limits))

    assert total_steps(state(max_steps=10, max_epochs=None)) == 10
    assert total_steps(state(max_steps=None, max_epochs=2)) == 14
    assert total_steps(state(max_steps=10, max_epochs=1)) == 7
