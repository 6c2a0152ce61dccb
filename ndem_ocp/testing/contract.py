"""Tests of what NDeM requires of a backbone, as a pytest class to inherit from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fairchem.core.common.utils import setup_imports
from torch import Tensor

import ndem_ocp
from ndem_ocp.models import AUXILIARY_OUTPUT, TwoViewHydra
from ndem_ocp.testing import views
from ndem_ocp.testing.precision import default_dtype
from ndem_ocp.testing.runs import (
    PLAIN_TRAINER,
    frames,
    run_config,
    small_data,
    steps,
    trainer_of,
)

Record = Callable[[str, Any], None]


class BackboneContract:
    """Checks of one model. Inherit, name the class Test..., and set ``model``.

    Attributes:
        model: fairchem's ``model`` section (``name: hydra``), as small as possible, with cutoff and
            number of neighbours such that no neighbour within the cutoff is left out.
        forces: "direct", or "gradient" of the energy.
        float64: whether the model runs in float64 (with this package's help).
        tolerance: of equivariance in float32, relative to the largest component.
        tolerance64: the same in float64.
        conservative: whether gradient forces are the energy's gradient in full.
        gradient_tolerance: of gradient forces against the central difference, relative; None is
            1e-5, and 1e-2 in float32.
        gain: factor on the weight matrices, for models whose outputs start almost at zero.
        training_steps, learning_rate: both losses must have fallen after these steps.
        ndem: settings of ``task.ndem`` for the training checks.
        name: in the table of docs/backbones.md; default: the name of the class without "Test".
            note: footnote in that table.
    """

    model: ClassVar[dict[str, Any]]
    forces: ClassVar[str] = "direct"
    float64: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-3
    tolerance64: ClassVar[float] = 1e-9
    conservative: ClassVar[bool] = True
    gradient_tolerance: ClassVar[float | None] = None
    gain: ClassVar[float] = 1.0
    training_steps: ClassVar[int] = 25
    learning_rate: ClassVar[float] = 0.005
    ndem: ClassVar[dict[str, Any]] = {}
    name: ClassVar[str] = ""
    note: ClassVar[str] = ""

    # --- what the checks share -------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _fairchem(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # results to the bit
        setup_imports()
        ndem_ocp.register()
        yield
        torch.set_num_threads(threads)

    @pytest.fixture
    def contract_data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A small generated data set, made once per pytest run."""
        return small_data(tmp_path_factory.getbasetemp())

    @pytest.fixture
    def structures(self, contract_data: Path) -> list[Any]:
        """Three frames of different systems and sizes."""
        found = frames(contract_data)
        return [found[0], found[len(found) // 2], found[-1]]

    @pytest.fixture
    def new_trainer(self, contract_data: Path, tmp_path: Path) -> Callable[..., Any]:
        """Factory: ``new_trainer(name=..., seed=..., **ndem)``."""

        def make(name: str | None = None, seed: int = 0, **ndem: Any) -> Any:
            settings = {**self.ndem, **ndem}
            config = run_config(self.model, contract_data, self.learning_rate, **settings)
            return trainer_of(config, tmp_path, name, seed)

        return make

    # --- symmetry --------------------------------------------------------------------------------

    def test_equivariance(self, structures: list[Any], record_property: Record) -> None:
        """Energy, main forces and f' follow rotation, translation and renumbering."""
        self._check_equivariance(structures, torch.float32, self.tolerance, record_property)

    def test_equivariance_float64(self, structures: list[Any], record_property: Record) -> None:
        """The same to rounding."""
        if not self.float64:
            pytest.skip("the model does not run in float64")
        self._check_equivariance(structures, torch.float64, self.tolerance64, record_property)

    def _check_equivariance(
        self, structures: list[Any], dtype: torch.dtype, tolerance: float, record: Record
    ) -> None:
        model = views.build(self.model, dtype).eval()
        views.wake(model, self.gain)
        noise = views.draw(structures)
        motion = views.random_motion(structures)
        with default_dtype(dtype):
            still = _detached(model(views.noised(structures, noise, dtype)))
            moved = _detached(model(views.noised(structures, noise, dtype, motion)))
        back = views.undo(moved, motion)
        errors = {
            name: ((still[name] - back[name]).abs().max() / still[name].abs().max()).item()
            for name in ("energy", "forces", AUXILIARY_OUTPUT)
        }
        for name, error in errors.items():
            record(f"{name}_error", error)
        record("tolerance", tolerance)
        for name, error in errors.items():
            assert error <= tolerance, f"{name}: relative error {error:.1e} > {tolerance:.0e}"

    def test_forces_are_the_energys_gradient(
        self, structures: list[Any], record_property: Record
    ) -> None:
        """Against a central difference of the energy along a random direction."""
        if self.forces != "gradient":
            pytest.skip("direct forces")
        if not self.conservative:
            pytest.skip("not the energy's gradient in full")
        dtype = torch.float64 if self.float64 else torch.float32
        h, tolerance = (1e-4, 1e-5) if self.float64 else (1e-2, 1e-2)
        tolerance = self.gradient_tolerance or tolerance
        model = views.build(self.model, dtype, coefficient=0.0).eval()
        views.wake(model, self.gain)
        generator = torch.Generator().manual_seed(2)
        with default_dtype(dtype):
            batch = views.collate(structures, dtype)
            direction = torch.randn(batch.pos.shape, generator=generator)
            forces = _detached(model(batch))["forces"]
            energies = []
            for sign in (1, -1):
                moved = views.collate(structures, dtype)
                moved.pos = moved.pos + sign * h * direction
                energies.append(_detached(model(moved))["energy"].sum())
        slope = (energies[0] - energies[1]) / (2 * h)
        error = (slope + (forces * direction).sum()).abs() / (forces * direction).abs().sum()
        record_property("gradient_error", error.item())
        assert error <= tolerance, f"forces differ from -dE/dX: relative error {error:.1e}"

    # --- one step --------------------------------------------------------------------------------

    def test_one_backbone_forward_per_training_step(self, new_trainer: Callable[..., Any]) -> None:
        trainer = new_trainer()
        calls = []
        trainer._unwrapped_model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
        steps(trainer, 2)
        assert len(calls) == 3  # the third step is interrupted after its forward pass

    def test_gradients_reach_the_backbone_and_both_heads(
        self, structures: list[Any], record_property: Record
    ) -> None:
        """Of the auxiliary loss alone; and with it no parameter is left out of the total."""
        model = views.build(self.model).train()
        views.wake(model, self.gain)
        auxiliary = model.output_heads[AUXILIARY_OUTPUT]
        out = views.outputs(model(views.noised(structures, views.draw(structures))))
        record_property("model_parameters", _size(model))
        record_property("auxiliary_parameters", _size(auxiliary))
        record_property("auxiliary_head", type(auxiliary.head).__name__)

        out["forces"].retain_grad()
        (out["forces"] - out[AUXILIARY_OUTPUT]).square().sum().backward(retain_graph=True)
        assert out["forces"].grad.abs().sum() > 0, "no gradient at the main forces"
        assert _reached(model.backbone), "no gradient in the backbone"
        assert _reached(auxiliary), "no gradient in the auxiliary head"
        for name, head in model.output_heads.items():  # absent where another head makes forces
            main = name == "forces" and _size(head) > 0
            assert not main or _reached(head), "no gradient in the main head"

        # DDP stops at a parameter without gradient: NDeM must not bring one.
        out["energy"].sum().backward()
        plain = views.build(self.model, coefficient=0.0).train()
        result = views.outputs(plain(views.collate(structures)))
        (result["energy"].sum() + result["forces"].square().sum()).backward()
        assert _without_gradient(model) <= _without_gradient(plain)

    # --- the plain model -------------------------------------------------------------------------

    def test_coefficient_zero_is_the_plain_trainer(self, new_trainer: Callable[..., Any]) -> None:
        """Bit for bit: losses and weights of three steps."""
        ours, plain = new_trainer(coefficient=0.0), new_trainer(PLAIN_TRAINER)
        assert not isinstance(ours._unwrapped_model, TwoViewHydra)
        losses = []
        for trainer in (ours, plain):
            torch.manual_seed(0)
            losses.append(steps(trainer, 3))
        assert losses[0] == losses[1]
        state, expected = (t._unwrapped_model.state_dict() for t in (ours, plain))
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(state[name], value), name

    def test_evaluation_is_the_plain_model(self, structures: list[Any]) -> None:
        """Same weights from the same seed, same outputs, same random numbers, no auxiliary head."""
        model = views.build(self.model).eval()
        after_building = torch.random.get_rng_state()
        plain = views.build(self.model, coefficient=0.0).eval()
        assert torch.equal(torch.random.get_rng_state(), after_building)
        weights = model.state_dict()
        for name, value in plain.state_dict().items():
            assert torch.equal(weights[name], value), name

        def fail(*_: Any) -> None:
            raise AssertionError("the auxiliary head ran")

        model.output_heads[AUXILIARY_OUTPUT].head.register_forward_pre_hook(fail)
        results, states = [], []
        for evaluated in (model, plain):
            torch.manual_seed(3)
            with torch.no_grad():
                results.append(evaluated(views.collate(structures)))
            states.append(torch.random.get_rng_state())
        assert torch.equal(*states)
        assert results[0].keys() == results[1].keys()
        ours, theirs = (views.outputs(result) for result in results)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name

    # --- training --------------------------------------------------------------------------------

    def test_training_lowers_both_losses(
        self, new_trainer: Callable[..., Any], record_property: Record
    ) -> None:
        """fairchem's own loss and L_NDeM, on training batches with the same noise."""
        trainer = new_trainer(sigma_distribution="fixed", sigma_max=0.1)
        views.amplify(trainer._unwrapped_model, self.gain)
        batches = list(trainer.train_loader)[:4]
        before = self._losses(trainer, batches)
        steps(trainer, self.training_steps)
        after = self._losses(trainer, batches)
        for name in before:
            record_property(f"{name}_before", before[name])
            record_property(f"{name}_after", after[name])
            assert after[name] < 0.98 * before[name], f"{name}: {before[name]} -> {after[name]}"

    def _losses(self, trainer: Any, batches: list[Any]) -> dict[str, float]:
        trainer.model.train()
        found = {"supervised_loss": 0.0, "ndem_loss": 0.0}
        step = trainer.step if hasattr(trainer, "step") else 0
        for trainer.step, batch in enumerate(batches, start=1):
            torch.manual_seed(0)
            total = trainer._compute_loss(trainer._forward(batch.clone()), batch).item()
            auxiliary = trainer.ndem.log["ndem_loss"].total
            found["supervised_loss"] += total - trainer.ndem.settings.coefficient * auxiliary
            found["ndem_loss"] += auxiliary
        trainer.step = step
        return found

    def test_checkpoint_round_trip(self, new_trainer: Callable[..., Any]) -> None:
        """Saved by the trainer, loaded by another one with other weights: the same outputs."""
        trainer = new_trainer()
        steps(trainer, 2)
        path = trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
        other = new_trainer(seed=1)
        other.load_checkpoint(path)
        batch = next(iter(trainer.train_loader))
        results: list[dict[str, Tensor]] = []
        for loaded in (trainer, other):
            loaded.model.eval()
            torch.manual_seed(5)
            results.append(loaded._forward(batch.clone()))
        for name, value in results[0].items():
            assert torch.equal(results[1][name], value), name
        state, expected = (t._unwrapped_model.state_dict() for t in (other, trainer))
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def _detached(out: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in views.outputs(out).items()}


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _reached(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def _without_gradient(model: torch.nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
