"""What a user gets from `pip install`, tried without anything that only developers have.

    .venv/bin/python .ci/installs.py [--work DIR]

Builds the sdist, a wheel from the unpacked sdist, and has twine look at both. Installs the wheel
into a fresh environment in which the packages of the default one can be imported, but not pytest
and the like, and tries there: declared requirements, every module, every command. Everything
happens in a folder of its own; what it costs is a minute or two and no download but twine's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# For developers alone: an installed package must not need them.
DEVELOPERS = ("pytest", "_pytest", "pytest_timeout", "xdist", "ruff", "mypy", "shtab")
SOURCES = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
    "CITATION.cff", "Makefile", "fairchem_kit", "ndem_ocp", "ndem_ocp_standins", "packaging",
    "configs", "docs",
    "examples", "requirements", "slurm", "tests", "tests_fairchem2",
)  # fmt: skip


def run(*words: object, folder: Path, **options) -> str:
    """stdout of a command that must succeed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["NO_COLOR"] = "1"
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, text=True, capture_output=True,
        check=False, **options,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stdout}"
                 f"\n{done.stderr}")  # fmt: skip
    return done.stdout


def build(work: Path) -> tuple[Path, Path]:
    """The sdist of this checkout, and the wheel that is made of the sdist alone."""
    copy, unpacked, dist = work / "checkout", work / "unpacked", work / "dist"
    dist.mkdir()
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=ignored)
        else:
            shutil.copy(path, copy / name)
    backend = "import sys; from setuptools.build_meta import build_{0} as b; b(sys.argv[1])"
    run(sys.executable, "-c", backend.format("sdist"), dist, folder=copy)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    for name in ("configs/oc20/demo.yml", "tests/conftest.py", "docs/install.md", "CHANGELOG.md"):
        if not (source / name).is_file():
            sys.exit(f"{sdist.name} lacks {name}: MANIFEST.in says what goes into it.")
    run(sys.executable, "-c", backend.format("wheel"), dist, folder=source)
    (wheel,) = dist.glob("*.whl")
    return sdist, wheel


def check_metadata(work: Path, *files: Path) -> None:
    """twine, in an environment of its own: it brings twenty packages."""
    tools = work / "tools"
    run(sys.executable, "-m", "venv", tools, folder=work)
    python = tools / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-r", ROOT / "requirements/twine.txt", folder=work)
    print(run(python, "-m", "twine", "check", "--strict", *files, folder=work), end="")


def environment(work: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel, above the packages of this one; its python."""
    place = work / "environment"
    run(sys.executable, "-m", "venv", place, folder=work)
    python = place / "bin" / "python"
    here = Path(sysconfig.get_paths()["purelib"])
    site = Path(run(python, "-c", "import sysconfig as s; print(s.get_paths()['purelib'])",
                    folder=work).strip())  # fmt: skip
    # Above, because fairchem's plug-in folder counts only beside fairchem itself.
    shutil.copytree(here / "fairchem", site / "fairchem",
                    ignore=shutil.ignore_patterns("experimental", "__pycache__"))  # fmt: skip
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, folder=work)
    (site / "zz_default_environment.pth").write_text(
        f"{here}\nimport sys; sys.modules.update(dict.fromkeys({DEVELOPERS!r}))\n"
    )
    return python


REQUIREMENTS = """
import sys
from importlib import metadata
from packaging.requirements import Requirement
# fairchem-core pins an older torch and numpy, which docs/install.md explains; ours must hold here.
wrong = []
for text in metadata.requires("ndem-ocp"):
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({"extra": "fairchem1"}):
        continue
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        wrong.append(f"{requirement} is not here")
        continue
    if not requirement.specifier.contains(found, prereleases=True):
        wrong.append(f"{requirement}: {found} is here")
sys.exit("\\n".join(wrong) or 0)
"""

MODULES = """
import importlib, pkgutil, sys
import fairchem_kit, ndem_ocp, ndem_ocp_standins
places = [place for package in (fairchem_kit, ndem_ocp) for place in package.__path__]
assert all("site-packages" in place for place in places), places
assert sys.modules["pytest"] is None
wrong, count = [], 0
packages = ((package.__path__, package.__name__ + ".") for package in (fairchem_kit, ndem_ocp))
for found in (each for package in packages for each in pkgutil.walk_packages(*package)):
    if found.name in ("ndem_ocp.testing.contract", "ndem_ocp.bench.experiments.backbones"):
        continue  # a test suite to inherit, and the program that runs it: they need pytest
    if found.name.startswith(("ndem_ocp.fairchem2.", "ndem_ocp.bench.experiments.fairchem2")):
        continue  # for fairchem 2: make test2
    try:
        importlib.import_module(found.name)
        count += 1
    except ImportError as error:
        wrong.append(f"{found.name}: {error}")
print(f"{count} modules can be imported")
sys.exit("\\n".join(wrong) or 0)
"""

COMMANDS = """
from ndem_ocp.commands.table import COMMANDS
print(*(command.name for command in COMMANDS), sep="\\n")
"""


def try_commands(python: Path, work: Path) -> None:
    """--help of every command, doctor, data made and checked, and the stock fairchem command."""
    ndem = python.parent / "ndem"
    names = run(python, "-c", COMMANDS, folder=work).splitlines()
    for name in names:
        assert "usage: ndem" in run(ndem, *name.split(), "--help", folder=work), name
    print(f"{len(names)} commands answer --help")
    print(run(ndem, "--version", folder=work), end="")
    doctor = run(ndem, "doctor", folder=work)
    print(doctor.splitlines()[-1])
    for wanted in ("in fairchem's plug-in folder", "stand-in", "No problems found."):
        assert wanted in doctor, doctor
    run(ndem, "data", "demo", "--out", "data", "--size", "small", "--no-progress", folder=work)
    run(ndem, "data", "check", "data", "--no-progress", folder=work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="keep everything there; default: a temporary one")
    parser.add_argument("--no-twine", action="store_true", help="without an index to get it from")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sdist, wheel = build(work)
        print(f"{sdist.name}, {wheel.name}")
        if not args.no_twine:
            check_metadata(work, sdist, wheel)
        python = environment(work, wheel)
        run(python, "-c", REQUIREMENTS, folder=work)
        print(run(python, "-c", MODULES, folder=work), end="")
        try_commands(python, work)
    print("an installed package works")


if __name__ == "__main__":
    main()
