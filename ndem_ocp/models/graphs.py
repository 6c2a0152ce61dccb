"""Reading the graph that a backbone's ``generate_graph`` returns, whatever its type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairchem_kit.errors import ConfigError


def edge_index_of(graph: Any) -> Tensor:
    """(2, E) source and target of each edge, from fairchem's GraphData, a dict, a tuple or a list.

    In a tuple or list without names, it is the first tensor of integers with this shape.

    Raises:
        ConfigError: if there is none.
    """
    if isinstance(graph, dict):
        found = graph.get("edge_index")
    elif hasattr(graph, "edge_index"):  # or a named tuple
        found = graph.edge_index
    else:
        parts = graph if isinstance(graph, (tuple, list)) else ()
        found = next(filter(_is_edge_index, parts), None)
    if found is None:
        raise ConfigError(
            f"generate_graph returned a {type(graph).__name__} without an edge index, a "
            "whole-number tensor of shape (2, edges)."
        )
    return found


def _is_edge_index(part: Any) -> bool:
    kinds = (torch.int32, torch.int64)
    return isinstance(part, Tensor) and part.dtype in kinds and part.dim() == 2 and len(part) == 2
