"""The file of second views: an LMDB whose keys are digests of the structures.

A view belongs to a structure (elements, positions, cell, fixed atoms), not to a place in a file:
its key is the digest of these. So a changed record no longer has views, which is noticed; the order
of the records and their division into files do not matter; and data sets for both generations of
fairchem find the same views.

    b"meta"            JSON: command, calculator, and its error on the data
    16 bytes           one structure: :class:`Views`
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError
from fairchem_kit.data.reader.errors import Refused
from fairchem_kit.data.reader.pages import LmdbFile
from fairchem_kit.words import counted

META = b"meta"
FORMAT = "ndem-second-views-1"
_HEAD = struct.Struct("<4sII")  # magic, draws, atoms
_MAGIC = b"NDV1"
_SKIPPED = b"SKIP"
#: Views of a smaller file stay in memory once read: a few hundred frames are read in every epoch.
_LARGEST_KEPT = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Views:
    """K second views of a structure with N atoms, in eV and A.

    Attributes:
        forces: (N, 3) T(X), forces of the calculator on the structure itself.
        sigma: (K,) standard deviation of each displacement.
        eps: (K, N, 3) displacements; 0 on fixed atoms.
        force_change: (K, N, 3) T(X + eps) - T(X), without the scale s.
        energy_change: (K,) T_E(X + eps) - T_E(X), without the scale s.
    """

    forces: np.ndarray
    sigma: np.ndarray
    eps: np.ndarray
    force_change: np.ndarray
    energy_change: np.ndarray

    @cached_property
    def energy_remainder(self) -> np.ndarray:
        """(K,) the energy change beyond the first order: T_E(X+eps) - T_E(X) + T(X) . eps.

        The first-order term is known from DFT, -F_DFT(X) . eps; only the remainder is taken from T.
        """
        return self.energy_change + np.einsum("kni,ni->k", self.eps, self.forces)

    def pack(self) -> bytes:
        """The bytes of the value."""
        head = _HEAD.pack(_MAGIC, len(self.sigma), len(self.forces))
        wide = self.energy_change.astype("<f8").tobytes()
        parts = (self.forces, self.sigma, self.eps, self.force_change)
        return head + wide + b"".join(part.astype("<f4").tobytes() for part in parts)

    @classmethod
    def unpack(cls, raw: bytes) -> Views:
        """The views in a value.

        Raises:
            DataError: bytes not written by :meth:`pack`.
        """
        if len(raw) < _HEAD.size:
            raise DataError("damaged: too short for views")
        magic, draws, atoms = _HEAD.unpack_from(raw)
        numbers = atoms * 3 + draws + 2 * draws * atoms * 3
        if magic != _MAGIC or len(raw) != _HEAD.size + 8 * draws + 4 * numbers:
            raise DataError("damaged: not the bytes of views")
        energy = np.frombuffer(raw, "<f8", draws, _HEAD.size)
        rest = np.frombuffer(raw, "<f4", numbers, _HEAD.size + 8 * draws)
        forces, sigma, eps, change = np.split(
            rest, np.cumsum([atoms * 3, draws, draws * atoms * 3])
        )
        shape = (draws, atoms, 3)
        return cls(forces.reshape(-1, 3), sigma, eps.reshape(shape), change.reshape(shape), energy)


def structure_digest(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, fixed: np.ndarray | None
) -> bytes:
    """16 bytes that identify a structure as stored in a record.

    Args:
        numbers: (N,) atomic numbers. positions: (N, 3) A. cell: (3, 3) or (1, 3, 3) A.
        fixed: (N,) 1 for fixed atoms; None: no atom is fixed.

    Positions and cell are taken as float32, as in records.
    """
    count = len(numbers)
    held = np.zeros(count, np.uint8) if fixed is None else (np.asarray(fixed) != 0)
    digest = hashlib.blake2b(digest_size=16)
    for part, kind, shape in (
        (numbers, "<i4", (count,)),
        (positions, "<f4", (count, 3)),
        (cell, "<f4", (3, 3)),
        (held, "|u1", (count,)),
    ):
        array = np.asarray(part).reshape(shape).astype(kind)
        digest.update((array + array.dtype.type(0)).tobytes())  # -0.0 is 0.0
    return digest.digest()


def read_meta(path: Path) -> dict[str, Any]:
    """The ``meta`` entry of a file of second views, finished or not.

    Raises:
        DataError: not such a file.
    """
    if Path(path).is_dir():
        raise DataError(f"{path}: this is a directory, but a file of second views is needed")
    try:
        with LmdbFile(path) as file:
            meta = json.loads(file.get(META) or b"{}")
    except (Refused, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable file of second views ({error})") from None
    if meta.get("format") != FORMAT:
        raise DataError(
            f"{path}: not a file of second views, which `ndem data second-views` writes"
        )
    return meta


class Sidecar:
    """A finished file of second views, opened for reading; safe in forked processes.

    Args:
        path: the file.

    Raises:
        DataError: not such a file, damaged, or not finished; the message says what to do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self._file = LmdbFile(self.path)
        self._keeps = self.path.stat().st_size <= _LARGEST_KEPT
        self._kept: dict[bytes, Views] = {}  # their arrays cannot be written to
        if not self.meta.get("complete"):
            raise DataError(
                f"{path} is not finished ({counted(len(self), 'structure')} so far): run the "
                f"command that makes it again; it will continue: {self.meta.get('command', '')}"
            )

    def __len__(self) -> int:
        return max(0, self._file.meta.entries - 1)

    @property
    def scale(self) -> float:
        """s, by which force and energy changes are multiplied."""
        return float(self.meta["scale"])

    @property
    def relative_error(self) -> float | None:
        """|s dT - dF| / |dF| over pairs of near frames of the data; None if there are too few."""
        return self.meta.get("relative_error")

    @property
    def correction(self) -> dict[str, Any] | None:
        """How the potential was corrected, with the number of coefficients; None: it was not."""
        found = self.meta.get("correction")
        return {**found, "coefficients": len(found["coefficients"])} if found else None

    def get(self, key: bytes) -> Views | None:
        """The views of a structure; None if the calculator failed on it.

        Raises:
            KeyError: the structure is not in the file.
            DataError: damaged.
        """
        if key in self._kept:
            return self._kept[key]
        try:
            raw = self._file.get(key)
        except (Refused, OSError) as error:
            raise DataError(f"{self.path}: {error}") from None
        if raw is None:
            raise KeyError(key.hex())
        if raw.startswith(_SKIPPED):
            return None
        try:
            views = Views.unpack(raw)
        except DataError as error:
            raise DataError(f"{self.path}: structure {key.hex()}: {error}") from None
        if self._keeps:
            self._kept[key] = views
        return views


