"""Where tensors are: whole runs on a GPU that is pretended (tests/pretend_gpu.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ndem_ocp
import test_backbones
from conftest import short_training, steps, tiny_config, trainer_of
from fairchem_kit.data.demo_relaxations import make_relaxations
from fairchem_kit.data.reader import LmdbReader
from ndem_ocp import cli
from ndem_ocp.bench.arms import arm_config, build_arm
from ndem_ocp.bench.batches import open_data, read_batches
from ndem_ocp.bench.clock import Stopwatch
from ndem_ocp.bench.configs import read_config
from ndem_ocp.models.dens import ForceEmbedding
from ndem_ocp.testing import BackboneContract
from ndem_ocp.testing.runs import run_config
from pretend_gpu import GPU, WrongDevice, pretend_gpu
from test_calculator import of_record

# With CUDA compiled in, torch itself asks the real one, for pinned memory and generators.
pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="for CPU builds of torch")
CONTRACTS = [
    pytest.param(cls, id=cls.config, marks=getattr(cls, "pytestmark", []))
    for cls in BackboneContract.__subclasses__()
    if cls.__module__ == test_backbones.__name__
]


def test_it_distinguishes_devices():
    with pretend_gpu() as gpu:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (here.device, there.device) == (torch.device("cpu"), GPU)
        assert there[1:].is_cuda
        assert not there.cpu().is_cuda
        assert here.to(there).is_cuda
        assert torch.zeros_like(there).device == GPU
        assert there.new_tensor([1.0]).device == GPU
        assert (there + 1).device == GPU
        assert (there * torch.tensor(2.0)).device == GPU  # a number may come from the CPU
        assert here.copy_(there).device.type == "cpu"
        assert there[torch.tensor([0, 2])].device == GPU  # and so may indices
        assert there.tolist() == [1, 1, 1]
        assert gpu.has(there)
        for wrong in (
            lambda: here + there,
            lambda: torch.cat([there, here]),
            lambda: torch.zeros(3, device="cpu").add_(there),
            lambda: here[there.long()],
            lambda: there.index_add_(0, torch.tensor([0]), there[:1]),
        ):
            with pytest.raises(WrongDevice, match="cuda:0 and cpu"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_it_counts_what_waits():
    with pretend_gpu() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.tensor([0, 2])
        on_it = here.to("cuda")

        def waits(function):
            gpu.waits.clear()
            function()
            return gpu.waits.total()

        for function in (
            there.tolist,
            lambda: there[[0, 2]],
            lambda: there[here],
            lambda: there.__setitem__([0, 2], 3.0),
            lambda: there.new_tensor([1.0]),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: here.to("cuda"),
            lambda: there.cpu(),
            lambda: float(there[0]),
            lambda: there[there > 0],
        ):
            assert waits(function) == 1
        for function in (
            lambda: there[on_it],
            lambda: there[1:],
            lambda: there[:, None],
            lambda: there.__setitem__(on_it, 3.0),
            lambda: torch.zeros(3, device="cuda"),
            lambda: torch.arange(3, device="cuda"),
            lambda: here.to("cuda", non_blocking=True),
            lambda: here.tolist(),
        ):
            assert waits(function) == 0


def test_it_sees_backward_and_optimizers():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x * factor

        @staticmethod
        def backward(ctx, g):
            assert g.device == GPU
            return g * ctx.factor, None

    with pretend_gpu():
        model = nn.Linear(3, 2).to("cuda")
        optimizer = torch.optim.AdamW(model.parameters())
        factor = torch.full((2,), 2.0, device="cuda")
        Doubled.apply(model(torch.ones(4, 3, device="cuda")), factor).sum().backward()
        assert model.weight.grad.device == GPU
        optimizer.step()
        with pytest.raises(WrongDevice):
            model(torch.ones(4, 3))
        x = torch.ones(4, 3, device="cuda", requires_grad=True)
        (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert gradient.device == GPU

        class Left(Doubled):
            @staticmethod
            def backward(ctx, g):
                return g * torch.ones(2), None

        with pytest.raises(WrongDevice):
            Left.apply(model(x), factor).sum().backward()


FORMS: dict[str, dict[str, Any]] = {
    "ndem": {},
    "fraction": {"fraction": 0.5},
    "later": {"start": 0.02, "ramp": 0.1},
    "fitted curvature": {"learned_curvature": True},
    "noisy nodes": {"objective": "noisy_nodes"},
    "DeNS": {"objective": "dens"},
    "plain": {"coefficient": 0},
}


@pytest.mark.parametrize("form", FORMS)
def test_training(demo_data, tmp_path, form):
    config = tiny_config(demo_data, **FORMS[form])
    expected = steps(trainer_of(config, tmp_path / "cpu"), 3)
    with pretend_gpu() as gpu:
        trainer = trainer_of(config, tmp_path / "gpu", cpu=False)
        assert trainer.device == GPU
        found = steps(trainer, 3)
        assert all(gpu.has(parameter) for parameter in trainer.model.parameters())
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("amp", [False, True])
def test_a_whole_run_its_end_and_its_resume(demo_data, tmp_path, amp):
    config = tiny_config(demo_data)
    config["optim"].update(max_epochs=1, eval_every=5)
    with pretend_gpu():
        trainer_of(config, tmp_path, run_id="run", cpu=False, amp=amp).train(disable_eval_tqdm=True)
        config["optim"]["max_epochs"] = 2
        again = trainer_of(config, tmp_path, run_id="run", cpu=False, amp=amp)
        again.train(disable_eval_tqdm=True)
    assert again.epoch == 2


def test_activation_checkpointing_and_tf32(demo_data, tmp_path):
    config = tiny_config(demo_data)
    config["model"]["backbone"]["activation_checkpoint"] = True
    config["task"].update(matmul_precision="high")
    before = torch.get_float32_matmul_precision()
    try:
        with pretend_gpu():
            steps(trainer_of(config, tmp_path, cpu=False), 2)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_backbone(demo_data, tmp_path, contract):
    config = run_config(contract.model, demo_data)
    with pretend_gpu():
        steps(trainer_of(config, tmp_path, cpu=False), 1)


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory):
    return short_training(demo_data, tmp_path_factory.mktemp("run")) / "checkpoint.pt"


def test_evaluation(checkpoint, demo_data, tmp_path, capsys):
    words = ["eval", str(checkpoint), "--data", str(demo_data / "val_id")]
    assert cli.main([*words, "--cpu", "--out", str(tmp_path / "cpu")]) == 0
    with pretend_gpu():
        assert cli.main([*words, "--out", str(tmp_path / "gpu")]) == 0
    cpu, gpu = ((tmp_path / name / "table.csv").read_text().split() for name in ("cpu", "gpu"))
    assert cpu[0] == gpu[0]
    for one, other in zip(cpu[1:], gpu[1:], strict=True):  # products are summed in another order
        (split, *values), (same, *others) = one.split(","), other.split(",")
        assert split == same
        assert list(map(float, others)) == pytest.approx(list(map(float, values)), rel=1e-5)
    capsys.readouterr()


def test_calculator(checkpoint, demo_data):
    record = LmdbReader({"src": str(demo_data / "val_id")})[0]
    atoms = of_record(record)
    found = {}
    for device in ("cpu", "cuda"):
        with pretend_gpu():
            atoms.calc = ndem_ocp.calculator(checkpoint, device=device)
            found[device] = atoms.get_potential_energy()
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-5)


def test_relaxation(checkpoint, tmp_path, capsys):
    trajectories, data = tmp_path / "trajectories", tmp_path / "is2re"
    make_relaxations(trajectories, 2, "small")
    assert cli.main(["data", "is2re", str(trajectories), "--out", str(data)]) == 0
    words = ["relax", str(checkpoint), "--data", str(data), "--steps", "3"]
    with pretend_gpu():
        assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()


def test_bench(demo_data, tmp_path, capsys):
    config = tiny_config(demo_data)
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(config))
    common = ["--model", str(path), "--data", str(demo_data / "train"), "--warmup", "0"]
    step = ["step", "--batch-sizes", "2", "--repeats", "2", "--no-memory"]
    with pretend_gpu():
        for words in (step, ["inference", "--batch-sizes", "2", "--repeats", "2"]):
            assert cli.main(["bench", *words, *common, "--out", str(tmp_path / "out.json")]) == 0
            assert json.loads((tmp_path / "out.json").read_text())["device"] == "cuda:0"
    capsys.readouterr()


def test_encoding_forces_for_dens_does_not_wait():
    with pretend_gpu() as gpu:
        embedding, forces = ForceEmbedding(2, 4, "normal").to("cuda"), torch.ones(5, 3).to("cuda")
        for _ in range(2):  # the first one makes what is kept
            gpu.waits.clear()
            embedding(forces)
        assert not gpu.waits


def test_how_often_a_step_waits_for_the_gpu(demo_data, tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(tiny_config(demo_data)))
    config = read_config(str(path))
    waits = {}
    for name in ("upstream", "plain", "ndem"):
        with pretend_gpu() as gpu:
            arm = build_arm(name, arm_config(name, config, demo_data / "train", 2), GPU)
            batches = read_batches(open_data(demo_data / "train"), 2, 1)
            for step in range(2):  # the first one makes what is kept
                batch = batches.on(0, GPU)
                gpu.waits.clear()
                arm.step(batch, step, Stopwatch(GPU))
            waits[name] = gpu.waits
    total = {name: found.total() for name, found in waits.items()}
    print(total)
    assert total["plain"] < total["upstream"], waits
    # for noise, joining the views, where the second one's edges begin, the loss's mask, its logs;
    # fairchem's search for neighbours waits for each structure
    search = "fairchem/core/common/utils.py"
    more = waits["ndem"] - waits["plain"]
    assert sum(n for line, n in more.items() if search not in line) <= 13, waits
    # layers and heads never wait: the largest atomic number and where the second view's edges begin
    # are asked for before the first of them
    for name, number in (("plain", 1), ("ndem", 2)):
        ours = {k: n for k, n in waits[name].items() if "models/equiformer/" in k}
        assert sum(ours.values()) == number, ours
        assert all("backbone.py" in line or "edges.py" in line for line in ours), ours
