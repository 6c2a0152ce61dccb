"""Which fairchem is installed: 1.10 and 2.24 are releases of one distribution, fairchem-core.

An environment has one of them or none. Nothing here imports fairchem.
"""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from pathlib import Path

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
    spec = importlib.util.find_spec("fairchem")  # a checkout that is not installed
    places = [Path(place) / "core" for place in (spec and spec.submodule_search_locations) or ()]
    for number, folder in ((1, "trainers"), (2, "units")):
        if any((place / folder).is_dir() for place in places):
            return number
    return None


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
