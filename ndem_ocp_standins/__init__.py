"""Pure-PyTorch stand-ins for torch-scatter, torch-sparse and torch-cluster.

fairchem imports these compiled extensions, which have no wheels for many
torch versions and take long to build. Importing this package makes small
substitutes importable under the real names wherever the real packages are not
installed; an installed package always wins. Only what fairchem and
torch-geometric call is covered, and everything else says so.

This module runs at every interpreter start-up (through a ``.pth`` file), so it
uses the standard library only and never imports torch.
"""

from __future__ import annotations

import sys

from ._finder import STAND_INS, Namesake, PackageHook, StandInFinder, spec_elsewhere

__all__ = ["STAND_INS", "install", "status"]


def install() -> None:
    """Make the stand-ins importable, and this project findable beside a clone of it.

    Calling it again changes nothing.
    """
    present = {getattr(finder, "ndem_ocp_role", None) for finder in sys.meta_path}
    if StandInFinder.ndem_ocp_role not in present:
        sys.meta_path.append(StandInFinder())
    if PackageHook.ndem_ocp_role not in present:
        # First, because it must see the modules that it adjusts before the
        # ordinary finder does; it declines every other name.
        sys.meta_path.insert(0, PackageHook())
    if Namesake.ndem_ocp_role not in present:
        sys.meta_path.insert(0, Namesake())


def status() -> dict[str, str]:
    """Say for each package where an import of it would be served from.

    Returns a dict from module name to ``"installed <version>"``,
    ``"stand-in"`` or ``"missing"``. None of the modules is imported.
    """
    from importlib import metadata

    active = any(
        getattr(finder, "ndem_ocp_role", None) == StandInFinder.ndem_ocp_role
        for finder in sys.meta_path
    )
    found = {}
    for name in STAND_INS:
        if spec_elsewhere(name) is not None:
            try:
                version = metadata.version(name.replace("_", "-"))
            except metadata.PackageNotFoundError:
                version = "(version unknown)"
            found[name] = f"installed {version}"
        else:
            found[name] = "stand-in" if active else "missing"
    return found


install()
