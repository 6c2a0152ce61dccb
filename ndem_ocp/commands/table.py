"""Every command of ``ndem``. To add one, add a line here and write its module.

The module has a function ``configure(parser)``, or another name after a colon, which adds the
command's arguments to an ``argparse.ArgumentParser`` and sets ``func``, called as
``func(args) -> int`` for the exit status. It is imported only when its command is asked for, and
must be light: what the command needs beside the standard library is imported where it runs.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: its words after ``ndem``, one or two. help: one line. where: ``module`` or
            ``module:function`` below ``ndem_ocp``.
    """

    name: str
    help: str
    where: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Import its module, and add its arguments to ``parser``."""
        module, _, function = self.where.partition(":")
        getattr(importlib.import_module(f"ndem_ocp.{module}"), function or "configure")(parser)


#: First words of commands with two.
GROUPS = {
    "data": "make, convert and check data sets (LMDB)",
    "bench": "what a training step, an evaluation, reading data cost on this machine",
    "submission": "write or check the file for OC20's S2EF leaderboard",
}

COMMANDS = (
    Command(
        "fit",
        "from a file of frames to a model: convert, split, train, judge, report",
        "fit.command",
    ),
    Command(
        "data ase",
        "ASE trajectories and databases -> S2EF LMDBs in OC20's layout",
        "data.cli:configure_ase",
    ),
    Command(
        "data md17",
        "MD17, revised MD17 and CCSD(T) npz files -> S2EF LMDBs",
        "data.cli_molecules:configure_md17",
    ),
    Command(
        "data qm9",
        "QM9 -> LMDBs with twelve targets per molecule",
        "data.cli_molecules:configure_qm9",
    ),
    Command(
        "data is2re",
        "ASE relaxation trajectories -> IS2RE LMDBs, for relaxations with a model",
        "data.cli_is2re:configure_is2re",
    ),
    Command(
        "data demo-relaxations",
        "relax systems like the demo's with EMT, to ASE trajectories",
        "data.cli_is2re:configure_demo_relaxations",
    ),
    Command(
        "data check",
        "read every record, report problems and print the normalizer values",
        "data.cli:configure_check",
    ),
    Command(
        "data curvature",
        "how forces change over near frames: isotropic c, calculators, checkpoints",
        "curvature.command",
    ),
    Command(
        "data second-views",
        "displaced structures, labelled by DFT plus the change that a potential gives",
        "second_views.command",
    ),
    Command(
        "data demo",
        "a small data set of metal slabs with adsorbates, computed here with EMT",
        "data.cli:configure_demo",
    ),
    Command(
        "doctor",
        "versions, devices, stand-ins, what is wrong",
        "doctor",
    ),
    Command(
        "demo",
        "make data, train, validate, draw: in minutes",
        "demo",
    ),
    Command(
        "bench step",
        "a training step: upstream, naive NDeM, ours, ours with NDeM, DeNS",
        "bench.cli:configure_step",
    ),
    Command(
        "bench inference", "energies and forces: upstream and ours", "bench.cli:configure_inference"
    ),
    Command(
        "bench data", "reading and collating: our reader and fairchem's", "bench.cli:configure_data"
    ),
    Command(
        "bench scaling",
        "a step against atoms, edges, L, layers, batch",
        "bench.cli:configure_scaling",
    ),
    Command(
        "sweep", "train the arms of a sweep file, judge them on a test set, make the table", "sweep"
    ),
    Command(
        "train",
        "train: here, with several ranks here, or as a rank of an srun step",
        "launch.train",
    ),
    Command(
        "submit",
        "submit a training, its seeds or a sweep as a SLURM array",
        "launch.submit",
    ),
    Command(
        "status",
        "tasks of a folder of ndem submit (or ndem train): state, step, best metric",
        "launch.status",
    ),
    Command(
        "requeue",
        "last line of a batch script: requeue the job if its run should go on",
        "launch.requeue",
    ),
    Command(
        "report", "runs as one self-contained HTML page, with their table", "report.page.command"
    ),
    Command(
        "dashboard",
        "make the W&B panels of a project, or their specification as a file",
        "report.dashboard.command",
    ),
    Command(
        "eval",
        "errors of a checkpoint on several splits, as the tables have them",
        "evaluation.command",
    ),
    Command(
        "relax",
        "relax initial structures with a checkpoint: IS2RE and IS2RS errors",
        "evaluation.relax_command",
    ),
    Command(
        "vibrations",
        "vibrational frequencies of a structure with a checkpoint, beside a reference's",
        "evaluation.vibrations",
    ),
    Command(
        "submission write",
        "predict the four test splits",
        "evaluation.submission_command:configure_write",
    ),
    Command(
        "submission check",
        "say what is wrong with a file; exit status 1 if anything is",
        "evaluation.submission_command:configure_check",
    ),
    Command(
        "export",
        "a checkpoint without NDeM that plain fairchem loads, this package absent",
        "inference.export_command",
    ),
    Command(
        "completion",
        "print a script that completes these commands in your shell",
        "commands.completion",
    ),
)
