"""Which structures a model can predict."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import primitive_neighbor_list
from fairchem.core.common.registry import registry
from torch import nn

from fairchem_kit.data.reader import limits_from_model
from fairchem_kit.data.reader.geometry import nearest
from fairchem_kit.errors import UserError
from fairchem_kit.words import counted

SAME_PLACE = 0.01  # A; fairchem's neighbour search makes no edge below it


class CalculatorError(UserError, ValueError):
    """A calculator that cannot be created, or a structure that it refuses."""


@dataclass(frozen=True)
class StructureLimits:
    """Limits of the structures that a model can predict.

    Attributes:
        max_atomic_number: the largest element that has an embedding.
        seen: atomic numbers of the training data, None if the checkpoint does not have them.
        periodic: whether the model looks for neighbours across cell boundaries.
        cutoff: A, within which the model looks for neighbours; None if unknown.
    """

    max_atomic_number: int = 118
    seen: frozenset[int] | None = None
    periodic: bool = True
    cutoff: float | None = None

    @classmethod
    def of(
        cls, model: nn.Module, config: Mapping[str, Any], seen: Iterable[int] | None
    ) -> StructureLimits:
        """The limits of a network and its ``model`` section."""
        limits = limits_from_model(_with_defaults(config))
        backbone = getattr(model, "backbone", model)
        return cls(
            limits.get("max_atomic_number", 118),
            None if seen is None else frozenset(int(z) for z in seen),
            bool(getattr(backbone, "use_pbc", True)),
            limits.get("cutoff"),
        )

    def check(self, atoms: Atoms) -> None:
        """Raise CalculatorError with the first reason to refuse ``atoms``."""
        if len(atoms) == 0:
            raise CalculatorError("The structure has no atoms.")
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        if len(bad):
            raise CalculatorError(
                f"The positions of {counted(len(bad), 'atom')} are NaN or infinite, first atom "
                f"{bad[0]}. An earlier step went wrong: a smaller time step or maxstep, or other "
                "start positions."
            )
        self._check_elements(atoms)
        self._check_cell(atoms)
        if len(atoms) == 1 and not atoms.pbc.any():
            raise CalculatorError(
                "A single atom without periodicity has no neighbours, and the model needs pairs."
            )
        self._check_neighbors(atoms)

    def _check_neighbors(self, atoms: Atoms) -> None:
        """Refuse atoms at the same position, whose pair the neighbour search drops, and no pairs at
        all."""
        cell, pbc = np.asarray(atoms.get_cell(complete=True)), np.asarray(atoms.pbc)
        distances, partners = nearest(atoms.positions, cell, pbc, SAME_PLACE)
        closest = int(distances.argmin())
        if distances[closest] < SAME_PLACE:
            first, second = sorted((closest, int(partners[closest])))
            raise CalculatorError(
                f"Atoms {first} and {second} are at the same position ({distances[closest]:.2g} A "
                "apart, images included): the model would not see that they are neighbours. Is an "
                "atom there twice?"
            )
        # the distances to images are upper bounds
        if self.cutoff is None or distances[closest] <= self.cutoff:
            return
        pairs = primitive_neighbor_list("i", pbc, cell, atoms.positions, self.cutoff)
        if len(pairs) == 0:
            raise CalculatorError(
                f"No atom has a neighbour within {self.cutoff:g} A, the model's cutoff (images "
                "included), and the model needs pairs."
            )

    def _check_elements(self, atoms: Atoms) -> None:
        numbers = np.unique(atoms.numbers)
        outside = [z for z in numbers if not 0 < z <= self.max_atomic_number]
        if outside:
            raise CalculatorError(
                f"The model has no embedding for {_named(outside)}: its elements go from H to "
                f"{chemical_symbols[self.max_atomic_number]} (1 to {self.max_atomic_number})."
            )
        unseen = [] if self.seen is None else [z for z in numbers if z not in self.seen]
        if unseen:
            raise CalculatorError(
                f"The model was not trained on {_named(unseen)}: its prediction would come from an "
                f"embedding that is still random. It was trained on {_named(sorted(self.seen))}."
            )

    def _check_cell(self, atoms: Atoms) -> None:
        cell = np.asarray(atoms.cell[:], dtype=float)
        if not np.isfinite(cell).all():
            raise CalculatorError("The cell has entries that are NaN or infinite.")
        if not atoms.pbc.any():
            return
        if not self.periodic:
            raise CalculatorError(
                "The structure is periodic and the model is not (model.backbone.use_pbc: False): "
                "set atoms.pbc = False if a cluster is meant."
            )
        empty = atoms.pbc & (np.linalg.norm(cell, axis=1) < 1e-6)
        if empty.any():
            raise CalculatorError(
                f"The structure is periodic along lattice vector {int(np.argmax(empty)) + 1}, "
                "which has length 0: set atoms.cell, or atoms.pbc = False for a molecule."
            )
        if abs(np.linalg.det(atoms.get_cell(complete=True))) < 1e-6:
            raise CalculatorError("The structure is periodic and its cell has volume 0.")


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model section completed with the defaults of its class."""
    backbone = config.get("backbone") or config
    cls = registry.get_model_class(backbone.get("model") or backbone["name"])
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if type(parameter.default) in (int, float)
    }
    return {"backbone": {**defaults, **backbone}}


def _named(numbers: Iterable[int]) -> str:
    return ", ".join(
        chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"number {z}" for z in numbers
    )
