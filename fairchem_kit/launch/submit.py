"""``ndem submit``: a run, several seeds, or a sweep as one SLURM job array, through submitit."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairchem_kit.commands.options import add_cpu, add_gpu, seed_of
from fairchem_kit.commands.program import NDEM
from fairchem_kit.config_names import existing_config
from fairchem_kit.files import existing_file
from fairchem_kit.launch import slurm
from fairchem_kit.launch.command import read_config, split_words
from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.record import Record
from fairchem_kit.launch.requeue import MAX_RESTARTS, TASK
from fairchem_kit.launch.sweep_file import Sweep, read_sweep
from fairchem_kit.launch.tasks import Manifest, Task, read_manifest, tasks_of
from fairchem_kit.words import counted

LOGS = "slurm_logs"


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem submit``."""
    parser.allow_abbrev = False
    parser.add_argument("config", type=Path, nargs="?", help="a configuration (YAML)")
    parser.add_argument("--sweep", type=Path, help="a sweep file, instead of CONFIG")
    parser.add_argument("--seeds", type=seed_of, nargs="+", help="one task per seed (default: 0)")
    parser.add_argument("--arms", nargs="+", help="only these arms of the sweep")
    parser.add_argument("--out", type=Path, help="folder for all runs; default: runs/NAME")
    parser.add_argument(
        "--name", help="name of the jobs and the W&B group; default: the file's name"
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=MAX_RESTARTS,
        help="restarts of a killed task in a row without a new checkpoint (default: 3)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be submitted")
    device = parser.add_mutually_exclusive_group()
    add_gpu(device, "one GPU per rank (default)")
    add_cpu(device, "ranks without GPUs")
    _add_resources(parser.add_argument_group("resources of each task"))
    parser.epilog = "After --: fairchem options and key=value overrides for all tasks."
    parser.set_defaults(func=run, overrides=[])


