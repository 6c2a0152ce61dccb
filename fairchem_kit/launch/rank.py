"""One rank: meet the others, build fairchem's trainer, train, exit with a code."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import traceback
from dataclasses import replace
from typing import Any, NoReturn

import torch

from fairchem_kit.commands import ending
from fairchem_kit.launch import exit_codes
from fairchem_kit.launch.command import TrainCommand, read_config
from fairchem_kit.launch.console import say, short_messages, shown
from fairchem_kit.launch.device import choose_cpu
from fairchem_kit.launch.errors import LaunchError, TakenError, first_line, lost_contact
from fairchem_kit.launch.heartbeat import Heartbeat
from fairchem_kit.launch.leftovers import Leftovers
from fairchem_kit.launch.places import Place, slurm_job
from fairchem_kit.launch.record import Record
from fairchem_kit.launch.rendezvous import Rendezvous, meet
from fairchem_kit.launch.signals import default_signals, stops_between_steps
from fairchem_kit.processes import is_alive
from fairchem_kit.training.bad_steps import BadStepsError
from fairchem_kit.training.resume.stopping import Stopped
from fairchem_kit.words import counted

_CLOSING_S = 120.0  # for W&B's last upload


def run_rank(command: TrainCommand, place: Place) -> int:
    """Train as one rank; returns one of ``exit_codes``."""
    record = Record(command.run_dir, command.run_id)
    before = Leftovers(command.run_dir, command.run_id)
    quietly = contextlib.nullcontext() if command.verbose else short_messages()
    with stops_between_steps(place.launched), quietly:
        try:
            return _run(command, place, record)
        except TakenError as error:
            return ending.refuse(str(error))
        except Exception as error:
            if place.world_size > 1 and lost_contact(error):
                logging.error(f"Rank {place.rank} lost the other ranks: {first_line(error)}")
                return exit_codes.LOST_RANK
            record.fail(place.attempt, place.rank, error)
            if place.rank == 0:
                record.begin(place.attempt)
                record.update(state="failed", error=first_line(error))
            if place.world_size == 1:
                _leave_group()
            if place.rank == 0:
                before.remove(status=not place.launched and slurm_job() is None)
            sentence = ending.explained(error)
            if sentence is not None and not isinstance(error, BadStepsError):
                return ending.refuse(sentence)
            traceback.print_exc()
            return exit_codes.ERROR


def _leave_group() -> None:
    """Leave the process group, so that this process can start another run. Not with several ranks,
    where it could wait for them."""
    from fairchem.core.common import distutils

    if distutils.initialized():
        distutils.cleanup()


def _run(command: TrainCommand, place: Place, record: Record) -> int:
    command = replace(command, cpu=choose_cpu(command.cpu, in_jobs=False))
    config = read_config(command, place.world_size)
    if not command.cpu:
        place = with_device(place)
    hidden = not (command.verbose and sys.stderr.isatty())
    config.setdefault("hide_eval_progressbar", hidden)
    if place.rank == 0:
        _begin(record, place, command)
    rendezvous = meet(place, record.folder)
    stopped = _train(config, place, record, rendezvous, command.verbose)
    if stopped is None:
        if place.rank == 0:
            record.update(state="finished")
        return exit_codes.FINISHED
    if place.rank == 0:
        record.update(state="stopped", reason=stopped.reason, step=stopped.step)
    return exit_codes.STOPPED


def _train(
    config: dict[str, Any], place: Place, record: Record, rendezvous: Rendezvous, verbose: bool
) -> Stopped | None:
    """Run fairchem's trainer and task; returns how it was stopped, None if it finished."""
    from fairchem.core.common.utils import new_trainer_context

    from fairchem_kit import plugins
    from fairchem_kit.training import Trainer

    plugins.register()
    check_trainer(config)
    stopped = None
    with new_trainer_context(config=config) as context:
        rendezvous.forget_port()
        if not isinstance(context.trainer, Trainer):
            default_signals()
        context.task.setup(context.trainer)
        beating: Any = contextlib.nullcontext()
        showing: Any = contextlib.nullcontext()
        if place.rank == 0:
            beating = Heartbeat(record, context.trainer, place.attempt)
        if place.rank == 0 and not verbose:
            say(_headline(context.trainer, record))
            showing = shown(context.trainer)
        with beating, showing:
            try:
                context.task.run()
            except Stopped as stop:
                stopped = stop
    return stopped


