"""The method against its equations, in torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ndem_ocp.method import (
    Forces,
    NDeMSettings,
    Noise,
    SettingsError,
    draw_noise,
    ndem_loss,
    noise_target,
    per_atom_error,
    step_generator,
)

SIZES = [5, 9, 1, 14]


def batch_of(sizes=SIZES, dtype=torch.float64):
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(1)
    pos = torch.randn(len(index), 3, generator=generator, dtype=dtype)
    fixed = (torch.rand(len(index), generator=generator) < 0.4).long()
    return pos, index, fixed


def noise_of(settings, step=0, sizes=SIZES, seed=0, rank=0):
    pos, index, fixed = batch_of(sizes)
    generator = step_generator(seed, rank, step)
    return draw_noise(pos, index, len(sizes), fixed, settings, generator), fixed, index


# --- settings ------------------------------------------------------------------------------------


def test_defaults_are_the_papers_where_it_gives_them():
    settings = NDeMSettings()
    assert settings.coefficient == 1.0
    assert settings.sigma_max == 0.05
    assert settings.sigma_per == "batch"
    assert settings.norm == "squared_l2"
    assert settings.head == "separate"
    assert settings.clean_forces == "prediction"
    assert settings.fraction == 1.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"coeficient": 1}, ["coeficient", "Did you mean 'coefficient'", "sigma_max"]),
        ({"norm": "l1"}, ["norm", "squared_l2", "l2mae"]),
        ({"head": "both"}, ["separate", "shared"]),
        ({"sigma_max": 0}, ["sigma_max", "> 0"]),
        ({"sigma_max": -0.1}, ["sigma_max"]),
        ({"sigma_min": 0.2, "sigma_max": 0.1}, ["sigma_min"]),
        ({"corrupt_ratio": 0}, ["corrupt_ratio"]),
        ({"corrupt_ratio": 1.5}, ["corrupt_ratio"]),
        ({"fraction": 0}, ["fraction", "coefficient: 0"]),
        ({"coefficient": -1}, ["coefficient"]),
        ({"coefficient": "lots"}, ["coefficient", "number"]),
        ({"coefficient": float("nan")}, ["coefficient"]),
        ({"coefficient": True}, ["coefficient"]),
        ({"noise_scale": "sgima"}, ["noise_scale"]),
        ({"noise_scale": float("inf")}, ["noise_scale", "finite"]),
        ({"noise_scale": -2}, ["noise_scale"]),
        ({"curvature": 0}, ["curvature"]),
        ({"curvature": 5, "noise_scale": 2}, ["curvature", "noise_scale"]),
        ({"noise_scale": "sigma"}, ["sigma_min"]),
        ({"sigma_distribution": "log_uniform"}, ["sigma_min"]),
        ({"head": "shared", "learned_curvature": True}, ["learned_curvature", "separate"]),
        ({"energy_unit": 5}, ["energy_unit", "eV"]),
        ({"start": 1.0}, ["start", "[0, 1)"]),
        ({"start": -0.1}, ["start"]),
        ({"start": 0.5, "ramp": 0.6}, ["ramp", "1 - start"]),
        ({"ramp": "soon"}, ["ramp", "number"]),
        ({"learned_curvature": "yes"}, ["learned_curvature", "True or False"]),
    ],
)
def test_impossible_settings_are_refused_with_what_is_valid(given, words):
    with pytest.raises(SettingsError) as error:
        NDeMSettings.from_mapping(given)
    for word in words:
        assert word in str(error.value)


def test_yaml_numbers_are_read_as_numbers():
    settings = NDeMSettings.from_mapping(
        {"coefficient": 10, "sigma_max": "5e-2", "noise_scale": "3e0"}
    )
    assert (settings.coefficient, settings.sigma_max, settings.noise_scale) == (10.0, 0.05, 3.0)


def test_messages_offer_the_keys_of_the_host():
    with pytest.raises(SettingsError, match=r"Did you mean 'auxiliary_head'\?.*, auxiliary_head\."):
        NDeMSettings.from_mapping({"auxilary_head": {}}, host_keys=("auxiliary_head",))


def coefficients(settings, total):
    return [settings.coefficient_at(step, total) for step in range(1, total + 1)]


def test_coefficient_over_training():
    assert coefficients(NDeMSettings(coefficient=3.0), 4) == [3, 3, 3, 3]
    assert coefficients(NDeMSettings(start=0.5), 4) == [0, 0, 1, 1]
    assert coefficients(NDeMSettings(start=0.3), 10) == [0] * 3 + [1] * 7
    assert coefficients(NDeMSettings(start=0.31), 10) == [0] * 4 + [1] * 6
    ramp = NDeMSettings(coefficient=4.0, start=0.25, ramp=0.5)
    assert coefficients(ramp, 8) == [0, 0, 1, 2, 3, 4, 4, 4]
    assert coefficients(NDeMSettings(ramp=1.0), 4) == [0.25, 0.5, 0.75, 1]
    assert coefficients(NDeMSettings(ramp=0.01), 4) == [1, 1, 1, 1], "shorter than a step"
    assert coefficients(NDeMSettings(start=0.999), 10) == [0] * 10, "rounded up: never"
    assert NDeMSettings().coefficient_at(0, 0) == 1, "outside of a training loop"


# --- noise ---------------------------------------------------------------------------------------


def test_noise_depends_on_seed_rank_and_step_alone():
    settings = NDeMSettings()
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = noise_of(settings, step=7, seed=3, rank=1)[0]
    torch.rand(100)
    torch.random.set_rng_state(before)
    again = noise_of(settings, step=7, seed=3, rank=1)[0]
    assert torch.equal(first.eps, again.eps)
    assert torch.equal(torch.random.get_rng_state(), before), "global RNG was touched"
    for other in ({"step": 8}, {"seed": 4}, {"rank": 0}):
        changed = noise_of(settings, **{"step": 7, "seed": 3, "rank": 1, **other})[0]
        assert not torch.equal(first.eps, changed.eps)


def test_fixed_atoms_are_never_moved_unless_asked():
    for step in range(20):
        noise, fixed, _ = noise_of(NDeMSettings(corrupt_ratio=1.0), step)
        assert noise.eps[fixed == 1].abs().max() == 0
        assert torch.equal(noise.moved, fixed == 0)
    noise, fixed, _ = noise_of(NDeMSettings(corrupt_ratio=1.0, atoms="all"))
    assert noise.moved.all()
    assert (noise.eps[fixed == 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 1.0])
def test_corrupt_ratio_is_exact_in_each_structure(ratio):
    noise, fixed, index = noise_of(NDeMSettings(corrupt_ratio=ratio))
    for graph, size in enumerate(SIZES):
        movable = int((fixed[index == graph] == 0).sum())
        expected = int(-(-ratio * movable // 1)) if movable else 0
        assert int(noise.moved[index == graph].sum()) == expected, (graph, size)
    assert (noise.eps[~noise.moved] == 0).all()


def test_every_movable_atom_is_moved_about_equally_often():
    settings = NDeMSettings(corrupt_ratio=0.5)
    counts = sum(noise_of(settings, step, sizes=[12])[0].moved.double() for step in range(400))
    fixed = batch_of([12])[2]
    expected = 400 * -(-0.5 * int((fixed == 0).sum()) // 1) / int((fixed == 0).sum())
    assert ((counts[fixed == 0] - expected).abs() < 5 * 400**0.5 / 2).all()


def test_standard_deviation_is_sigma_in_angstrom():
    settings = NDeMSettings(sigma_max=0.07, sigma_distribution="fixed", corrupt_ratio=1.0)
    sizes = [4000]
    pos, index, _ = batch_of(sizes)
    noise = draw_noise(pos, index, 1, None, settings, step_generator(0, 0, 0))
    assert noise.eps.std().item() == pytest.approx(0.07, rel=0.03)
    assert noise.eps.mean().item() == pytest.approx(0, abs=0.07 * 4 / 12000**0.5)
    assert (noise.sigma == 0.07).all()


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
@pytest.mark.parametrize("per", ["batch", "graph"])
def test_sigma_stays_in_its_range_and_is_drawn_per_batch_or_per_structure(distribution, per):
    settings = NDeMSettings(
        sigma_min=0.01, sigma_max=0.2, sigma_distribution=distribution, sigma_per=per
    )
    drawn = []
    for step in range(300):
        noise, _, index = noise_of(settings, step)
        per_graph = torch.stack([noise.sigma[index == g].unique() for g in range(len(SIZES))])
        assert ((per_graph >= 0.01) & (per_graph <= 0.2)).all()
        assert (len(per_graph.unique()) == 1) == (per == "batch")
        drawn.append(per_graph[0, 0])
    values = torch.stack(drawn)
    middle = 0.105 if distribution == "uniform" else (0.01 * 0.2) ** 0.5
    assert values.median().item() == pytest.approx(middle, rel=0.25)


def test_fraction_leaves_at_least_one_structure_and_is_exact():
    for fraction, expected in ((0.01, 1), (0.5, 2), (0.6, 3), (1.0, 4)):
        noise, _, index = noise_of(NDeMSettings(fraction=fraction))
        viewed = [bool(noise.viewed[index == g].all()) for g in range(4)]
        assert sum(viewed) == expected
        assert (noise.eps[~noise.viewed] == 0).all()
        for graph in range(4):
            assert noise.viewed[index == graph].unique().numel() == 1


# --- objective -----------------------------------------------------------------------------------


def forces_of(noise, seed=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = noise.eps.shape
    clean, noisy, label = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    return Forces(clean, noisy, label)


@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
@pytest.mark.parametrize("scale", ["sigma_max", "sigma", 7.0])
def test_a_perfect_auxiliary_head_has_zero_loss(norm, scale):
    settings = NDeMSettings(norm=norm, noise_scale=scale, sigma_min=0.01)
    noise, fixed, _ = noise_of(settings)
    clean = forces_of(noise).clean
    perfect = Forces(clean, clean - noise_target(noise, settings, 1.0), None)
    result = ndem_loss(perfect, noise, fixed == 0, settings)
    assert result.loss.item() == pytest.approx(0, abs=1e-12)
    total, count = result.log["ndem_noise_error_A"]
    assert total / count == pytest.approx(0, abs=1e-12)
    total, count = result.log["ndem_noise_cosine"]
    assert total / count == pytest.approx(1)
    wrong_sign = Forces(clean, clean + noise_target(noise, settings, 1.0), None)
    assert ndem_loss(wrong_sign, noise, fixed == 0, settings).loss > 0.1


def test_isotropic_harmonic_surface_satisfies_eq_16_exactly():
    """F(X) = -c (X - X0): with curvature c the true force at X~ is the perfect auxiliary head."""
    c, force_rms = 6.5, 1.7  # eV/A^2, eV/A
    settings = NDeMSettings(curvature=c, sigma_max=0.3, corrupt_ratio=0.7)
    noise, fixed, _ = noise_of(settings)
    pos = batch_of()[0]
    minimum = torch.randn(pos.shape, generator=torch.Generator().manual_seed(9), dtype=pos.dtype)

    def force(x):
        return -c * (x - minimum) / force_rms

    result = ndem_loss(
        Forces(force(pos), force(pos + noise.eps), None),
        noise,
        fixed == 0,
        settings,
        force_rms=force_rms,
    )
    assert result.loss.item() == pytest.approx(0, abs=1e-20)
    total, count = result.log["ndem_curvature_eV_per_A2"]
    assert total / count == pytest.approx(c)


def test_the_value_is_eq_17_written_out():
    settings = NDeMSettings(sigma_max=0.05)
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    counted = fixed == 0
    expected, atoms = 0.0, 0
    for i in range(len(fixed)):
        if not counted[i]:
            continue
        atoms += 1
        for k in range(3):
            difference = forces.clean[i, k].item() - forces.noisy[i, k].item()
            expected += (difference - noise.eps[i, k].item() / 0.05) ** 2
    loss = ndem_loss(forces, noise, counted, settings).loss.item()
    assert loss == pytest.approx(expected / atoms, rel=1e-12)


def test_unperturbed_atoms_count_but_excluded_ones_do_not():
    settings = NDeMSettings(corrupt_ratio=0.3)
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    counted = fixed == 0
    base = ndem_loss(forces, noise, counted, settings).loss
    still = (counted & ~noise.moved).nonzero()[0]
    for atom, changes in ((still, True), ((~counted).nonzero()[0], False)):
        noisy = forces.noisy.clone()
        noisy[atom] += 1.0
        changed = ndem_loss(forces._replace(noisy=noisy), noise, counted, settings).loss
        assert (changed != base) == changes


def test_structures_without_a_second_view_do_not_count():
    settings = NDeMSettings(fraction=0.5)
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    base = ndem_loss(forces, noise, fixed == 0, settings).loss
    noisy = forces.noisy.clone()
    noisy[~noise.viewed] = 1e6
    assert ndem_loss(forces._replace(noisy=noisy), noise, fixed == 0, settings).loss == base


@pytest.mark.parametrize("clean_forces", ["prediction", "detached", "label", "zero"])
def test_gradient_reaches_the_main_head_only_when_asked(clean_forces):
    settings = NDeMSettings(clean_forces=clean_forces)
    noise, fixed, _ = noise_of(settings)
    forces = Forces(*(f.requires_grad_() for f in forces_of(noise)))
    ndem_loss(forces, noise, fixed == 0, settings).loss.backward()
    assert forces.noisy.grad.abs().sum() > 0
    assert (forces.clean.grad is not None) == (clean_forces == "prediction")
    if clean_forces == "prediction":  # equal and opposite: only the difference enters Eq. 17
        assert torch.allclose(forces.clean.grad, -forces.noisy.grad)


@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
def test_gradients_match_finite_differences(norm):
    settings = NDeMSettings(norm=norm, corrupt_ratio=0.5)
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    factor = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def value(clean, noisy, c):
        return ndem_loss(
            Forces(clean, noisy, None), noise, fixed == 0, settings, curvature_factor=c
        ).loss

    inputs = (forces.clean.requires_grad_(), forces.noisy.requires_grad_(), factor)
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("norm", ["squared_l2", "l2mae"])
def test_loss_does_not_change_under_rotation(dtype, tolerance, norm):
    settings = NDeMSettings(norm=norm)
    noise, fixed, _ = noise_of(settings)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    noise = noise._replace(eps=noise.eps.to(dtype), sigma=noise.sigma.to(dtype))
    forces = forces_of(noise, dtype=dtype)
    turn = q.to(dtype)
    turned = Forces(*(f @ turn for f in forces))
    a = ndem_loss(forces, noise, fixed == 0, settings).loss
    b = ndem_loss(turned, noise._replace(eps=noise.eps @ turn), fixed == 0, settings).loss
    assert abs(a - b) <= tolerance * abs(a)


def test_learned_curvature_is_not_solved_by_zero():
    """c enters as (f - f') / c: driving it to 0 or infinity does not lower the loss."""
    settings = NDeMSettings(learned_curvature=True)
    noise, fixed, _ = noise_of(settings)
    clean = forces_of(noise).clean
    true_c = 3.0
    forces = Forces(clean, clean - true_c * noise_target(noise, settings, 1.0), None)

    def loss(c):
        return ndem_loss(
            forces,
            noise,
            fixed == 0,
            settings,
            curvature_factor=torch.tensor(c, dtype=torch.float64),
        ).loss.item()

    assert loss(true_c) == pytest.approx(0, abs=1e-20)
    assert loss(1e-3) > 1
    assert loss(1e3) > 0.1


def test_half_precision_is_widened_before_the_difference():
    settings = NDeMSettings()
    noise, fixed, _ = noise_of(settings)
    small = Noise(noise.eps.float(), noise.sigma.float(), noise.moved, noise.viewed)
    forces = forces_of(small, dtype=torch.float16)
    assert ndem_loss(forces, small, fixed == 0, settings).loss.dtype == torch.float32


def test_shapes_are_checked_before_a_subtraction():
    settings = NDeMSettings()
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    with pytest.raises(ValueError, match="noisy forces have shape"):
        ndem_loss(forces._replace(noisy=forces.noisy[:, :1]), noise, fixed == 0, settings)
    with pytest.raises(SettingsError, match="label"):
        ndem_loss(
            forces._replace(label=None), noise, fixed == 0, NDeMSettings(clean_forces="label")
        )
    with pytest.raises(SettingsError, match="needs a main force head"):
        ndem_loss(forces._replace(clean=None), noise, fixed == 0, settings)


def test_at_equilibrium_neither_prediction_nor_label_is_needed():
    settings = NDeMSettings(clean_forces="zero")
    noise, fixed, _ = noise_of(settings)
    forces = forces_of(noise)
    alone = ndem_loss(Forces(None, forces.noisy, None), noise, fixed == 0, settings).loss
    assert alone == ndem_loss(forces, noise, fixed == 0, settings).loss


def test_squared_l2_is_the_sum_over_components():
    assert per_atom_error(torch.tensor([[1.0, 2.0, 2.0]]), "squared_l2").item() == 9
    assert per_atom_error(torch.tensor([[1.0, 2.0, 2.0]]), "l2mae").item() == 3


def test_method_needs_neither_fairchem_nor_torch_geometric():
    code = (
        "import sys\n"
        "sys.modules['fairchem'] = sys.modules['torch_geometric'] = None\n"
        "from ndem_ocp.method import NDeMSettings\n"
        "NDeMSettings()\n"
        "assert not [m for m in sys.modules if m.startswith(('fairchem.', 'torch_geometric.'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
