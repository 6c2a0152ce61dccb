"""What NDeM needs of a model of fairchem 2, on every kind that is supported."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.base import HydraModel
from models import KINDS, hydra, slabs

from ndem_ocp.fairchem2.model import PAIR, add_second_view, conserving, pair_name
from ndem_ocp.fairchem2.views import EPS, VIEWED
from ndem_ocp.method import NDeMSettings


def batch() -> AtomicData:
    return atomicdata_list_to_batch(slabs())


def two_view(kind: str, **settings) -> tuple[HydraModel, HydraModel]:
    """The plain model and the same one with a second view; both train."""
    torch.manual_seed(0)
    plain = hydra(kind)
    torch.manual_seed(0)
    other = hydra(kind)
    return plain, add_second_view(other, NDeMSettings(**settings), None, force_tasks(kind))


def force_tasks(kind: str) -> list[str]:
    return ["a_forces", "b_forces"] if kind == "by_data_set" else ["forces"]


def marked(eps: float = 0.05, structures: tuple[int, ...] = (0, 1)) -> AtomicData:
    data = batch()
    viewed = torch.isin(data.batch, torch.tensor(structures))
    generator = torch.Generator().manual_seed(1)
    noise = eps * torch.randn(data.pos.shape, generator=generator)
    data[EPS], data[VIEWED] = noise * viewed[:, None], viewed
    return data


def flat(out, into=None, prefix=""):
    into = {} if into is None else into
    for name, value in out.items():
        if isinstance(value, dict):
            flat(value, into, f"{prefix}{name}.")
        else:
            into[prefix + name] = value
    return into


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_second_view_it_is_the_plain_model(kind):
    plain, other = two_view(kind)
    for training in (False, True):
        plain.train(training), other.train(training)
        torch.manual_seed(2)
        wanted = flat(plain(batch()))
        torch.manual_seed(2)
        found = flat(other(batch()))
        assert list(found) == list(wanted)
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_heads_see_x(kind):
    plain, other = two_view(kind)
    torch.manual_seed(2)
    wanted = flat(plain.train()(batch()))
    torch.manual_seed(2)
    found = flat(other.train()(marked()))
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], atol=2e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_only_viewed_structures_have_a_second_force(kind):
    _, other = two_view(kind)
    data = marked(structures=(1,))
    viewed = data[VIEWED]
    out = other.train()(data)
    for name in force_tasks(kind):
        noisy = out[pair_name(name)][PAIR][:, 3:]
        assert not noisy[~viewed].any()
        assert noisy[viewed].any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_view_at_all_still_reaches_every_parameter(kind):
    _, other = two_view(kind)
    out = other.train()(marked(structures=()))
    sum(value.sum() for name, value in flat(out).items() if name != "embeddings").backward()
    assert all(parameter.grad is not None for parameter in other.auxiliary)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_auxiliary_head_learns(kind):
    _, other = two_view(kind)
    out = other.train()(marked())
    sum(out[pair_name(name)][PAIR][:, 3:].square().sum() for name in force_tasks(kind)).backward()
    assert all(parameter.grad is not None for parameter in other.auxiliary)
    assert sum(bool(parameter.grad.any()) for parameter in other.auxiliary) > 2
    grads = [p.grad for p in other.backbone.parameters() if p.grad is not None]
    assert any(bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_head_gives_the_main_forces_where_there_is_no_noise(kind):
    """With the experts' dropout on: both views have one routing."""
    _, other = two_view(kind, head="shared")
    out = other.train()(marked(eps=0.0))
    for name in force_tasks(kind):
        clean, noisy = out[pair_name(name)][PAIR].split(3, dim=1)
        assert torch.allclose(clean, noisy, atol=2e-5)


@pytest.mark.parametrize("kind", ["experts", "conserving_experts"])
def test_the_routing_is_put_back(kind):
    _, other = two_view(kind)
    other.train()(marked())
    assert "set_MOLE_coefficients" not in vars(other.backbone)


@pytest.mark.parametrize("kind", ["conserving", "conserving_experts"])
def test_the_second_pass_has_no_second_derivative(kind):
    _, other = two_view(kind)
    seen = []
    backbone = other.backbone
    backbone.register_forward_pre_hook(lambda *_: seen.append(conserving(backbone)))
    other.train()(marked())
    assert seen == [True, False]
    assert conserving(backbone)


@pytest.mark.parametrize("kind", ["direct", "conserving"])
def test_f_prime_turns_with_the_structure(kind):
    _, other = two_view(kind)
    other.train()
    data = marked()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    turn = turn * torch.det(turn)
    turned = marked()
    turned.pos, turned.cell = data.pos @ turn, data.cell @ turn
    turned[EPS] = data[EPS] @ turn
    name = pair_name("forces")
    first = other(data)[name][PAIR][:, 3:] @ turn
    second = other(turned)[name][PAIR][:, 3:]
    assert torch.allclose(first, second, atol=1e-4)


def test_stress_is_that_of_x():
    plain, other = two_view("stress")
    torch.manual_seed(2)
    wanted = plain.train()(batch())["stress"]["stress"]
    torch.manual_seed(2)
    assert torch.allclose(other.train()(marked())["stress"]["stress"], wanted, atol=1e-6)


def test_checkpointed_experts_take_one_pass():
    """Two would recompute the first view's layers with the second's routing."""
    torch.manual_seed(0)
    plain = hydra("conserving_experts", activation_checkpointing=True)
    other = add_second_view(plain, NDeMSettings(), None, ["forces"])
    assert not other._two_passes()
    other.train()(marked())[pair_name("forces")][PAIR].square().sum().backward()