def _add_resources(group: Any) -> None:
    group.add_argument("--nodes", type=int, default=1)
    group.add_argument("--ranks-per-node", type=int, default=1)
    group.add_argument("--gpus-per-node", type=int, help="default: one per rank")
    group.add_argument(
        "--cpus-per-task",
        type=int,
        help="CPUs per rank (default: 1 + optim.num_workers of the configuration)",
    )
    group.add_argument("--mem-gb", type=float, help="memory per node")
    group.add_argument("--time", default="24:00:00", help="time limit: minutes, H:M:S or D-H:M:S")
    group.add_argument("--partition")
    group.add_argument("--qos")
    group.add_argument("--account")
    group.add_argument(
        "--array-parallelism",
        type=int,
        default=256,
        help="largest number of tasks at the same time",
    )
    group.add_argument(
        "--signal-delay",
        type=int,
        default=120,
        help="seconds before the time limit at which the ranks stop and save",
    )
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a shell command before srun (module load ...); may be repeated",
    )
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another option of sbatch (constraint=a100); may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Write the list of tasks, submit those not finished or queued, print how to watch them."""
    if not args.dry_run and not slurm.available():
        raise LaunchError(
            "sbatch was not found: run ndem submit on a machine that can submit to SLURM. "
            "--dry-run shows the job; ndem train and ndem sweep train without SLURM."
        )
    manifest = manifest_of(args)
    before = read_manifest(manifest.folder)
    manifest.name_runs(before)
    from fairchem_kit.launch.console import short_messages  # with ASE

    with short_messages():
        config = read_config(manifest.command(0), args.nodes * args.ranks_per_node)
    if args.cpus_per_task is None:
        args.cpus_per_task = 1 + int(config["optim"].get("num_workers") or 0)
    waiting = _waiting(manifest.tasks)
    executor = _executor(args, manifest, waiting)
    if args.dry_run:
        return _show(executor, manifest, waiting)
    if not waiting:
        count = len(manifest.tasks)
        what = f"All {counted(count, 'task')} are" if count > 1 else "The task is"
        print(f"{what} finished or queued: ndem status {_of(manifest)}")
        return 0
    manifest.write()  # before the first task starts
    jobs = _submit(executor, manifest, waiting)
    for task, job in zip(waiting, jobs):
        task.job = job.job_id
    manifest.write()
    ids = jobs[0].job_id if len(jobs) == 1 else f"{jobs[0].job_id} to {jobs[-1].job_id}"
    print(f"submitted {len(jobs)} of {counted(len(manifest.tasks), 'task')} as {ids}")
    print(f"folder   {manifest.folder}\nlogs     {manifest.folder / LOGS}")
    print(f"look at  ndem status {_of(manifest)}")
    return 0


def _submit(executor: Any, manifest: Manifest, waiting: list[Task]) -> list[Any]:
    from submitit.core.utils import FailedJobError

    from fairchem_kit.launch.task import RunTask

    try:
        return executor.map_array(
            RunTask(), [str(manifest.folder)] * len(waiting), [task.index for task in waiting]
        )
    except FailedJobError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line]
        raise LaunchError(f"sbatch refused: {' '.join(lines) or error}") from error


def _of(manifest: Manifest) -> str:
    return shlex.quote(os.path.relpath(manifest.folder))


def manifest_of(args: argparse.Namespace) -> Manifest:
    """The tasks for ``args``.

    Raises:
        LaunchError: if the arguments contradict each other.
    """
    if (args.config is None) == (args.sweep is None):
        raise LaunchError(
            "give either CONFIG or --sweep FILE (a sweep file names its configuration)."
        )
    if args.sweep:
        existing_file(args.sweep, LaunchError)
    else:
        existing_config(args.config, LaunchError)
    config, options, overrides = split_words(args.overrides)
    if config is not None:
        raise LaunchError(f"{config!s}: after -- only --option or key=value are allowed.")
    sweep = _sweep_of(args)
    name = args.name or (args.sweep or args.config).stem
    folder = (args.out or Path("runs") / name).resolve()
    tasks = tasks_of(sweep, folder, args.seeds or sweep.seeds)
    for task in tasks:
        task.options += options
        task.overrides += overrides
    return Manifest(folder, name, sweep.config.resolve(), args.cpu, args.max_restarts, tasks)


def _sweep_of(args: argparse.Namespace) -> Sweep:
    if args.sweep is None:
        if args.arms:
            raise LaunchError("--arms needs --sweep FILE.")
        return Sweep(args.config, args.config, [0], "", {args.config.stem: {}}, [], "")
    sweep = read_sweep(args.sweep)
    unknown = [arm for arm in args.arms or [] if arm not in sweep.arms]
    if unknown:
        raise LaunchError(f"{args.sweep} has no arm {unknown[0]!r}: {', '.join(sweep.arms)}.")
    arms = {arm: sweep.arms[arm] for arm in args.arms or sweep.arms}
    return replace(sweep, arms=arms)


def _waiting(tasks: list[Task]) -> list[Task]:
    """Those that are neither finished nor in SLURM's queue."""
    queue = slurm.queue([task.job for task in tasks]) or {}
    alive = ("PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "COMPLETING")
    return [
        task
        for task in tasks
        if queue.get(task.job) not in alive
        and Record(task.run_dir, task.run_id).read().get("state") != "finished"
    ]


def minutes(text: str) -> int:
    """A time in SLURM's notation (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up.

    Raises:
        LaunchError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise LaunchError(f"--time {text}: give minutes, H:M:S or D-H:M:S.")
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    numbers = [part for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers = [0, *numbers]  # minutes first
    hours, mins, seconds = [*numbers, 0, 0][:3]
    return max(1, -(-((days or 0) * 86400 + hours * 3600 + mins * 60 + seconds) // 60))


def _executor(args: argparse.Namespace, manifest: Manifest, waiting: list[Task]) -> Any:
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2 if args.dry_run else super().affinity()  # a dry run does not need srun

    more = dict(item.partition("=")[::2] for item in args.sbatch)
    gpus = 0 if args.cpu else args.gpus_per_node or args.ranks_per_node
    given = {
        "partition": args.partition,
        "qos": args.qos,
        "account": args.account,
        "gpus_per_node": gpus or None,
        "mem": None if args.mem_gb is None else f"{round(args.mem_gb * 1024)}MB",
    }
    executor = Executor(folder=manifest.folder / LOGS, max_num_timeout=10**6)
    executor.update_parameters(
        job_name=manifest.name,
        time=minutes(args.time),
        nodes=args.nodes,
        ntasks_per_node=args.ranks_per_node,
        cpus_per_task=args.cpus_per_task,
        array_parallelism=args.array_parallelism,
        signal_delay_s=args.signal_delay,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],
        setup=[*args.setup, *_script(manifest, waiting)],
        additional_parameters={"requeue": True, **more},
        **{key: value for key, value in given.items() if value is not None},
    )
    return executor


def _script(manifest: Manifest, waiting: list[Task]) -> list[str]:
    """Lines of the batch script around srun, which set the task and handle its end."""
    numbers = " ".join(str(task.index) for task in waiting)
    after = shlex.join([*NDEM, "requeue", "--folder", str(manifest.folder)])
    return [
        f"NDEM_TASKS=({numbers})",
        f"export {TASK}=${{NDEM_TASKS[${{SLURM_ARRAY_TASK_ID:-0}}]}}",
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun stopped reading sbatch's",
        "trap : TERM  # a preempted job's script lives on until srun has ended",
        f"trap 'code=$?; trap - EXIT; [ $code = 0 ] || {after} $code; exit $code' EXIT",
    ]


def _show(executor: Any, manifest: Manifest, waiting: list[Task]) -> int:
    if len(waiting) > 1:
        executor.parameters["map_count"] = len(waiting)
    print(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))
    for task in waiting:
        command = manifest.command(task.index)
        print(f"# task {task.index}: {command.line()}")
    return 0
