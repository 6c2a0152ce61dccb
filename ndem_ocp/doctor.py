"""``ndem doctor``: what is installed, which stand-ins are used, what is wrong and how to fix it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fairchem_kit.hosts import HOSTS, host
from fairchem_kit.words import counted

PACKAGES = (
    "ndem-ocp",
    "fairchem-core",
    "torch",
    "torch-geometric",
    "numpy",
    "scipy",
    "e3nn",
    "ase",
    "lmdb",
    "submitit",
    "wandb",
)


@dataclass
class Report:
    """Lines to print, and problems with their fixes."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def line(self, name: str, value: object) -> None:
        self.lines.append(f"  {name:<30}{value}")

    def title(self, text: str) -> None:
        self.lines.append(text)


def configure(parser: argparse.ArgumentParser) -> None:
    """``ndem doctor``."""
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; exit status 1 if something is wrong."""
    report = examine()
    print("\n".join(report.lines))
    if not report.problems:
        print("No problems found.")
        return 0
    print(f"{counted(len(report.problems), 'problem')}:")
    for problem in report.problems:
        print(f"  - {problem}")
    return 1


def examine() -> Report:
    """Look at versions, devices, compiled extensions, registration and the command line."""
    report = Report()
    for check in (_versions, _devices, _extensions, _registration):
        _guarded(check, report)
    return report


def _guarded(check: Callable[[Report], None], report: Report) -> None:
    try:
        check(report)
    except Exception as error:  # report whatever breaks
        report.problems.append(f"{check.__name__[1:]}: {type(error).__name__}: {error}")


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(report: Report) -> None:
    report.title("Versions")
    report.line("python", f"{platform.python_version()} ({sys.executable})")
    for package in PACKAGES:
        report.line(package, version(package) or "not installed")
    report.line("torchmd-net", version("torchmd-net") or "not installed (needed for configs/md17)")
    fairchem = version("fairchem-core")
    if fairchem is None:
        report.problems.append(
            "fairchem-core is not installed: in a checkout, pip install '.[fairchem1]' (1.10, Open "
            "Catalyst trainers) or '.[fairchem2]' (2.24, UMA and eSEN)"
        )
    elif not fairchem.startswith(tuple(f"{known}." for known, _ in HOSTS.values())):
        report.problems.append(
            f"fairchem-core {fairchem} is not one that this package was made for: "
            "in a checkout, pip install '.[fairchem1]' (1.10) or '.[fairchem2]' (2.24)"
        )


def _devices(report: Report) -> None:
    import torch

    report.title("Devices")
    report.line(
        "CPU", f"{os.cpu_count()} cores, torch uses {counted(torch.get_num_threads(), 'thread')}"
    )
    report.line("torch build", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only")
    if not torch.cuda.is_available():
        report.line("GPU", "none visible")
        if torch.version.cuda and os.path.exists("/proc/driver/nvidia/version"):
            report.problems.append(
                "An NVIDIA driver is loaded but torch sees no GPU: the driver may be older than "
                f"CUDA {torch.version.cuda} needs (nvidia-smi shows it), or CUDA_VISIBLE_DEVICES "
                "hides the devices."
            )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        report.line(f"GPU {index}", f"{properties.name}, {memory:.0f} GiB")
        try:
            torch.ones(1, device=f"cuda:{index}").add_(1).item()
        except RuntimeError as error:
            report.problems.append(
                f"GPU {index} does not run this torch build ({str(error).splitlines()[0]}): "
                "install a torch for its architecture, see requirements/torch.txt."
            )


def _extensions(report: Report) -> None:
    if host() == 2:
        return  # it needs none
    import ndem_ocp_standins

    report.title("Compiled extensions")
    for name, state in ndem_ocp_standins.status().items():
        report.line(name, state)
        if state == "missing":
            report.problems.append(f"{name} is missing: reinstall ndem_ocp (pip install .)")
        elif state != "stand-in":  # the real package: does it load with this torch?
            try:
                __import__(name)
            except (ImportError, OSError) as error:
                report.problems.append(
                    f"{name} is installed but does not load ({error}): it was built for another "
                    f"torch; pip uninstall {name} (a stand-in takes over) or rebuild it."
                )


def _registration(report: Report) -> None:
    from fairchem.core.common.registry import registry

    report.title("fairchem")
    if host() == 2:
        from ndem_ocp.fairchem2 import NDeMTrainEvalUnit as unit

        report.line("training unit", f"ndem_ocp.fairchem2.{unit.__name__}")
        return
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    for name in ("ndem_ocp.NDeMTrainer", "ndem"):
        trainer = registry.get_trainer_class(name)
        report.line(f"trainer: {name}", f"{trainer.__module__}.{trainer.__qualname__}")
    report.line("short name", "in fairchem's plug-in folder" if _plugged_in() else "import only")
    if _plugged_in() and not _plug_in_is_ours():
        report.problems.append(
            f"{_plug_in_file()} is from an older ndem_ocp and registers nothing: install this "
            "package again (make env, or pip install)."
        )
    if not _plugged_in():
        report.lines.append(
            "    'trainer: ndem' needs fairchem and ndem_ocp in the same site-packages; use "
            "'trainer: ndem_ocp.NDeMTrainer', which always works."
        )


def _plugged_in() -> bool:
    include = _plug_in_file().parents[1] / ".include"
    return include.is_file() and "ndem_ocp_plugin" in include.read_text().split()


def _plug_in_is_ours() -> bool:
    return _plug_in_file().is_file() and "ndem_ocp.register()" in _plug_in_file().read_text()


def _plug_in_file() -> Path:
    from fairchem.core.common.utils import _get_project_root

    return _get_project_root() / "experimental" / "ndem_ocp_plugin" / "register.py"
