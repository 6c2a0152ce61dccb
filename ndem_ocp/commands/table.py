"""Every command of ``ndem``. To add one, add a line here and write its module.

The module has a function ``configure(parser)``, or one with the name after the colon, which adds
the command's arguments to an ``argparse.ArgumentParser`` and sets ``func``, called as ``func(args)
-> int`` for the exit status. It raises errors as ``NDeMError``, and checks files with
``ndem_ocp.files``. The module is imported only for its command and must import quickly: what is
heavy (``HEAVY`` in tests/test_startup.py) is imported in the function that runs.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: one or two words after ``ndem``. help: one line. where: ``module`` or
            ``module:function`` in ``ndem_ocp``.
    """

    name: str
    help: str
    where: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Import its module, and add its arguments to ``parser``."""
        module, _, function = self.where.partition(":")
        getattr(importlib.import_module(f"ndem_ocp.{module}"), function or "configure")(parser)


#: First words of two-word commands.
GROUPS = {
    "data": "make, convert and check data sets (LMDB)",
    "bench": "measure the time of training steps, evaluation and data reading on this machine",
    "submission": "write or check a file for OC20's S2EF leaderboard",
}

COMMANDS = (
    Command(
        "fit",
        "from a file of frames to a model: convert, split, train, evaluate, report",
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
        "make ASE trajectories of systems like the demo's, relaxed with EMT",
        "data.cli_is2re:configure_demo_relaxations",
    ),
    Command(
        "data check",
        "read every record, report problems and print the normalizer values",
        "data.cli:configure_check",
    ),
    Command(
        "data curvature",
        "how well potentials or models predict the change of forces between near frames",
        "curvature.command",
    ),
    Command(
        "data second-views",
        "displaced structures, labelled with DFT plus the change given by a potential",
        "second_views.command",
    ),
    Command(
        "data demo",
        "compute a small data set of metal slabs with adsorbates, with EMT",
        "data.cli:configure_demo",
    ),
    Command(
        "doctor",
        "show versions and devices, and what is wrong with the installation",
        "doctor",
    ),
    Command(
        "demo",
        "in minutes: make data, train, validate, plot",
        "demo",
    ),
    Command(
        "bench step",
        "time of a training step: upstream, naive NDeM, ours, ours with NDeM, DeNS",
        "bench.cli:configure_step",
    ),
    Command(
        "bench inference",
        "time for energies and forces: upstream and ours",
        "bench.cli:configure_inference",
    ),
    Command(
        "bench data",
        "time of reading and collating: our reader and fairchem's",
        "bench.cli:configure_data",
    ),
    Command(
        "bench scaling",
        "time of a step as a function of atoms, edges, L, layers, batch",
        "bench.cli:configure_scaling",
    ),
    Command(
        "sweep",
        "train the arms of a sweep file, evaluate them on a test set, make a table",
        "sweep",
    ),
    Command(
        "train",
        "train on this machine, with one or several ranks, or as a rank of an srun step",
        "launch.train",
    ),
    Command(
        "submit",
        "submit a run, several seeds or a sweep as a SLURM array",
        "launch.submit",
    ),
    Command(
        "status",
        "state, step and best metric of the runs of ndem submit (or ndem train) in a folder",
        "launch.status",
    ),
    Command(
        "requeue",
        "last line of a batch script: requeue the job if its run is not finished",
        "launch.requeue",
    ),
    Command("report", "compare runs on one self-contained HTML page", "report.page.command"),
    Command(
        "dashboard",
        "make W&B panels for a project, or write their specification to a file",
        "report.dashboard.command",
    ),
    Command(
        "eval",
        "errors of a checkpoint on several splits, as in OC20's tables",
        "evaluation.command",
    ),
    Command(
        "relax",
        "relax initial structures with a checkpoint: IS2RE and IS2RS errors",
        "evaluation.relax_command",
    ),
    Command(
        "vibrations",
        "vibrational frequencies of a structure with a checkpoint, compared with a reference",
        "evaluation.vibrations",
    ),
    Command(
        "submission write",
        "predict the four test splits",
        "evaluation.submission_command:configure_write",
    ),
    Command(
        "submission check",
        "list what is wrong with a file; exit status 1 if anything is",
        "evaluation.submission_command:configure_check",
    ),
    Command(
        "export",
        "write a checkpoint that plain fairchem loads without this package",
        "export.command",
    ),
    Command(
        "completion",
        "print a script that completes these commands in your shell",
        "commands.completion",
    ),
)
