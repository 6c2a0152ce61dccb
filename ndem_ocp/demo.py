"""``ndem demo``: a real NDeM training run on data made on the spot, through stock fairchem.

Every step is a command that a user could type, and is printed before it runs. After an
interruption, the same command continues from the run's last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import add_device
from fairchem_kit.errors import UserError
from fairchem_kit.files import replacing, writable_folder, write_text
from fairchem_kit.launch.device import choose_cpu
from fairchem_kit.launch.environment import without_group
from fairchem_kit.yaml_file import read_mapping

RUN_ID = "demo"
CONFIG = Path("configs/oc20/demo.yml")
PRINT_EVERY = 50  # steps
SPLITS = ("val_id", "val_ood")


class DemoError(UserError, RuntimeError):
    """A step of the demo failed; the message names its command and log."""


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem demo``."""
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--size", choices=("default", "small"), default="default")
    add_device(parser)
    parser.epilog = "After --, fairchem's overrides: --key=value."
    parser.set_defaults(func=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Data, training, validation and prediction on both splits, pictures, metrics.json."""
    if args.config == CONFIG and not CONFIG.exists():
        raise DemoError(
            f"{CONFIG} does not exist: run ndem demo in a checkout of the project, or give "
            "--config the path of a configuration. To train on your own files use ndem fit."
        )
    read_mapping(args.config, DemoError, "a configuration")
    args.cpu = choose_cpu(args.cpu, args.gpu)
    if (args.out / "metrics.json").exists():
        print(f"{args.out} holds a finished demo: making it again.")
        shutil.rmtree(args.out)
    writable_folder(args.out)
    if not (args.data / "train").is_dir():
        ndem = [sys.executable, "-m", "ndem_ocp.cli", "data", "demo"]
        _command([*ndem, "--out", str(args.data), "--size", args.size], args.out / "data.log")
    _fairchem(args, "train", ["--timestamp-id", RUN_ID, "--print-every", str(PRINT_EVERY)])
    checkpoint = args.out / "checkpoints" / RUN_ID / "best_checkpoint.pt"
    with replacing(args.out / "checkpoint.pt") as temporary:
        shutil.copy(checkpoint, temporary)
    for split in SPLITS:
        source = str(args.data / split)
        for mode, section in (("validate", "val"), ("predict", "test")):
            options = ["--checkpoint", str(checkpoint), "--timestamp-id", f"{mode}-{split}"]
            _fairchem(args, mode, [*options, f"--dataset.{section}.src={source}"])
    return _report(args)


def _fairchem(args: argparse.Namespace, mode: str, options: list[str]) -> None:
    command = [
        str(Path(sys.executable).parent / "fairchem"), "--mode", mode,
        "--config-yml", str(args.config), "--run-dir", str(args.out), "--identifier", RUN_ID,
        *(["--cpu"] if args.cpu else []),
        f"--dataset.train.src={args.data / 'train'}", f"--dataset.val.src={args.data / SPLITS[0]}",
        "--task.prediction_dtype=float32", "--hide_eval_progressbar=True",
        *options, *args.overrides,
    ]  # fmt: skip
    _command(command, args.out / f"{options[options.index('--timestamp-id') + 1]}.log")


def _command(command: list[str], log: Path) -> None:
    """Run one command, its output in ``log``, its metrics on the screen as they come."""
    print("\n$", shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", **without_group(os.environ)}
    with log.open("w", encoding="utf-8") as file, log.open(encoding="utf-8") as written:
        # Into a file: the end of a pipe would not come while W&B's service still held it.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            ended, line = False, ""
            while not ended:
                ended = _ended(process)
                for part in written:  # the last line may not be whole yet
                    line += part
                    if not line.endswith("\n"):
                        continue
                    if "forces_mae: " in line:
                        print("  " + _short(line), flush=True)
                    line = ""
        except KeyboardInterrupt:
            process.wait()
            raise
    if process.returncode:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise DemoError(f"the command above failed; the end of {log}:\n{tail}")


def _ended(process: subprocess.Popen) -> bool:
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _short(line: str) -> str:
    """The numbers people look at, out of one of fairchem's log lines."""
    values = dict(part.split(": ", 1) for part in line.split("(INFO): ", 1)[-1].strip().split(", "))
    wanted = ("step", "epoch", "forces_mae", "energy_mae", "ndem_loss", "ndem_noise_cosine")
    return "  ".join(f"{name} {float(values[name]):.4g}" for name in wanted if name in values)


def _report(args: argparse.Namespace) -> int:
    from fairchem_kit.history.file import FILE_NAME, read_history
    from fairchem_kit.report.plots import plot_curves, plot_parity
    from fairchem_kit.report.predictions import load_parity

    logs = args.out / "logs" / "ndem_ocp.HistoryLogger"
    parity = {
        split: load_parity(
            args.out / "results" / f"predict-{split}" / "ocp_predictions.npz", args.data / split
        )
        for split in SPLITS
    }
    metrics: dict[str, Any] = {
        split: {
            **values.metrics(),
            "fairchem_validate": {
                name: value
                for name, value in read_history(logs / f"validate-{split}", "val")[-1].items()
                if name not in ("split", "time_s", "process_s", "step")
            },
        }
        for split, values in parity.items()
    }
    history = read_history(logs / RUN_ID / FILE_NAME)
    metrics["training"] = {
        "steps": history[-1]["step"],
        "time_s": history[-1]["time_s"],
        "config": str(args.config),
    }
    pictures = (
        plot_curves(history, parity["val_id"].zero_force_mae, args.out / "curves.png", PRINT_EVERY),
        plot_parity(parity, args.out / "parity.png"),
    )
    write_text(args.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    for split in SPLITS:
        m = metrics[split]
        print(
            f"\n{split}: force MAE {m['forces_mae_eV_per_A']:.4f} eV/A "
            f"(predicting zero: {m['zero_force_mae_eV_per_A']:.4f}), "
            f"energy MAE {m['energy_mae_eV']:.4f} eV",
            end="",
        )
    print(f"\n\nwrote {args.out}/checkpoint.pt, metrics.json,", *(p.name for p in pictures))
    return 0
