"""``make demo2``: data, a small eSEN-like model with and without NDeM, curves, a relaxation.

    python -m ndem_ocp.fairchem2.demo [--out runs/demo2] [--steps 200]

Every step is a command that you could type yourself, and is printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairchem_kit.commands.ending import run as ending
from fairchem_kit.errors import UserError
from fairchem_kit.files import write_text
from fairchem_kit.history.file import read_history
from fairchem_kit.hosts import require_host
from fairchem_kit.words import counted

CONFIGS = Path("configs/fairchem2")
RUNS = {"plain": "plain.yaml", "ndem": "ndem.yaml"}
MODEL = {"sphere_channels": 32, "hidden_channels": 32, "edge_channels": 32, "num_layers": 2}
SHOWN = (
    "energy_per_atom_mae_eV_per_atom",
    "forces_l2norm_eV_per_A",
    "ndem_loss",
    "ndem_noise_cosine",
)
FORCES_MAE, ENERGY_MAE = "own.val,forces,mae", "own.val,energy,mae"
WINDOW = 15  # steps that a curve of training is averaged over


class DemoError(UserError, RuntimeError):
    """A step of the demo failed; the message names the command and its log."""


def main(argv: Sequence[str] | None = None) -> int:
    """The demo's command line; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/demo2"))
    parser.add_argument("--out", type=Path, default=Path("runs/demo2"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", choices=("default", "small"), default="default")
    args = parser.parse_args(argv)
    return ending(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    require_host(2, "make demo2")
    if not CONFIGS.is_dir():
        raise DemoError(
            f"{CONFIGS} does not exist here: run the demo in a clone of the repository."
        )
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.data / "train").is_dir():
        ndem = [sys.executable, "-m", "ndem_ocp.cli", "data", "demo", "--format", "aselmdb"]
        _command([*ndem, "--out", str(args.data), "--size", args.size], args.out / "data.log")
    configs = _configs(args)
    for name, file in RUNS.items():
        shutil.rmtree(args.out / name, ignore_errors=True)
        _command(_fairchem(args, configs / file, name), args.out / f"{name}.log")
    return _report(args)


def _configs(args: argparse.Namespace) -> Path:
    """A copy of the configurations in which ``data=demo`` is the demo's data."""
    copy = args.out / "configs"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CONFIGS, copy)
    text = (args.data / "fairchem2.yaml").read_text(encoding="utf-8")
    write_text(copy / "data" / "demo.yaml", text.replace("val_id_src", "val_src"))
    return copy


def _fairchem(args: argparse.Namespace, config: Path, name: str) -> list[str]:
    return [
        str(Path(sys.executable).parent / "fairchem"), "-c", str(config),
        "job.device_type=CPU", f"job.run_dir={args.out}", f"+job.timestamp_id={name}",
        f"steps={args.steps}", "max_atoms=120", "workers=0",
        "energy_weight=100",  # with 10 the energy hardly gets better in so few steps
        f"runner.evaluate_every_n_steps={max(1, args.steps // 4)}",
        f"runner.callbacks.0.checkpoint_every_n_steps={args.steps}",
        "runner.train_eval_unit.optimizer_fn.lr=2e-3",
        "runner.train_eval_unit.ema_decay=0.97",
        *(f"model.backbone.{key}={value}" for key, value in MODEL.items()),
    ]  # fmt: skip


def _command(command: list[str], log: Path) -> None:
    """Run a command; write its output to ``log`` and print some of its numbers."""
    print("\n$", shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "WANDB_MODE": "offline"},
        )
        for line in process.stdout or ():
            file.write(line)
            if "{'train/step': " in line and "'train/loss_energy'" in line:
                print("  " + _short(line), flush=True)
    if process.wait():
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise DemoError(f"The command above failed. The end of {log}:\n{tail}")


def _short(line: str) -> str:
    pairs = (part.split(": ") for part in line[line.index("{") + 1 : line.rindex("}")].split(", "))
    values = {name.strip("'").removeprefix("train/"): value for name, value in pairs}
    return "  ".join(
        f"{name} {float(values[name]):.4g}" for name in ("step", *SHOWN) if name in values
    )


