"""Predictions of ``fairchem --mode predict`` and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairchem.core.datasets import LmdbDataset

from fairchem_kit.npz import read_npz
from fairchem_kit.words import counted


@dataclass(frozen=True)
class Parity:
    """Predicted and reference values of the same frames, in physical units and the same order.

    Attributes:
        energy, reference_energy: (frames,) eV.
        forces, reference_forces: (free atoms of all frames, 3) eV/A.
    """

    energy: np.ndarray
    reference_energy: np.ndarray
    forces: np.ndarray
    reference_forces: np.ndarray

    @property
    def zero_force_mae(self) -> float:
        """Error of predicting zero forces, per component, eV/A."""
        return float(np.abs(self.reference_forces).mean())

    def metrics(self) -> dict[str, float]:
        """Errors with their units in the names."""
        dot = (self.forces * self.reference_forces).sum(-1)
        norms = np.linalg.norm(self.forces, axis=-1) * np.linalg.norm(
            self.reference_forces, axis=-1
        )
        return {
            "forces_mae_eV_per_A": float(np.abs(self.forces - self.reference_forces).mean()),
            "zero_force_mae_eV_per_A": self.zero_force_mae,
            "forces_cosine": float((dot / np.maximum(norms, 1e-12)).mean()),
            "energy_mae_eV": float(np.abs(self.energy - self.reference_energy).mean()),
            "mean_energy_mae_eV": float(
                np.abs(self.reference_energy - self.reference_energy.mean()).mean()
            ),
            "frames": len(self.energy),
        }


def load_parity(predictions: Path, data: Path) -> Parity:
    """Match a predictions file with the LMDBs from which it was made, by sid and fid.

    fairchem writes forces of free atoms only, as one array with ``chunk_idx`` between frames.

    Raises:
        ValueError: if a predicted frame is not in the data.
    """
    stored = read_npz(predictions)
    forces = np.split(stored["forces"], stored["chunk_idx"])
    labels = {}
    dataset = LmdbDataset({"src": str(data)})
    for index in range(len(dataset)):
        record = dataset[index]
        free = torch.as_tensor(record.fixed) == 0
        labels[f"{int(record.sid)}_{int(record.fid)}"] = (
            float(record.y),
            record.force[free].numpy(),
        )
    missing = [name for name in stored["ids"] if name not in labels]
    if missing:
        raise ValueError(
            f"{predictions} has {counted(len(missing), 'frame')} that {data} does not have, such "
            f"as {missing[0]!r} (sid_fid): was it made from another data set?"
        )
    matched = [labels[name] for name in stored["ids"]]
    return Parity(
        energy=stored["energy"].reshape(-1).astype(float),
        reference_energy=np.array([energy for energy, _ in matched]),
        forces=np.concatenate(forces).astype(float),
        reference_forces=np.concatenate([force for _, force in matched]).astype(float),
    )
