"""What is imported when: counted in modules, because seconds differ between machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ndem_ocp
from fairchem_kit.data import sources
from ndem_ocp.cli import main
from ndem_ocp.commands.table import COMMANDS, GROUPS

# What takes from a tenth of a second to seconds to import.
HEAVY = (
    "ase", "e3nn", "fairchem", "matplotlib", "numba", "pandas", "scipy", "sklearn", "submitit",
    "sympy", "tensorboard", "torch", "torch_geometric", "torchmdnet", "wandb", "wandb_workspaces",
)  # fmt: skip

LOADED = f"""
import sys
def heavy():
    return sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r}))
"""

#: For each command with an input, a command line that names one that is not there.
MISSING = {
    **{command.name: ["absent.npz", "--out", "out"] for command in sources.commands()},
    "data check": ["absent"],
    "fit": ["absent.extxyz"],
    "data curvature": ["absent"],
    "data second-views": ["absent", "--calculator", "ase.calculators.emt:EMT()", "--out", "out"],
    "demo": ["--config", "absent.yml"],
    "bench step": ["--model", "absent.yml"],
    "bench inference": ["--checkpoint", "absent.pt"],
    "bench data": ["--data", "absent"],
    "bench scaling": ["--data", "absent"],
    "sweep": ["absent.yml"],
    "train": ["absent.yml"],
    "submit": ["absent.yml", "--dry-run"],
    "status": ["absent"],
    "report": ["absent"],
    "dashboard": ["absent"],
    "eval": ["absent.pt", "--data", "."],
    "relax": ["absent.pt", "--data", "."],
    "vibrations": ["absent.pt", "absent.xyz"],
    "submission write": [
        "absent.pt", "--id", ".", "--ood-ads", ".", "--ood-cat", ".", "--ood-both", ".",
        "--out", "out.npz",
    ],
    "submission check": ["absent.npz"],
    "export": ["absent.pt", "out.pt"],
}  # fmt: skip
WITHOUT_INPUT = {"data demo", "data demo-relaxations", "doctor", "requeue", "completion"}


def python(code: str, folder: Path, **options) -> str:
    """stdout of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_wrong_command_lines_import_nothing_heavy(tmp_path):
    code = f"""{LOADED}
import contextlib
from ndem_ocp.cli import main
from ndem_ocp.commands.table import COMMANDS, GROUPS
for words in [[], *([n] for n in GROUPS), *(c.name.split() for c in COMMANDS)]:
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert not heavy(), (words, heavy())
    if words:
        assert main([*words, "--not-an-option", "--"]) == 2
        assert not heavy(), (words, heavy())
with contextlib.suppress(SystemExit):
    main(["--version"])
assert main(["nonsense"]) == 2 and main([]) == 2
print(heavy())
"""
    assert python(code, tmp_path).splitlines()[-1] == "[]"


