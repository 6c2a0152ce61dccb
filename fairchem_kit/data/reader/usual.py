"""Converting records of other scripts for batches: tensors, float32, a flag for every atom."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fairchem_kit.data.fields import FLOATS
from fairchem_kit.data.positions import FAR, near_origin

_TENSORS = (*FLOATS, "atomic_numbers", "fixed", "tags", "pbc")


def usual_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, in the types written by OC20's own scripts.

    NumPy arrays and lists of numbers become tensors, positions, cell and forces float32 (atoms far
    outside the cell are moved back first), and in a record without ``fixed`` all atoms are free.
    Labels in float64 are not changed.

    Args:
        fields: of a record.

    Returns:
        New fields; those that cannot be converted are unchanged and reported by
        ``checks.check_fields``.
    """
    try:
        return _usual(dict(fields))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return fields


def _usual(fields: dict[str, Any]) -> dict[str, Any]:
    for key in _TENSORS:
        if key in fields and not isinstance(fields[key], torch.Tensor):
            fields[key] = torch.as_tensor(np.asarray(fields[key]))
    for key, value in fields.items():
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            fields[key] = value.item()
    if "pos" in fields and fields["pos"].dtype == torch.float64:
        fields["pos"] = _near(fields)
    for key in FLOATS:
        if key in fields and fields[key].dtype != torch.float32:
            fields[key] = fields[key].float()
    if "pbc" in fields and fields["pbc"].dim() == 1:
        fields["pbc"] = fields["pbc"].view(1, 3)
    if "fixed" not in fields and "pos" in fields:
        fields["fixed"] = torch.zeros(len(fields["pos"]), dtype=torch.long)
    return fields


def _near(fields: dict[str, Any]) -> torch.Tensor:
    """Positions in float64, near the origin where float32 would not hold them."""
    pos = fields["pos"]
    if pos.numel() == 0 or pos.abs().max() <= FAR or "pos_relaxed" in fields:
        return pos
    cell = fields.get("cell")
    pbc = fields.get("pbc", torch.full((3,), cell is not None))
    cell = torch.eye(3) if cell is None else cell
    moved = near_origin(
        pos.detach().numpy(), cell.reshape(3, 3).double().numpy(), pbc.reshape(3).bool().numpy()
    )
    return torch.from_numpy(moved)
