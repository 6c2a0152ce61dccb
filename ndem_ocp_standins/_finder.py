"""Import hooks that serve the stand-ins; standard library only, no torch."""

from __future__ import annotations

import os
import sys

# Type checkers take this name for true; importing typing or collections.abc
# for annotations would lengthen every interpreter start-up.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

STAND_INS = ("torch_scatter", "torch_sparse", "torch_cluster")

HERE = os.path.dirname(os.path.abspath(__file__))


def spec_elsewhere(name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
    """Return the spec that finders other than this package's give, or None."""
    for finder in list(sys.meta_path):
        if getattr(finder, "ndem_ocp_role", None) is not None:
            continue
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, path, target) if find_spec is not None else None
        if spec is not None:
            return spec
    return None


def beside_fairchem2() -> bool:
    """Whether the fairchem here is 2 or later, which needs no stand-ins: whatever asks for one of
    these packages there must hear that it is missing. Asked only when a name is looked for."""
    from importlib import metadata

    try:
        return int(metadata.version("fairchem-core").partition(".")[0]) >= 2
    except (metadata.PackageNotFoundError, ValueError):
        return False


def is_stand_in(module: Any) -> bool:
    """Whether a loaded module is one of ours rather than the real package."""
    return bool(getattr(module, "IS_STAND_IN", False))


class StandInFinder:
    """Last finder on ``sys.meta_path``: serves the names nobody else has."""

    ndem_ocp_role = "stand-ins"

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        package, _, attribute = name.partition(".")
        if package not in STAND_INS:
            return None
        if attribute:
            # Covered submodules are found by the ordinary finder through the
            # package's __path__, so only uncovered names arrive here. A
            # `from torch_scatter import x` for an absent x arrives too, and
            # this is the one place where it can be given a full sentence.
            if attribute.startswith("_") or not is_stand_in(sys.modules.get(package)):
                return None
            from ._sentences import not_covered

            raise ImportError(not_covered(package, attribute), name=name)
        # A finder appended after this one (an editable install, say) may have
        # the real package.
        spec = spec_elsewhere(name, path, target)
        if spec is not None or beside_fairchem2():
            return spec
        folder = os.path.join(HERE, name)
        source = os.path.join(folder, "__init__.py")
        if not os.path.isfile(source):
            return None
        import importlib.util

        return importlib.util.spec_from_file_location(
            name, source, submodule_search_locations=[folder]
        )


class Namesake:
    """Finds ``ndem_ocp`` where a folder of that name would hide it.

    A clone is called ndem_ocp, too. For a script beside it the clone is a folder without an
    ``__init__.py``, which Python takes for a package with nothing in it before it asks the finder
    of an editable install. An ordinary package always wins.
    """

    ndem_ocp_role = "namesake"
    NAME = "ndem_ocp"

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name != self.NAME:
            return None
        spec = spec_elsewhere(name, path, target)
        folder = os.path.join(os.path.dirname(HERE), self.NAME)
        source = os.path.join(folder, "__init__.py")
        if spec is None or spec.origin is not None or not os.path.isfile(source):
            return spec
        import importlib.util

        return importlib.util.spec_from_file_location(
            name, source, submodule_search_locations=[folder]
        )


class PackageHook:
    """Adjusts modules of other packages as they are imported.

    torch-geometric 2.8 takes ``radius`` and ``radius_graph`` from pyg-lib
    instead of torch-cluster and raises without it, although fairchem calls
    ``torch_geometric.nn.radius_graph`` for systems without periodic
    boundaries. Where pyg-lib does not give them, they are put in here, before
    ``torch_geometric.nn`` copies the names. And scipy 1.17 removed
    ``sph_harm``, which fairchem's GemNet imports.
    """

    ndem_ocp_role = "packages"

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name not in HOOKED or beside_fairchem2():
            return None
        spec = spec_elsewhere(name, path, target)
        loader = getattr(spec, "loader", None)
        if loader is None:
            return spec
        before, after = HOOKED[name]
        plain_exec = loader.exec_module

        def exec_module(module: Any) -> None:
            if before is not None:
                before()
            plain_exec(module)
            if after is not None:
                after(module)

        # On the instance: the loader keeps its type, so that source and
        # resource look-ups through it are untouched. Loaders without a
        # __dict__ (written in C) are left alone.
        if hasattr(loader, "__dict__"):
            loader.exec_module = exec_module
        return spec


def _silence_torch_cluster_notice() -> None:
    """Drop torch-geometric's notice that torch-cluster need not be installed.

    It is not installed; torch-geometric sees the stand-in.
    """
    if spec_elsewhere("torch_cluster") is None:
        import warnings

        warnings.filterwarnings(
            "ignore",
            message="'torch-cluster' is no longer necessary",
            category=DeprecationWarning,
        )


def _lend_radius_functions(pool: Any) -> None:
    typing = sys.modules.get("torch_geometric.typing")
    # The flag exists only where torch-geometric relies on pyg-lib; earlier
    # versions call torch_cluster by themselves.
    if getattr(typing, "WITH_RADIUS", True):
        return
    try:
        import torch_cluster
    except (ImportError, OSError, RuntimeError, AttributeError):
        return  # a broken real package: leave torch-geometric as it was
    pool.radius = torch_cluster.radius
    pool.radius_graph = torch_cluster.radius_graph


def _lend_sph_harm(special: Any) -> None:
    """scipy < 1.17's name and order of arguments: theta is the azimuth, phi the polar angle."""
    if hasattr(special, "sph_harm") or not hasattr(special, "sph_harm_y"):
        return

    def sph_harm(m: Any, n: Any, theta: Any, phi: Any) -> Any:
        return special.sph_harm_y(n, m, phi, theta)

    special.sph_harm = sph_harm


# module -> what to do before and after it is run
HOOKED = {
    "torch_geometric.typing": (_silence_torch_cluster_notice, None),
    "torch_geometric.nn.pool": (None, _lend_radius_functions),
    "scipy.special": (None, _lend_sph_harm),
}
