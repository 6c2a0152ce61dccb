"""Stand-in for torch-cluster in plain PyTorch: neighbour search."""

from __future__ import annotations

from typing import NoReturn

from ndem_ocp_standins._sentences import missing_attribute

from .neighbours import knn, knn_graph, radius, radius_graph

# The version whose interface is followed.
__version__ = "1.6.3+standin"
IS_STAND_IN = True

__all__ = ["knn", "knn_graph", "radius", "radius_graph"]


def __getattr__(name: str) -> NoReturn:
    missing_attribute("torch_cluster", name)
