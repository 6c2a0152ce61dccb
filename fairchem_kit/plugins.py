"""Registering what other packages add to fairchem, before a configuration is built."""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "fairchem_kit.register"


def register() -> None:
    """Call the function that each installed package names in the entry points of ``GROUP``.

    Raises:
        ImportError: a package is installed but cannot be imported here.
    """
    for entry in entry_points(group=GROUP):
        entry.load()()
