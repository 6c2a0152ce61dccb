"""Every command of ``ndem``. To add one, add a line here and write its module; sources of data are
the files in ``fairchem_kit/data/sources``.

What a module has is said in :class:`fairchem_kit.commands.parser.Command`. It raises errors as
``UserError``, and checks files with ``fairchem_kit.files``. It is imported only for its command and
must import quickly: what is heavy (``HEAVY`` in tests/test_startup.py) is imported in the function
that runs.
"""

from __future__ import annotations

from fairchem_kit.commands.parser import Command
from fairchem_kit.data import sources

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
        "ndem_ocp.fit.command",
    ),
    *sources.commands(),
    Command(
        "data demo-relaxations",
        "make ASE trajectories of systems like the demo's, relaxed with EMT",
        "fairchem_kit.data.cli:configure_demo_relaxations",
    ),
    Command(
        "data check",
        "read every record, report problems and print the normalizer values",
        "fairchem_kit.data.cli:configure_check",
    ),
    Command(
        "data curvature",
        "how well potentials or models predict the change of forces between near frames",
        "fairchem_kit.curvature.command",
    ),
    Command(
        "data second-views",
        "displaced structures, labelled with DFT plus the change given by a potential",
        "ndem_ocp.second_views.command",
    ),
    Command(
        "data demo",
        "compute a small data set of metal slabs with adsorbates, with EMT",
        "fairchem_kit.data.cli:configure_demo",
    ),
    Command(
        "doctor",
        "show versions and devices, and what is wrong with the installation",
        "ndem_ocp.doctor",
    ),
    Command(
        "demo",
        "in minutes: make data, train, validate, plot",
        "ndem_ocp.demo",
    ),
    Command(
        "bench step",
        "time of a training step: upstream, naive NDeM, ours, ours with NDeM, DeNS",
        "ndem_ocp.bench.cli:configure_step",
    ),
    Command(
        "bench inference",
        "time for energies and forces: upstream and ours",
        "ndem_ocp.bench.cli:configure_inference",
    ),
    Command(
        "bench data",
        "time of reading and collating: our reader and fairchem's",
        "ndem_ocp.bench.cli:configure_data",
    ),
    Command(
        "bench scaling",
        "time of a step as a function of atoms, edges, L, layers, batch",
        "ndem_ocp.bench.cli:configure_scaling",
    ),
    Command(
        "sweep",
        "train the arms of a sweep file, evaluate them on a test set, make a table",
        "ndem_ocp.sweep",
    ),
    Command(
        "train",
        "train on this machine, with one or several ranks, or as a rank of an srun step",
        "fairchem_kit.launch.train",
    ),
    Command(
        "submit",
        "submit a run, several seeds or a sweep as a SLURM array",
        "fairchem_kit.launch.submit",
    ),
    Command(
        "status",
        "state, step and best metric of the runs of ndem submit (or ndem train) in a folder",
        "fairchem_kit.launch.status",
    ),
    Command(
        "requeue",
        "last line of a batch script: requeue the job if its run is not finished",
        "fairchem_kit.launch.requeue",
    ),
    Command(
        "report", "compare runs on one self-contained HTML page", "fairchem_kit.report.page.command"
    ),
    Command(
        "dashboard",
        "make W&B panels for a project, or write their specification to a file",
        "fairchem_kit.report.dashboard.command",
    ),
    Command(
        "eval",
        "errors of a checkpoint on several splits, as in OC20's tables",
        "fairchem_kit.evaluation.command",
    ),
    Command(
        "relax",
        "relax initial structures with a checkpoint: IS2RE and IS2RS errors",
        "fairchem_kit.evaluation.relax_command",
    ),
    Command(
        "vibrations",
        "vibrational frequencies of a structure with a checkpoint, compared with a reference",
        "fairchem_kit.evaluation.vibrations",
    ),
    Command(
        "submission write",
        "predict the four test splits",
        "fairchem_kit.evaluation.submission_command:configure_write",
    ),
    Command(
        "submission check",
        "list what is wrong with a file; exit status 1 if anything is",
        "fairchem_kit.evaluation.submission_command:configure_check",
    ),
    Command(
        "export",
        "write a checkpoint that plain fairchem loads without this package",
        "ndem_ocp.export.command",
    ),
    Command(
        "completion",
        "print a script that completes these commands in your shell",
        "ndem_ocp.commands.completion",
    ),
)
