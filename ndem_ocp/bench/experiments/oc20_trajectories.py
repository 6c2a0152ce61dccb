"""Compare plain EquiformerV2 and NDeM on OC20 trajectories, at equal steps and equal wall time.

    python -m ndem_ocp.bench.experiments.oc20_trajectories --data DIR --seeds 0 1 2

Errors are those of the final weights, on other systems (fairchem's validation) and on held-out
frames of the training systems.

DIR contains ``train`` and ``val``, written by `ndem data ase`. Each run is a standard
``fairchem --mode train`` with configs/oc20/small.yml or small_ndem.yml, on one thread. Three arms:

    plain        S steps
    ndem         S steps, each with twice the work
    plain-long   the plain model for the wall time of ndem: r S steps, where r is the ratio of
                 step times, measured with alternating steps before training

Complete runs are not repeated, so an interrupted comparison continues where it stopped. Each run
records its commit. Results are written to results/oc20_trajectories.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import load_config, setup_imports
from tqdm import tqdm

from fairchem_kit.data.statistics import Statistics, dataset_statistics
from fairchem_kit.history.logger import find_history, read_history
from fairchem_kit.provenance import config_hash, files_hash, git_commit, provenance
from ndem_ocp.bench.checkout import ROOT, in_checkout

ARMS = {"plain": "small.yml", "ndem": "small_ndem.yml", "plain-long": "small.yml"}
KEYS = {"y": "energy", "force": "forces"}
WHERE = ("new_systems", "new_frames")
COMMIT = "commit.txt"  # file with the commit, in the directory of a run
CURVE_POINTS = 8  # number of validations in a run
METRICS = {"forces_mae": "eV/A", "energy_mae": "eV", "forces_cosine_similarity": "1"}


def overrides(args: argparse.Namespace, labels: Statistics, epochs: int) -> dict[str, Any]:
    """Command-line overrides for all arms; there are ``epochs`` of ``--frames`` frames each."""
    steps = args.frames // args.batch_size
    prefix = "dataset.train.transforms.normalizer"
    return {
        "dataset.train.src": str(args.data / "train"),
        "dataset.train.sample_n": args.frames,
        "dataset.val.src": str(args.data / "val"),
        "dataset.val.sample_n": args.val_frames,
        "dataset.val.use_train_settings": False,
        "dataset.val.key_mapping.y": "energy",
        "dataset.val.key_mapping.force": "forces",
        f"{prefix}.energy.mean": labels.energy_mean,
        f"{prefix}.energy.stdev": labels.energy_stdev,
        f"{prefix}.forces.stdev": labels.force_rms,
        "optim.batch_size": args.batch_size,
        "optim.max_epochs": epochs,
        "optim.eval_every": steps * epochs // CURVE_POINTS,
        "hide_eval_progressbar": True,
    }


def train(args: argparse.Namespace, arm: str, seed: int, shared: dict[str, Any]) -> None:
    """Do one standard fairchem run, unless it is complete already."""
    run_dir = args.runs / f"{arm}-seed{seed}"
    last = shared["optim.max_epochs"] * (args.frames // args.batch_size)
    if _last_step(run_dir) == last:
        return
    command = [
        str(Path(sys.executable).parent / "fairchem"), "--mode", "train", "--cpu",
        "--config-yml", str(ROOT / "configs/oc20" / ARMS[arm]), "--run-dir", str(run_dir),
        "--identifier", arm, "--seed", str(seed), "--print-every", "50",
        *(f"--{key}={value}" for key, value in shared.items()),
    ]  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run_dir / "log.txt").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{arm}, seed {seed} failed with {done.returncode}: see {log.name}")
    (run_dir / COMMIT).write_text(git_commit(ROOT) + "\n")


def _last_step(run_dir: Path) -> int:
    try:
        return max((r["step"] for r in read_history(find_history(run_dir), "val")), default=0)
    except FileNotFoundError:
        return 0


def step_time_ratio(args: argparse.Namespace, repeats: int = 9) -> dict[str, float]:
    """Median times of plain and NDeM training steps, alternating, on the same batches (s)."""
    from fairchem.core.common.registry import registry
    from fairchem.core.datasets import create_dataset, data_list_collater

    from ndem_ocp.method import NDeMSettings, draw_noise, step_generator
    from ndem_ocp.models import two_view_config, with_second_view

    setup_imports()
    torch.set_num_threads(1)
    config = load_config(str(ROOT / "configs/oc20/small_ndem.yml"))[0]
    settings = NDeMSettings.from_mapping(config["task"]["ndem"])
    model_config = two_view_config(config["model"], settings)
    model = registry.get_model_class(model_config.pop("name"))(**model_config).train()
    source = {"src": str(args.data / "train"), "format": "lmdb", "key_mapping": KEYS}
    dataset = create_dataset(source, "train")
    times: dict[str, list[float]] = {"plain": [], "ndem": []}
    for repeat in range(repeats):
        frames = [dataset[repeat * args.batch_size + i] for i in range(args.batch_size)]
        batch = data_list_collater(frames, otf_graph=True)
        noise = draw_noise(
            batch.pos, batch.batch, len(frames), batch.fixed, settings, step_generator(0, 0, repeat)
        )
        marked = with_second_view(batch, noise.eps, noise.viewed)
        for name, data in (("plain", batch), ("ndem", marked)):
            start = time.perf_counter()
            out = model(data)
            loss = out["energy"]["energy"].sum() + out["forces"]["forces"].square().sum()
            if name == "ndem":
                loss = loss + out["noisy_forces"].square().sum()
            loss.backward()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {**medians, "ratio": medians["ndem"] / medians["plain"]}


def held_out_frames(args: argparse.Namespace, count: int) -> list[Any]:
    """Held-out frames of the training systems, the same for all runs."""
    from fairchem.core.datasets import LmdbDataset, create_dataset

    source = {"src": str(args.data / "train"), "format": "lmdb", "key_mapping": KEYS}
    used = set(create_dataset({**source, "sample_n": args.frames}, "train").indices.tolist())
    dataset = LmdbDataset(source)
    unused = [index for index in range(len(dataset)) if index not in used]
    chosen = torch.randperm(len(unused), generator=torch.Generator().manual_seed(0))[:count]
    return [dataset[unused[index]] for index in chosen.tolist()]


def evaluate(run_dir: Path, frames: list[Any], batch_size: int) -> dict[str, float]:
    """Errors of a run's final weights (their moving average) in physical units, on free atoms."""
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import match_state_dict
    from fairchem.core.datasets import data_list_collater

    path = max(run_dir.rglob("checkpoint.pt"), key=lambda found: found.stat().st_mtime)
    saved = torch.load(path, weights_only=True)
    config = dict(saved["config"]["model"])
    model = registry.get_model_class(config.pop("name"))(**config).eval()
    model.load_state_dict(match_state_dict(model.state_dict(), saved["state_dict"]))
    for parameter, average in zip(model.parameters(), saved["ema"]["shadow_params"]):
        parameter.data.copy_(average)
    norm = {name: (float(n["mean"]), float(n["rmsd"])) for name, n in saved["normalizers"].items()}
    force_errors, energy_errors, zero, cosine = [], [], [], []
    torch.manual_seed(0)
    for start in range(0, len(frames), batch_size):
        batch = data_list_collater(frames[start : start + batch_size], otf_graph=True)
        with torch.no_grad():
            out = model(batch)
        free = batch.fixed == 0
        force = (out["forces"]["forces"] * norm["forces"][1] + norm["forces"][0])[free]
        energy = out["energy"]["energy"].view(-1) * norm["energy"][1] + norm["energy"][0]
        force_errors.append((force - batch.forces[free]).abs().flatten())
        energy_errors.append((energy - batch.energy).abs())
        zero.append(batch.forces[free].abs().flatten())
        cosine.append(torch.cosine_similarity(force, batch.forces[free]))
    return {
        "forces_mae": torch.cat(force_errors).mean().item(),
        "energy_mae": torch.cat(energy_errors).mean().item(),
        "forces_cosine_similarity": torch.cat(cosine).mean().item(),
        "zero_force_mae": torch.cat(zero).mean().item(),
    }


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Final errors of every run, with mean and standard deviation over seeds."""
    setup_imports()
    frames = held_out_frames(args, args.val_frames)
    arms: dict[str, Any] = {}
    for arm in ARMS:
        runs = []
        for seed in args.seeds:
            history = find_history(args.runs / f"{arm}-seed{seed}")
            last = read_history(history, "val")[-1]
            wall = read_history(history, "train")[-1]["time_s"]
            runs.append(
                {
                    "seed": seed,
                    "commit": (args.runs / f"{arm}-seed{seed}" / COMMIT).read_text().strip(),
                    "steps": last["step"],
                    "train_time_s": wall,
                    "curve": _curve(history),
                    "new_systems": {name: last[name] for name in METRICS},
                    "new_frames": evaluate(
                        args.runs / f"{arm}-seed{seed}", frames, args.batch_size
                    ),
                }
            )
        arms[arm] = {"runs": runs, "summary": {w: _summary(runs, w) for w in WHERE}}
    return arms


def _curve(history: Path) -> list[dict[str, float]]:
    """Force error on new systems (eV/A) against steps and processor time.

    Processor time is in seconds and includes validations.
    """
    return [
        {"step": r["step"], "process_s": r["process_s"], "forces_mae": r["forces_mae"]}
        for r in read_history(history, "val")
    ]


def _summary(runs: list[dict[str, Any]], where: str) -> dict[str, Any]:
    summary = {}
    for name in METRICS:
        values = [run[where][name] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": statistics.mean(values), "stdev": spread}
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=1600, help="training frames per epoch")
    parser.add_argument("--val-frames", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="number of simultaneous runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/oc20_trajectories")
    parser.add_argument("--out", type=Path, default=ROOT / "results/oc20_trajectories.json")
    args = parser.parse_args()
    args.runs = args.runs.resolve()
    args.runs.mkdir(parents=True, exist_ok=True)

    origin = provenance(ROOT)
    labels = dataset_statistics(args.data / "train")
    ratio_file = args.runs / "step_time.json"
    if not ratio_file.exists():
        ratio_file.write_text(json.dumps(step_time_ratio(args)))
    ratio = json.loads(ratio_file.read_text())
    long = max(1, round(ratio["ratio"]))
    shared = {arm: overrides(args, labels, long if arm == "plain-long" else 1) for arm in ARMS}
    work = [(arm, seed) for seed in args.seeds for arm in ARMS]
    with ThreadPoolExecutor(args.jobs) as pool:
        running = [pool.submit(train, args, arm, seed, shared[arm]) for arm, seed in work]
        for future in tqdm(running, desc="runs"):
            future.result()

    configs = {arm: load_config(str(ROOT / "configs/oc20" / name))[0] for arm, name in ARMS.items()}
    result = {
        **origin,
        "what": "small EquiformerV2 on OC20 relaxation trajectories, plain against NDeM",
        "data": {split: files_hash(args.data / split) for split in ("train", "val")},
        "split": "by system; ndem data ase --energy-reference last-frame --max-force 50",
        "train_frames": args.frames,
        "val_frames": args.val_frames,
        "units": METRICS,
        "seeds": args.seeds,
        "step_time_s": ratio,
        "config_hash": {
            arm: config_hash({"config": configs[arm], **_without_paths(shared[arm])})
            for arm in ARMS
        },
        "zero_force_mae": dataset_statistics(args.data / "val").zero_force_mae,
        "arms": collect(args),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {os.path.relpath(args.out)}")
    return 0


def _without_paths(overrides: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if not key.endswith("src")}


if __name__ == "__main__":
    sys.exit(in_checkout(main))
