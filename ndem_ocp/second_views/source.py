"""Drawing second views in training, which depends on (seed, rank, step) only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.records import iter_structures
from fairchem_kit.data.units import force_in_ev, units_of
from fairchem_kit.words import counted
from ndem_ocp.method import NDeMSettings, Noise, ViewLabels, at, choose_graphs

from .draws import Draws, digest_of
from .sidecar import Sidecar, Views, structure_digest

if TYPE_CHECKING:
    from torch_geometric.data import Batch

_ROUNDING = 1e-6  # A; sigma in the file is rounded to 32 bits
_LOOKED_AT = 50  # records of the training split that must have views before a run starts


class ViewSource:
    """The second views of a training split.

    Args:
        path: a file of ``ndem data second-views``. data: directory of the split, or its file.
        settings: which views are drawn, and how often.

    Raises:
        DataError: not such a file, or made for other records.
    """

    def __init__(self, path: str | Path, data: str | Path, settings: NDeMSettings) -> None:
        self._open(path, settings, unit=1.0 / force_in_ev(units_of(Path(data))))
        self._look_at(Path(data))

    def _open(self, path: str | Path, settings: NDeMSettings, unit: float) -> None:
        """Open the file and see whether it has what the settings ask for; ``unit``: an eV in the
        data's energy unit."""
        self.sidecar = Sidecar(path)
        self.settings = settings
        self._unit = unit
        error = self.sidecar.relative_error
        if error is None and settings.trust is not None:
            raise DataError(
                f"task.ndem.trust needs the relative error of the potential, which {path} does not "
                "have: its data have no pairs of near frames. Leave out trust"
            )
        self._relative_error = error or 0.0
        draws = Draws(**self.sidecar.meta["made_of"]["draws"])
        low, high = settings.sigma_range
        expected = draws.expected_within(low - _ROUNDING, high + _ROUNDING)
        if expected < 1:
            raise DataError(
                f"task.ndem.sigma_min and sigma_max ({low:g} to {high:g} A) select on average "
                f"{expected:.1f} of the {counted(draws.count, 'view')} of a structure in "
                f"{self.sidecar.path}, whose sigma is {draws.sigma_min:g} to "
                f"{draws.sigma_max:g} A: set sigma_min: {draws.sigma_min:g} and sigma_max: "
                f"{draws.sigma_max:g}, or make views with `--sigma {low:g} {high:g}`"
            )

    def _look_at(self, data: Path) -> None:
        """See whether the file knows the first records."""
        for structure in itertools.islice(iter_structures(data), _LOOKED_AT):
            try:
                self.sidecar.get(digest_of(structure))
            except KeyError:
                raise DataError(
                    f"{self.sidecar.path} has no entry for {structure.where}: it was made for "
                    f"other records ({self.sidecar.meta.get('data')}), or the record was changed. "
                    f"Run `ndem data second-views` for {data} again"
                ) from None

    def provenance(self) -> dict[str, Any]:
        """What a run records about its views: potential, displacements, scale, error, records."""
        meta = self.sidecar.meta
        return {
            **meta["made_of"]["calculator"],
            **{f"draw_{key}": value for key, value in meta["made_of"]["draws"].items()},
            "scale": meta["scale"],
            "relative_error": meta["relative_error"],
            "correction": self.sidecar.correction,
            "structures": meta["structures"],
        }

    def draw(self, batch: Batch, generator: torch.Generator, progress: float = 0.0) -> Noise:
        """The displacements of a batch and their labels, in the data's units, on the CPU.

        Args:
            batch: N atoms in B structures as in the records; best before it is moved to a GPU, from
                which it would have to be copied back.
            generator: CPU generator, see :func:`ndem_ocp.method.step_generator`.
            progress: fraction of training.

        Raises:
            DataError: a structure that is not in the file; the message has its system and frame.
        """
        count = batch.natoms.numel()
        chosen = choose_graphs(count, self.settings, generator, progress)
        place = torch.rand(count, generator=generator, dtype=torch.float64)
        bounds = np.cumsum([0, *batch.natoms.tolist()])
        atoms = int(bounds[-1])
        eps, change = np.zeros((atoms, 3), np.float32), np.zeros((atoms, 3), np.float32)
        sigma, viewed = np.zeros(atoms, np.float32), np.zeros(atoms, bool)
        remainder = np.zeros(count)
        for number in chosen.nonzero().flatten().tolist():
            here = slice(bounds[number], bounds[number + 1])
            views = self._views(batch, number, here)
            if views is None:  # the potential failed on it; counted when the file was made
                continue
            draw = self._choose(views.sigma, float(place[number]), progress)
            eps[here], change[here] = views.eps[draw], views.force_change[draw]
            sigma[here], viewed[here] = views.sigma[draw], True
            remainder[number] = views.energy_remainder[draw]
        factor = self.sidecar.scale * self._unit
        change = torch.from_numpy(change) * factor
        displaced = torch.from_numpy(eps)
        labels = ViewLabels(
            force_change=change,
            energy_remainder=torch.from_numpy(remainder * factor),
            force_error=self._relative_error * change.norm(dim=-1),
        )
        return Noise(
            eps=displaced.to(batch.pos.dtype),
            sigma=torch.from_numpy(sigma),
            moved=displaced.ne(0).any(-1),
            viewed=self._all_or(viewed, chosen, batch),
            labels=labels,
        )

    def _all_or(self, viewed: np.ndarray, chosen: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Atoms that have a view. With ``place: beside``, structures without one see X itself
        twice, with a change of 0: the auxiliary head must be used in every step."""
        if self.settings.instead:
            return torch.from_numpy(viewed)
        return chosen[batch.batch.cpu()]

    def _views(self, batch: Batch, number: int, here: slice) -> Views | None:
        fixed = batch.get("fixed", None)
        key = structure_digest(
            batch.atomic_numbers[here].cpu().numpy(),
            batch.pos[here].detach().cpu().numpy(),
            batch.cell[number].cpu().numpy(),
            None if fixed is None else fixed[here].cpu().numpy(),
        )
        try:
            return self.sidecar.get(self._recorded(key))
        except KeyError:
            where = ", ".join(
                f"{name} {batch[name][number]}" for name in ("sid", "fid") if name in batch
            )
            raise DataError(
                f"{self.sidecar.path} has no entry for a training structure "
                f"({where or 'unnamed'}): it was made for other records, or the record was "
                "changed. Run `ndem data second-views` again"
            ) from None

    def _recorded(self, key: bytes) -> bytes:
        """The digest of the record that a structure of a batch was made from."""
        return key

    def _choose(self, sigma: np.ndarray, place: float, progress: float) -> int:
        """One of the K views: any with sigma in the current range, else the nearest to it."""
        low, high = at(self.settings.sigma_min, progress), at(self.settings.sigma_max, progress)
        allowed = np.flatnonzero((sigma >= low - _ROUNDING) & (sigma <= high + _ROUNDING))
        if not allowed.size:
            return int(np.abs(sigma - np.clip(sigma, low, high)).argmin())
        return int(allowed[int(place * allowed.size)])