class SidecarWriter:
    """A file of second views that is being made; finished views survive any interruption.

    Args:
        path: the file, new or started before. meta: content of :attr:`Sidecar.meta`.

    Raises:
        DataError: it is finished, was started with other settings, or is another kind of file.
    """

    _ROOM = 1 << 30

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        import lmdb

        self.path = path
        begun = read_meta(path) if path.exists() else None  # before it is opened for writing
        try:
            self._env = lmdb.open(str(path), map_size=self._ROOM, subdir=False, lock=False)
        except (lmdb.Error, OSError) as error:
            raise DataError(f"--out {path} cannot be written ({error})") from None
        self.meta = begun or {"format": FORMAT, **meta, "complete": False}
        if begun is None:
            self._put({META: json.dumps(self.meta).encode()})

    def known(self, key: bytes) -> bool:
        """Whether the file has the views of a structure."""
        with self._env.begin() as transaction:
            return transaction.get(key) is not None

    def has_failed(self, key: bytes) -> bool:
        """Whether the file says why a structure has no views."""
        with self._env.begin() as transaction:
            return (transaction.get(key) or b"").startswith(_SKIPPED)

    def add(self, key: bytes, views: Views | str) -> None:
        """Write the views of a structure, or why it has none; on disk after this returns."""
        self._put({key: views.pack() if isinstance(views, Views) else _SKIPPED + views.encode()})

    def finish(self, **more: Any) -> None:
        """Mark the file as complete."""
        self.meta = {**self.meta, **more, "complete": True}
        self._put({META: json.dumps(self.meta).encode()})

    def close(self) -> None:
        self._env.close()

    def _put(self, items: dict[bytes, bytes]) -> None:
        import lmdb

        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in items.items():
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.Error as error:
                raise DataError(f"{self.path}: cannot be written ({error})") from None
