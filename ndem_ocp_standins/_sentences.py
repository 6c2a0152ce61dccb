"""The error that says a stand-in does not cover something."""

from __future__ import annotations

from typing import NoReturn

_PIP_NAMES = {
    "torch_scatter": "torch-scatter",
    "torch_sparse": "torch-sparse",
    "torch_cluster": "torch-cluster",
}


class NotCovered(AttributeError, NotImplementedError):
    """A missing attribute: ``hasattr`` still answers False."""


def not_covered(package: str, what: str) -> str:
    """Return the sentence: what is missing, and how to get it."""
    pip_name = _PIP_NAMES[package]
    return (
        f"{package}: {what} is not covered by the pure-PyTorch stand-in of ndem-ocp. "
        f"Installing the real package gives it: pip install {pip_name} "
        f"-f https://data.pyg.org/whl/torch-<version>+<cpu|cuXXX>.html "
        f"(see https://pytorch-geometric.readthedocs.io/en/latest/install/installation.html)."
    )


def missing_attribute(package: str, name: str) -> NoReturn:
    """Raise for an attribute the stand-in lacks (dunder probes stay quiet)."""
    if name.startswith("__"):
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    raise NotCovered(not_covered(package, name))


def refuse(package: str, what: str) -> NoReturn:
    """Raise for an argument or an option the stand-in lacks."""
    raise NotImplementedError(not_covered(package, what))
