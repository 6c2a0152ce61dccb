"""The cost of a training step with NDeM in fairchem 2, relative to fairchem's plain step.

    .venv2/bin/python -m ndem_ocp.bench.experiments.fairchem2_step [--rounds 12] [--out FILE]

It uses batches of EMT slabs and the models in configs/fairchem2 at a small size. Each round runs
one training step (forward, backward, optimizer) of each arm on the same batch, in rotating order.
Times are processor times of one thread, which depend less on other programs than wall times.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import types
from pathlib import Path
from statistics import median, quantiles

os.environ.setdefault("WANDB_MODE", "disabled")

import hydra
import torch
from fairchem.core._cli import get_hydra_config_from_yaml
from fairchem.core.common import distutils

from fairchem_kit.data.demo import make_demo
from fairchem_kit.provenance import config_hash, files_hash, provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.cli import main as ndem
from ndem_ocp.fairchem2.demo import _configs

MODELS = ("direct", "conserving", "experts")
UNIT = "runner.train_eval_unit"
ARMS = {
    "fairchem, plain": [
        f"{UNIT}._target_=fairchem.core.units.mlip_unit.mlip_unit.MLIPTrainEvalUnit",
        f"~{UNIT}.ndem",
    ],
    "coefficient 0": [f"{UNIT}.ndem.coefficient=0"],
    "NDeM": [],
    "NDeM, half of the structures": [f"+{UNIT}.ndem.fraction=0.5"],
    "second views, in place": [
        f"~{UNIT}.ndem",
        f"+{UNIT}.ndem={{target: second_views, second_views: VIEWS, sigma_max: 0.05}}",
    ],
}
SIZE = {"sphere_channels": 64, "hidden_channels": 64, "edge_channels": 64, "num_layers": 2}
ATOMS = 120


def runner_of(configs: Path, model: str, words: list[str]):
    """A runner, built as by the fairchem command, with its unit ready to train."""
    overrides = [
        f"model={model}", "job.device_type=CPU", "workers=0", f"max_atoms={ATOMS}",
        "runner.callbacks=[]", *(f"model.backbone.{k}={v}" for k, v in SIZE.items()),
        *(word.replace("VIEWS", str(configs / "views.lmdb")) for word in words),
    ]  # fmt: skip
    config = get_hydra_config_from_yaml(str(configs / "ndem.yaml"), overrides)
    config.job.metadata.log_dir = str(configs / "logs")
    torch.manual_seed(0)
    runner = hydra.utils.instantiate(config.runner)
    loader = runner.train_dataloader
    limits = types.SimpleNamespace(max_steps=1000, max_epochs=None, dataloader=loader)
    state = types.SimpleNamespace(train_state=limits)
    unit = runner.train_eval_unit
    unit.on_train_start(state)
    unit.train_progress.increment_step()
    return unit, state, loader


def measure(configs: Path, model: str, rounds: int) -> dict[str, dict[str, float]]:
    """Processor time of a step for each arm, in seconds."""
    made = {arm: runner_of(configs, model, words) for arm, words in ARMS.items()}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    loader = made["NDeM"][2]
    batches = [batch for batch, _ in zip(loader, range(4))]
    names = list(ARMS)
    for number in range(rounds + 1):
        turn = number % len(names)
        for arm in names[turn:] + names[:turn]:
            unit, state, _ = made[arm]
            batch = batches[number % len(batches)].clone()
            batch.dataset_name = batches[number % len(batches)].dataset_name
            start = time.process_time()
            unit.train_step(state, batch)
            unit.train_progress.increment_step()
            if number:  # the first round is for warming up
                times[arm].append(time.process_time() - start)
    plain = times["fairchem, plain"]
    found = {}
    for arm, seconds in times.items():
        ratios = [s / p for s, p in zip(seconds, plain)]
        low, _, high = quantiles(ratios, n=4)
        found[arm] = {
            "ratio": round(median(ratios), 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "seconds": round(median(seconds), 4),
        }
    return found


def make_views(train: Path, out: Path) -> None:
    """Make second views of the training data, with the potential that gave its labels."""
    words = ["--calculator", "ase.calculators.emt:EMT()", "--scale", "1", "--draws", "3"]
    if ndem(["data", "second-views", str(train), *words, "--out", str(out), "--no-progress"]):
        raise SystemExit("no second views were made")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "results/fairchem2_step.json")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    distutils.assign_device_for_local_rank(cpu=True, local_rank=0)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_demo(data, size="small", form="aselmdb", progress=False)
        configs = _configs(argparse.Namespace(out=Path(folder), data=data))
        make_views(data / "train", configs / "views.lmdb")
        origin = {"train": files_hash(data / "train", "*.aselmdb")}
        models = {model: measure(configs, model, args.rounds) for model in MODELS}
    result = {
        "what": "processor time of a training step, relative to fairchem's plain step",
        "batch": f"EMT slabs, up to {ATOMS} atoms",
        "size": SIZE,
        "rounds": args.rounds,
        "models": models,
        "units": {"ratio": "1", "quartiles": "1", "seconds": "s"},
        "seeds": [0],
        "data": origin,
        "config_hash": config_hash(
            {
                "base": Path("configs/fairchem2/ndem.yaml").read_text(encoding="utf-8"),
                "arms": ARMS,
                "size": SIZE,
                "atoms": ATOMS,
            }
        ),
        **provenance(ROOT),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for model, arms in models.items():
        for arm, found in arms.items():
            print(f"{model:12}{arm:32}{found['ratio']:6.2f}  {found['quartiles']}")


if __name__ == "__main__":
    sys.exit(in_checkout(main))
