"""Mixed precision: its type, its scaler and fused optimizers; on a GPU that is pretended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import tiny_config, trainer_of
from fairchem_kit.checkpoints import CheckpointStore, read_checkpoint
from fairchem_kit.evaluation.model import load_model
from fairchem_kit.training.amp import MixedPrecision
from fairchem_kit.training.bad_steps import skip_infinite_gradients
from fairchem_kit.training.checks.messages import ConfigError
from fairchem_kit.training.resume.restore import configured
from helpers import state_of
from pretend_gpu import GPU, pretend_gpu

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="for CPU builds of torch")


def config_of(demo_data, kind, **optim):
    config = tiny_config(demo_data)
    config["task"]["amp_dtype"] = kind
    config["optim"].update(max_epochs=1, eval_every=8, checkpoint_every=2, batch_size=8, **optim)
    return config


def gpu_trainer(config, folder, **options):
    return trainer_of(config, folder, run_id="run", **{"cpu": False, "amp": True, **options})


def kinds_of(model) -> set[torch.dtype]:
    """Types that the output of its linear layers will have."""
    seen: set[torch.dtype] = set()
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    return seen


class Gone(Exception):
    pass


def die_at(trainer, step):
    forward = trainer._forward

    def dying(batch):
        if trainer.step == step:
            raise Gone
        return forward(batch)

    trainer._forward = dying


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_run_is_in_this_type_and_resumes_exactly(demo_data, tmp_path, kind):
    config = config_of(demo_data, kind)
    with pretend_gpu():
        whole = gpu_trainer(config, tmp_path / "whole")
        seen = kinds_of(whole.model)
        whole.train(disable_eval_tqdm=True)
        assert getattr(torch, kind) in seen
        broken = gpu_trainer(config, tmp_path / "broken")
        die_at(broken, 5)
        with pytest.raises(Gone):
            broken.train(disable_eval_tqdm=True)
        again = gpu_trainer(config, tmp_path / "broken")
        again.train(disable_eval_tqdm=True)
    assert whole.scaler.is_enabled() == (kind == "float16")
    assert again.step == whole.step == 5
    for name, value in state_of(whole).items():
        assert torch.equal(state_of(again)[name], value), name
    assert all(map(torch.equal, again.ema.shadow_params, whole.ema.shadow_params))
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    newest = CheckpointStore(tmp_path / "broken" / "checkpoints" / "run").newest()
    assert read_checkpoint(newest)["amp"] == whole.scaler.state_dict()


def test_a_checkpoint_is_evaluated_in_its_type(demo_data, tmp_path):
    with pretend_gpu():
        trainer = gpu_trainer(config_of(demo_data, "bfloat16"), tmp_path)
        path = trainer.save(checkpoint_file="checkpoint.pt")
        batch = next(iter(trainer.val_loader))
        for amp in (True, False):
            model = load_model(path, amp=amp)
            seen = kinds_of(model.trainer.model)
            model.predict(batch)
            assert (torch.bfloat16 in seen) == amp
            assert torch.float16 not in seen


def test_what_cannot_work_is_refused(demo_data, tmp_path, monkeypatch, caplog):
    with pytest.raises(ConfigError, match=r"task.amp_dtype = 'bf16': float16 or bfloat16"):
        trainer_of(config_of(demo_data, "bf16"), tmp_path)
    with pretend_gpu():
        with pytest.raises(ConfigError, match="add --amp to the command"):
            gpu_trainer(config_of(demo_data, "bfloat16"), tmp_path, amp=False)
        old = SimpleNamespace(major=7, minor=0, total_memory=16 << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: old)
        with pytest.raises(ConfigError, match=r"capability 8\.0 or more .* this one has 7\.0"):
            gpu_trainer(config_of(demo_data, "bfloat16"), tmp_path)
    trainer = trainer_of(config_of(demo_data, "bfloat16"), tmp_path, amp=True)
    assert trainer.scaler is None
    assert "task.amp_dtype is not used: mixed precision needs a GPU" in caplog.text


def test_the_type_is_that_of_the_run_and_not_of_one_before():
    def read(**task):
        device = torch.device("cuda:0")
        trainer = SimpleNamespace(config={"task": task, "amp": True}, device=device, scaler=None)
        MixedPrecision(trainer).read()
        return torch.get_autocast_dtype("cuda"), trainer.scaler

    with pretend_gpu():
        usual = torch.get_autocast_dtype("cuda")
        read(amp_dtype="bfloat16")
        assert read()[1] is None  # fairchem's own scaler stays
    assert torch.get_autocast_dtype("cuda") == usual


def test_a_fused_optimizer_leaves_the_scalers_search_to_the_scaler():
    """It calls the step of a fused optimizer in any case, which then does nothing."""
    model, found = nn.Linear(2, 1), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    skip_infinite_gradients(optimizer, lambda: found.append(1))
    scaler = torch.GradScaler("cpu", init_scale=4.0)
    before = model.weight.detach().clone()
    scaler.scale(model(torch.tensor([[float("inf"), 1.0]])).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert (scaler.get_scale(), found) == (2.0, [])
    assert torch.equal(model.weight, before)
    optimizer.step()  # without a scaler it is ours to find
    assert found == [1]
    assert torch.equal(model.weight, before)


def test_a_run_may_become_a_fused_one():
    """Fused optimizers have their step count on the GPU, others on the CPU."""
    with pretend_gpu() as gpu:
        weight = nn.Parameter(torch.ones(3, device="cuda"))
        plain = torch.optim.AdamW([weight], lr=0.1)
        weight.sum().backward()
        plain.step()
        fused = torch.optim.AdamW([weight], lr=0.2, weight_decay=0.3, fused=True)
        state = configured(plain.state_dict(), fused.param_groups)
        fused.load_state_dict(state)
        assert gpu.has(fused.state[weight]["step"])
        assert fused.state[weight]["step"].device == GPU
        group = fused.param_groups[0]
        assert (group["fused"], group["weight_decay"], group["lr"]) == (True, 0.3, 0.1)
        fused.step()


def test_fused_reaches_the_optimizer(demo_data, tmp_path):
    config = tiny_config(demo_data)
    config["optim"]["optimizer_params"] = {"weight_decay": 0.001, "fused": True}
    groups = trainer_of(config, tmp_path).optimizer.param_groups
    assert [group["fused"] for group in groups] == [True, True]