def _headline(trainer: Any, record: Record) -> str:
    """What will be trained, on one line."""
    steps = len(trainer.train_loader) * trainer.config["optim"]["max_epochs"]
    parameters = sum(p.numel() for p in trainer._unwrapped_model.parameters())
    return (
        f"{record.run_dir / 'checkpoints' / record.run_id}: {counted(parameters, 'parameter')}, "
        f"{counted(len(trainer.train_dataset), 'structure')}, {counted(steps, 'step')} of "
        f"{trainer.config['optim'].get('batch_size', 1)} per rank, on {trainer.device}"
    )


def check_trainer(config: dict[str, Any]) -> None:
    """
    Raises:
        LaunchError: if ``trainer`` is not a trainer.
        CheckpointError: if it would run code in the checkpoint from which the run resumes.
    """
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    from fairchem_kit.checkpoints import read_checkpoint
    from fairchem_kit.training import Trainer
    from fairchem_kit.training.checks.messages import hint

    setup_imports()
    name = config.get("trainer", "ocp")
    try:
        trainer = registry.get_trainer_class(name)
    except (RuntimeError, ImportError, AttributeError, TypeError) as error:
        why = f" ({error.__cause__})" if error.__cause__ else ""
        valid = registry.mapping["trainer_name_mapping"]
        raise LaunchError(
            f"trainer = {name!r} is not a trainer{why}. {hint(name, valid)}"
        ) from error
    if config.get("checkpoint") and not issubclass(trainer, Trainer):
        # fairchem's own trainer reads it with torch's default settings
        read_checkpoint(
            config["checkpoint"], unsafe=(config.get("task") or {}).get("unsafe", False)
        )


def _begin(record: Record, place: Place, command: TrainCommand) -> None:
    before = record.read()
    host = socket.gethostname()
    if before.get("state") == "running" and before.get("host") == host and slurm_job() is None:
        pid = before.get("pid", -1)
        if pid != os.getpid() and "job" not in before and is_alive(pid):
            raise TakenError(
                f"{record.path}: process {pid} is training this run. Stop it first, or give "
                "another --id."
            )
    job = slurm_job()
    record.begin(place.attempt)
    record.update(
        state="running",
        error=None,
        reason=None,
        starts=before.get("starts", 0) + 1,
        job=job.label if job else None,
        host=host,
        pid=os.getpid(),
        ranks=place.world_size,
        config=str(command.config),
    )


def with_device(place: Place) -> Place:
    """``place`` with the number of its GPU, among those visible to this process, as local rank.

    Raises:
        LaunchError: if there is no GPU, or fewer than ranks.
    """
    seen = torch.cuda.device_count()
    if seen == 0:
        raise LaunchError("No CUDA device is visible. To train on the CPU, add --cpu.")
    if seen == 1:  # with srun --gpus-per-task each rank sees only its own
        return replace(place, local_rank=0)
    if seen < place.local_size:
        raise LaunchError(
            f"{counted(place.local_size, 'rank')} on {socket.gethostname()}, but "
            f"{counted(seen, 'visible GPU')} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}): start as "
            "many ranks as there are GPUs."
        )
    return place


def leave(code: int, place: Place) -> NoReturn:
    """End this process with ``code``, for certain.

    Closing a communication library can hang at interpreter exit, and the job with it; everything
    important has been written by now.

    A rank that stopped ends with 0 unless it is rank 0: with --kill-on-bad-exit srun would kill
    rank 0 while it closes its logger.
    """
    if code == exit_codes.STOPPED and place.rank > 0:
        code = exit_codes.FINISHED
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (exit_codes.FINISHED, exit_codes.STOPPED):
        late = threading.Timer(_CLOSING_S, os._exit, [code])
        late.daemon = True
        late.start()
        with contextlib.suppress(Exception):  # a logger that has failed cannot be closed
            atexit._run_exitfuncs()
    os._exit(code)
