"""Which fairchem is installed: 1.10 and 2.24 are releases of one distribution, fairchem-core.

An environment has one of them or none. Nothing here imports all of fairchem.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

from fairchem_kit.errors import UserError

DISTRIBUTION = "fairchem-core"
#: by major version: what this package was made for, and what brings it
HOSTS = {
    1: ("1.10", "pip install '.[fairchem1]' in a checkout"),
    2: ("2.24", "pip install '.[fairchem2]' in a checkout"),
}


class HostError(UserError, ImportError):
    """The fairchem that something needs is not installed; the message says what to install."""


@functools.cache
def host_version() -> str | None:
    """The version of fairchem-core in this environment; None without it."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def host() -> int | None:
    """1 or 2, the major version of fairchem-core in this environment; None without it."""
    version = host_version()
    if version is not None:
        return int(version.partition(".")[0])
    places = _places()  # a checkout that is not installed
    for number, folder in ((1, "trainers"), (2, "units")):
        if any((place / folder).is_dir() for place in places):
            return number
    return None


def module_alone(name: str) -> ModuleType:
    """A module of fairchem.core that imports no other of fairchem's.

    Importing it in the usual way imports all of fairchem and torch first, which takes seconds.

    Args:
        name: below ``fairchem.core``, such as ``common.flags``.

    Raises:
        ImportError: there is no such module.
    """
    whole = f"fairchem.core.{name}"
    paths = [place.joinpath(*name.split(".")).with_suffix(".py") for place in _places()]
    path = next((path for path in paths if path.is_file()), None)
    spec = path and importlib.util.spec_from_file_location(whole, path)
    if whole in sys.modules or not spec or spec.loader is None:
        return importlib.import_module(whole)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _places() -> list[Path]:
    """Where fairchem.core may be; nothing is imported."""
    spec = importlib.util.find_spec("fairchem")
    return [Path(place) / "core" for place in (spec and spec.submodule_search_locations) or ()]


def require_host(wanted: int, what: str) -> None:
    """Stop where another fairchem than the wanted one, or none, is installed.

    Args:
        wanted: 1 or 2. what: what needs it, the subject of a sentence in the singular.

    Raises:
        HostError: what is installed, and what to do.
    """
    if host() != wanted:
        raise wrong_host(wanted, what)


def wrong_host(wanted: int, what: str) -> HostError:
    """What :func:`require_host` raises."""
    found = host()
    version, command = HOSTS[wanted]
    if found is None:
        return HostError(
            f"{what} needs {DISTRIBUTION} {version}, which is not installed: {command}",
            name="fairchem",
        )
    own = ", for which there is ndem_ocp.fairchem2" if found == 2 else ""
    return HostError(
        f"{what} needs {DISTRIBUTION} {version}; {host_version() or found} is installed here{own}. "
        f"Both have one name, so each needs an environment of its own: make another, and there "
        f"{command}",
        name="fairchem",
    )