def _report(args: argparse.Namespace) -> int:
    histories = {name: read_history(args.out / name / "logs") for name in RUNS}
    plot_curves(histories, args.out / "curves.png")
    metrics: dict[str, Any] = {}
    for name, lines in histories.items():
        last = [line for line in lines if line["split"] == "val"][-1]
        train = [line for line in lines if line["split"] == "train"]
        checkpoint = args.out / name / "checkpoints" / "final" / "inference_ckpt.pt"
        metrics[name] = {
            "steps": len(train),
            "time_s": train[-1]["time_s"],
            "forces_mae_eV_per_A": last[FORCES_MAE],
            "energy_mae_eV": last[ENERGY_MAE],
            "relaxation": relax(checkpoint),
        }
        print(_in_words(name, metrics[name]))
    write_text(args.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    print(f"\nwrote {args.out}/metrics.json, curves.png; checkpoints in plain/ and ndem/")
    return 0


def _in_words(name: str, found: dict[str, Any]) -> str:
    relaxed = found["relaxation"]
    return (
        f"\n{name}: force MAE {found['forces_mae_eV_per_A']:.4f} eV/A, energy MAE "
        f"{found['energy_mae_eV']:.4f} eV on val_id after {counted(found['steps'], 'step')}, "
        f"{found['time_s']:.0f} s\n  O on Cu(111) relaxed with FAIRChemCalculator: "
        f"{counted(relaxed['steps'], 'step')}, the model's largest force "
        f"{relaxed['fmax_first']:.2f} to {relaxed['fmax_last']:.2f} eV/A, EMT's energy "
        f"{relaxed['emt_energy_change_eV']:+.2f} eV"
    )


def relax(checkpoint: Path, steps: int = 30) -> dict[str, float]:
    """Relax an oxygen atom on Cu(111) with fairchem's own calculator."""
    import numpy as np
    from ase.build import add_adsorbate, fcc111
    from ase.calculators.emt import EMT
    from ase.constraints import FixAtoms
    from ase.optimize import BFGS
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit

    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, "O", 1.9, "fcc")
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > 1))
    start = slab.copy()
    # "default" would compile the model, which needs a C++ compiler and takes minutes
    predictor = load_predict_unit(str(checkpoint), "traineval", device="cpu")
    slab.calc = FAIRChemCalculator(predictor)
    first = float(np.linalg.norm(slab.get_forces(), axis=1).max())
    optimizer = BFGS(slab, logfile=None, maxstep=0.05)
    optimizer.run(fmax=0.05, steps=steps)
    last = float(np.linalg.norm(slab.get_forces(), axis=1).max())
    energies = []
    for atoms in (start, slab.copy()):
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    return {
        "steps": optimizer.get_number_of_steps(),
        "fmax_first": first,
        "fmax_last": last,
        "emt_energy_change_eV": float(energies[1] - energies[0]),
    }


def smoothed(values: Sequence[float]) -> list[float]:
    """At each step the mean of the last ``WINDOW`` values, or of as many as there are."""
    starts = (max(0, step - WINDOW) for step in range(1, len(values) + 1))
    return [sum(values[i:step]) / (step - i) for step, i in enumerate(starts, 1)]


def plot_curves(histories: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Plot training and validation errors of each run, and how well it recovers the noise."""
    from fairchem_kit.figure_style import plt, save

    panels = (
        ("forces_l2norm_eV_per_A", "train", "|F error|, training (eV/Å)"),
        (FORCES_MAE, "val", "force MAE, val_id (eV/Å)"),
        ("energy_per_atom_mae_eV_per_atom", "train", "energy error, training (eV/atom)"),
        ("ndem_noise_cosine", "train", "cosine of recovered and true noise"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2))
    for axis, (key, split, title) in zip(axes, panels):
        for number, (name, lines) in enumerate(histories.items()):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if not points:
                continue
            steps, values = zip(*points)
            color = f"C{number}"  # a run has one in all panels
            if split == "val":
                axis.plot(steps, values, "o-", color=color, label=name, markersize=4)
            else:
                axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smoothed(values), color=color, label=f"{name}, mean of {WINDOW}")
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.legend()
    figure.tight_layout()
    return save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
