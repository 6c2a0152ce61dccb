"""Seconds, atoms, memory and the second view's share: what they are, and that they cost nothing."""

from __future__ import annotations

import pytest
import torch

from fairchem_kit.history.logger import read_history
from helpers import state_of
from ndem_ocp.method import Noise
from ndem_ocp.method.diagnostics import QUARTERS, noise_diagnostics
from ndem_ocp.trainer.share_of_time import second_view_share

COSTS = {"s_per_step", "atoms_per_s", "structures_per_s", "data_share_of_time", "memory_GB"}


def trained(new_trainer, every, **ndem):
    def edit(config):
        config["dataset"]["train"]["train_split_settings"] = {"first_n": 24}
        config["model"]["backbone"].update(drop_path_rate=0.1, alpha_drop=0.1)

    trainer = new_trainer(edit=edit, **ndem)
    trainer.config["cmd"]["print_every"] = every
    trainer.train(disable_eval_tqdm=True)
    lines = [line for line in read_history(trainer.logger.path) if "s_per_step" in line]
    return trainer, lines


def test_costs_are_logged_with_the_console_lines_and_leave_no_trace(new_trainer):
    trainer, lines = trained(new_trainer, 2)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line.keys() >= COSTS | {"ndem_share_of_time"}
        assert 0 < line["s_per_step"] < 30
        assert 0 <= line["data_share_of_time"] < 1
        assert line["structures_per_s"] == pytest.approx(4 / line["s_per_step"], rel=1e-3)
        assert line["atoms_per_s"] > 3 * line["structures_per_s"]
        assert 0.05 < line["memory_GB"] < 64
    assert len({line["ndem_share_of_time"] for line in lines}) == 1  # measured once
    silent, none = trained(new_trainer, 1000)
    assert none == []
    for name, value in state_of(silent).items():
        assert torch.equal(value, state_of(trainer)[name]), name


def test_a_plain_run_has_no_second_view(new_trainer):
    _, lines = trained(new_trainer, 3, coefficient=0.0)
    assert lines[0].keys() >= COSTS
    assert all("ndem_share_of_time" not in line for line in lines)


def test_the_clock_leaves_validation_and_saving_out(new_trainer, monkeypatch):
    import time

    def edit(config):
        config["dataset"]["train"]["train_split_settings"] = {"first_n": 16}
        config["optim"].update(eval_every=1)

    trainer = new_trainer(edit=edit, coefficient=0.0)
    trainer.config["cmd"]["print_every"] = 4
    began = time.perf_counter()
    monkeypatch.setattr(
        trainer, "validate", lambda **_: time.sleep(0.5) or {"forces_mae": {"metric": 1.0}}
    )
    trainer.train(disable_eval_tqdm=True)
    whole = time.perf_counter() - began
    (line,) = [line for line in read_history(trainer.logger.path) if "s_per_step" in line]
    assert 4 * line["s_per_step"] < whole - 4 * 0.5


class Slow(torch.nn.Module):
    """A model whose pass takes as long as its batch says."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.unused = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch):
        import time

        time.sleep(batch.seconds)
        self.calls += 1
        return {"energy": {"energy": self.weight * batch.pos.sum()}, "index": torch.zeros(2)}


def test_the_second_views_share_is_of_the_two_passes():
    from torch_geometric.data import Data

    model = Slow()
    batches = [Data(pos=torch.ones(2, 3), seconds=seconds) for seconds in (0.05, 0.2)]
    assert second_view_share(model, *batches) == pytest.approx(0.75, abs=0.1)
    assert model.weight.grad is None
    assert model.calls == 0  # buffers are as they were


def test_noise_is_counted_in_the_quarter_of_its_sigma():
    sigma = torch.tensor([0.1, 0.15, 0.29, 0.5])
    eps = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 0], [4.0, 0, 0]])
    guess = torch.tensor([[1.0, 0, 0], [0.0, 0, 0], [1.0, 0, 0], [8.0, 0, 0]])
    yes = torch.tensor([True, True, True, True])
    log = noise_diagnostics(
        difference=2 * guess,
        scale=torch.full((4, 1), 2.0),
        noise=Noise(eps, sigma, moved=yes, viewed=yes),
        keep=yes,
        sigma_range=(0.1, 0.5),
    )
    found = {n: log[f"ndem_unrecovered_sigma_{n}of{QUARTERS}"] for n in range(1, QUARTERS + 1)}
    assert found[1].total / found[1].weight == pytest.approx(3 / 4)
    assert found[2].total / found[2].weight == pytest.approx(1 / 2)
    assert found[3].weight == 0
    assert found[4].total / found[4].weight == pytest.approx(1)


def test_a_fixed_sigma_logs_no_quarters():
    ones, yes = torch.ones(2, 3), torch.ones(2).bool()
    noise = Noise(eps=ones, sigma=ones[:, 0], moved=yes, viewed=yes)
    log = noise_diagnostics(difference=ones, scale=ones[:, :1], noise=noise, keep=yes)
    assert not any("unrecovered" in name for name in log)