def test_a_missing_file_is_noticed_before_anything_heavy_is_imported(tmp_path):
    assert {*MISSING, *WITHOUT_INPUT} == {command.name for command in COMMANDS}
    code = f"""{LOADED}
from ndem_ocp.cli import main
for name, words in {MISSING!r}.items():
    assert main([*name.split(), *words]) == 2, name
    assert not heavy(), (name, heavy())
"""
    python(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_options_of_fairchem_are_known_without_importing_it(tmp_path):
    """As at the end of a batch script, after every run."""
    (tmp_path / "run.yml").write_text("{}\n")
    code = f"""{LOADED}
import os
from ndem_ocp.cli import main
os.environ.update(SLURM_JOB_ID="1", PATH="")
words = ["run.yml", "--run-dir", "runs", "--identifier", "mine", "--amp", "optim.lr_initial=1e-4"]
assert main(["requeue", "0", *words]) == 0
assert main(["requeue", "0", *words, "--not-an-option"]) == 2
assert not heavy(), heavy()
"""
    python(code, tmp_path)


def test_importing_the_package_loads_nothing_and_names_all(tmp_path):
    code = f"""{LOADED}
import ndem_ocp
assert not heavy(), heavy()
assert set(ndem_ocp.__all__) <= set(dir(ndem_ocp))
assert not hasattr(ndem_ocp, "NoSuchName")
assert not heavy(), heavy()
import fairchem_kit.data, fairchem_kit.evaluation, fairchem_kit.inference, fairchem_kit.training
import ndem_ocp.trainer
assert not heavy(), heavy()
"""
    python(code, tmp_path)


FAIRCHEM_2 = "raise ImportError('fairchem 2 has another registry')\n"


@pytest.mark.parametrize("beside", ["fairchem 1.10", "fairchem 2", "no fairchem"])
def test_the_method_loads_torch_alone(tmp_path, beside):
    if beside == "fairchem 2":
        (tmp_path / "fairchem" / "core").mkdir(parents=True)
        (tmp_path / "fairchem" / "core" / "__init__.py").write_text(FAIRCHEM_2)
    absent = "sys.modules['fairchem'] = None" if beside == "no fairchem" else ""
    code = f"""
import sys
{absent}
import torch
before = set(sys.modules)
from ndem_ocp.method import NDeMSettings, SettingsError
import ndem_ocp
assert issubclass(SettingsError, ndem_ocp.NDeMError)
NDeMSettings()
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - sys.stdlib_module_names))
"""
    assert python(code, tmp_path) == "['fairchem_kit', 'ndem_ocp']\n"


@pytest.mark.parametrize("beside", ["fairchem 2", "no fairchem"])
def test_a_name_that_needs_fairchem_says_so(tmp_path, beside):
    if beside == "fairchem 2":
        (tmp_path / "fairchem" / "core").mkdir(parents=True)
        (tmp_path / "fairchem" / "core" / "__init__.py").write_text(FAIRCHEM_2)
    absent = "sys.modules['fairchem'] = None" if beside == "no fairchem" else ""
    code = f"""
import sys
{absent}
import ndem_ocp
try:
    ndem_ocp.NDeMTrainer
except ImportError as error:
    print(error)
"""
    assert "ndem_ocp needs fairchem-core 1.10" in python(code, tmp_path)


@pytest.mark.parametrize(
    ("version", "name", "sentence"),
    [
        ("2.24.0", "ndem_ocp.NDeMTrainer", "2.24.0 is installed here, for which there is"),
        (None, "ndem_ocp.NDeMTrainer", "pip install '.[fairchem1]'"),
        ("1.10.0", "ndem_ocp.fairchem2.NDeMTrainEvalUnit", "needs fairchem-core 2.24; 1.10.0 is"),
        (None, "ndem_ocp.fairchem2.NDeMTrainEvalUnit", "pip install '.[fairchem2]'"),
    ],
)
def test_the_wrong_fairchem_is_named_with_what_to_install(tmp_path, version, name, sentence):
    code = f"""
import importlib
from fairchem_kit import hosts
hosts.host_version = lambda: {version!r}
hosts.importlib.util.find_spec = lambda name: None
module, _, name = {name!r}.rpartition(".")
try:
    getattr(importlib.import_module(module), name)
except ImportError as error:
    print(error)
"""
    assert sentence in python(code, tmp_path)


def test_dotted_names_resolve_in_a_process_that_imported_nothing(tmp_path):
    code = """
import pickle
from fairchem.core.common.registry import registry as r
found = [
    r.get_dataset_class("ndem_ocp.LmdbReader"),
    r.get_logger_class("ndem_ocp.HistoryLogger"),
    r.get_model_class("ndem_ocp.TorchMDETBackbone"),
    r.get_model_class("ndem_ocp.TwoViewHydra"),
    r.get_trainer_class("ndem_ocp.NDeMTrainer"),
    r.get_loss_class("ndem_ocp.SquaredL2Loss"),
]
assert pickle.loads(pickle.dumps(found)) == found
# a configuration that names one thing by its dotted name may name the others by their short ones
assert r.get_dataset_class("ndem_lmdb") is found[0]
assert r.get_trainer_class("ndem") is found[4]
"""
    python(code, tmp_path)


def test_short_names_resolve_after_fairchems_own_set_up(tmp_path):
    """As in the stock fairchem command, through its plug-in folder."""
    code = """
import sys
from fairchem.core.common.registry import registry as r
from fairchem.core.common.utils import setup_imports
assert "ndem_ocp" not in sys.modules
setup_imports()
assert r.get_trainer_class("ndem").__module__ == "ndem_ocp.trainer.ndem_trainer"
assert r.get_dataset_class("ndem_lmdb").__name__ == "LmdbReader"
assert r.get_logger_class("ndem_history").__name__ == "HistoryLogger"
assert r.get_loss_class("squared_l2").__name__ == "SquaredL2Loss"
for name in ("ndem_hydra", "ndem_equiformer_v2_backbone", "torchmd_et_backbone",
             "ndem_dens_hydra", "ndem_scn_backbone", "ndem_schnet_backbone"):
    assert r.get_model_class(name).__module__.startswith("ndem_ocp.models"), name
"""
    python(code, tmp_path)


def test_the_table_of_commands(capsys):
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names if " " in name} == set(GROUPS)
    with pytest.raises(SystemExit):
        main(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        if " " not in command.name:
            assert command.help in page
    for group, help_ in GROUPS.items():
        assert help_ in page
        with pytest.raises(SystemExit):
            main([group, "--help"])
        below = " ".join(capsys.readouterr().out.split())
        assert all(c.help in below for c in COMMANDS if c.name.startswith(f"{group} "))


def test_axes_of_the_options_are_those_of_the_benchmark():
    from ndem_ocp.bench import names, scaling

    assert tuple(scaling.AXES) == names.AXES


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name.split()[-1] in script
    for option in ("--energy-reference", "--weights", "--fractions", "--max-restarts"):
        assert option in script or shell == "tcsh"


def test_bash_completes_with_the_script(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "ndem.bash").write_text(capsys.readouterr().out)
    ask = (
        "source ndem.bash; COMP_WORDS=(ndem data ch); COMP_CWORD=2; "
        "$(complete -p ndem | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["check"], done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ndem_ocp {ndem_ocp.__version__}\n"
