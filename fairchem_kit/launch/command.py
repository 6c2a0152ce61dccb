"""A training run as a command: parsed, printed, and turned into a configuration."""

from __future__ import annotations

import argparse
import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fairchem_kit.commands.options import at_least, seed_of
from fairchem_kit.hosts import module_alone
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import SlurmJob
from fairchem_kit.launch.record import safe_id
from fairchem_kit.yaml_file import read_mapping, yaml_errors

# fairchem's options that ndem train sets itself, and what to use instead.
_INSTEAD = {
    "--mode": "ndem train only trains: use fairchem --mode for the rest",
    "--config-yml": "give the configuration as the first argument of ndem train",
    "--num-gpus": "use --ranks",
    "--num-nodes": "start several nodes with srun (slurm/) or ndem submit",
    "--submit": "use ndem submit",
    "--summit": "it is not supported",
    "--sweep-yml": "use --sweep, or ndem submit --sweep",
    "--timestamp-id": "use --id",
    "--logdir": "use --run-dir",
}


# fairchem takes values that fail much later
_CHECKED = {"--seed": seed_of, "--print-every": at_least(1)}

#: Sections that fairchem needs to build a trainer.
NEEDED = ("model", "dataset", "optim")


@dataclass(frozen=True)
class TrainCommand:
    """The arguments of ``ndem train``.

    Attributes:
        config: YAML file. run_dir: folder for checkpoints, logs, results and status. run_id: name
            of the run, and its W&B id; the same id continues the run.
        cpu: train without an accelerator. group: W&B group.
        verbose: print fairchem's lines on the console instead of ours.
        options: fairchem's own, as words. overrides: ``--key=value`` words.
    """

    config: Path
    run_dir: Path
    run_id: str
    cpu: bool = False
    group: str | None = None
    options: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    verbose: bool = False

    def words(self) -> list[str]:
        """The arguments of ``ndem train`` for this command."""
        words = [str(self.config), "--run-dir", str(self.run_dir), "--id", self.run_id]
        words += ["--cpu"] if self.cpu else []
        words += ["--group", self.group] if self.group else []
        words += ["--verbose"] if self.verbose else []
        return [*words, *self.options, *self.overrides]

    def line(self, ranks: int = 1) -> str:
        """The same as a shell command."""
        more = ["--ranks", str(ranks)] if ranks > 1 else []
        return shlex.join(["ndem", "train", *self.words(), *more])


# fairchem reads values as Python does, where YAML's words are text: 'false' would be true.
_PYTHONS = {"null": "None", "~": "None", "true": "True", "false": "False"}


def split_words(words: list[str]) -> tuple[Path | None, list[str], list[str]]:
    """The configuration, fairchem's own options, and ``--key=value`` overrides, from ``words``.

    Raises:
        LaunchError: for an argument that is none of these, or an option that ndem sets itself.
    """
    known = _fairchem_parser()._option_string_actions
    config = None
    options: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in _INSTEAD or name.startswith("--slurm-"):
            raise LaunchError(f"{name}: {_INSTEAD.get(name, 'use ndem submit')}.")
        if name in known:
            options.append(word)
            if known[name].nargs is None and not equals:
                options += rest[:1]
                value = "".join(rest[:1])
                del rest[:1]
            if name in _CHECKED:
                _check(name, value)
        elif config is None and not word.startswith("-") and (not equals or Path(word).is_file()):
            config = Path(word)
        elif equals and name.strip("-"):
            overrides.append(f"--{name.lstrip('-')}={_PYTHONS.get(value, value)}")
        else:
            raise LaunchError(
                f"{word!r} is not an option of ndem train or fairchem, and not key=value (in one "
                "word, such as optim.batch_size=4)."
            )
    return config, options, overrides


def _check(option: str, text: str) -> None:
    try:
        _CHECKED[option](text)
    except argparse.ArgumentTypeError as error:
        raise LaunchError(f"{option} {error}.") from None
    except ValueError:
        raise LaunchError(f"{option} {text!r} is not a whole number.") from None


def read_config(command: TrainCommand, world_size: int) -> dict[str, Any]:
    """fairchem's configuration of ``command``, for a run of ``world_size`` ranks.

    Raises:
        LaunchError: if the file cannot be read, or an override is not of the form key=value.
    """
    from fairchem.core.common.utils import build_config

    from fairchem_kit.training.checks.metrics import unreadable_losses

    args, _ = _fairchem_parser().parse_known_args(
        [
            "--mode", "train", "--config-yml", str(command.config),
            "--run-dir", str(command.run_dir), "--timestamp-id", command.run_id,
            *(["--cpu"] if command.cpu else []), *command.options,
        ]
    )  # fmt: skip
    read_mapping(command.config, LaunchError, "a configuration")
    with yaml_errors(command.config, LaunchError):
        config = build_config(args, command.overrides)
    for key in NEEDED:
        if key not in config:
            raise LaunchError(f"{command.config}: the section `{key}` is missing.")
    problem = unreadable_losses(config.get("loss_functions", {}), config.get("task"))
    if problem is not None:
        raise LaunchError(f"{command.config}: {problem}")
    config.update(
        world_size=world_size,
        distributed_backend="gloo" if command.cpu else "nccl",
        submit=False,
        summit=False,
    )
    config["identifier"] = config["identifier"] or command.run_id
    logger = config.get("logger", "wandb")
    if not isinstance(logger, (str, Mapping)):
        raise LaunchError(
            f"{command.config}: `logger` must be a name, such as tensorboard, or a mapping with "
            f"name, not {logger!r}."
        )
    config["logger"] = {"name": logger} if isinstance(logger, str) else dict(logger)
    if command.group:
        config["logger"]["group"] = command.group
    return config


def _fairchem_parser() -> argparse.ArgumentParser:
    """fairchem's own parser, with errors raised as LaunchError."""
    flags = module_alone("common.flags").flags

    def refuse(message: str) -> NoReturn:
        raise LaunchError(f"{message} (an option of fairchem: fairchem --help)")

    parser = flags.get_parser()
    parser.error = refuse
    return parser


def default_id(name: str, job: SlurmJob | None) -> str:
    """An id for a run without ``--id``; it does not change when its SLURM job is requeued."""
    if job is not None:
        return safe_id(f"{name or job.name}-{job.label}")
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")[:-3]
    return safe_id(f"{now}-{name}" if name else now)
