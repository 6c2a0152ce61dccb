"""task.matmul_precision: let in where its error is small, refused with its size where not."""

from __future__ import annotations

import pytest
import torch

from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.precision import set_precision


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_small_error_is_let_in_and_returned():
    found = iter([torch.ones(4, 3), 1.001 * torch.ones(4, 3)])
    assert set_precision("medium", 0.01, lambda: next(found)) == pytest.approx(1e-3, rel=1e-2)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("second", [1.1, float("nan")])
def test_a_large_error_is_refused_and_nothing_stays(second):
    found = iter([torch.ones(4, 3), second * torch.ones(4, 3)])
    with pytest.raises(ConfigError, match=r"more than task\.matmul_tolerance = 0\.01"):
        set_precision("medium", 0.01, lambda: next(found))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("key", "value"), [("matmul_precision", "hi"), ("matmul_tolerance", 0)])
def test_a_wrong_value_is_named_before_the_run(new_trainer, key, value):
    with pytest.raises(ConfigError, match=f"task.{key} = "):
        new_trainer(edit=lambda config: config["task"].update({key: value}))


def test_a_run_compares_forces_before_its_first_step(new_trainer, caplog):
    """With float32 products of another kind the comparison leaves no trace in the run."""
    losses = []
    for precision in ("highest", "high"):
        settings = {"matmul_precision": precision, "matmul_tolerance": 1.0}
        trainer = new_trainer(edit=lambda config: config["task"].update(settings))  # noqa: B023
        with caplog.at_level("INFO"):
            trainer.before_training()
        losses.append(torch.rand(3))
    said = [r.message for r in caplog.records if "task.matmul_precision: high" in r.message]
    assert len(said) == 1
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.equal(*losses)
