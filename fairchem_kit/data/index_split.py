"""Splits of molecules by counts and a seed, or by index files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.files import existing_file
from fairchem_kit.npz import read_npz
from fairchem_kit.words import counted

from .errors import DataError
from .split import TEST, TRAIN, VAL

NAMES = (TRAIN, VAL, TEST)


@dataclass(frozen=True)
class SplitOptions:
    """How frames are divided.

    Attributes:
        train, val, test: numbers of frames; None: the data set's default, for ``test`` all the
            rest.
        seed: of the permutation. TorchMD-NET's default is 1.
        train_indices, val_indices, test_indices: text files with one index per line.
        splits: an npz file with idx_train, idx_val and idx_test, as TorchMD-NET writes it.
    """

    train: int | None = None
    val: int | None = None
    test: int | None = None
    seed: int = 1
    train_indices: str | None = None
    val_indices: str | None = None
    test_indices: str | None = None
    splits: str | None = None

    @property
    def by_file(self) -> bool:
        """Whether index files define the split."""
        return any((self.train_indices, self.val_indices, self.test_indices, self.splits))


def make_split(
    count: int, options: SplitOptions, defaults: tuple[int, int, int | None], source: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Divide ``count`` frames.

    Args:
        count: number of frames. options: settings. source: description of the frames, for messages.
        defaults: numbers of training, validation and test frames (None: all the rest).

    Returns:
        Sorted indices by name of the split, and the record of the split for dataset.json.

    Raises:
        DataError: too few frames; indices that are not numbers, out of range, repeated or in two
            splits; contradicting options.
    """
    if options.by_file:
        splits, files = _from_files(count, options, source)
        record: dict[str, Any] = {"by": "index files", "files": files}
    else:
        splits = random_split(count, options, defaults, source)
        record = {"by": "seed", "seed": options.seed}
    splits = {name: np.sort(rows) for name, rows in splits.items()}
    record["indices_sha256"] = {name: indices_hash(rows) for name, rows in splits.items()}
    record["unused"] = count - sum(map(len, splits.values()))
    return splits, record


def indices_hash(rows: np.ndarray) -> str:
    """SHA-256 of the sorted indices as little-endian int64."""
    return hashlib.sha256(np.sort(rows).astype("<i8").tobytes()).hexdigest()


def random_split(
    count: int, options: SplitOptions, defaults: tuple[int, int, int | None], source: str
) -> dict[str, np.ndarray]:
    """The first frames of a permutation are for training, the next for validation, the next for
    test.

    The permutation is ``numpy.random.default_rng(seed).permutation(count)``, as in TorchMD-NET:
    the same seed, numbers and order of the frames give the same split there.
    """
    given = (options.train, options.val, options.test)
    train, val, test = (d if g is None else g for g, d in zip(given, defaults))
    assert train is not None
    assert val is not None
    if train < 1 or val < 0 or (test or 0) < 0:
        raise DataError("--train must be at least 1, --val and --test at least 0")
    needed = train + val + (test or 0)
    if needed > count:
        wanted = f"{train} for training, {val} for validation"
        if test is not None:
            wanted += f", {test} for testing"
        raise DataError(
            f"{source} has {counted(count, 'frame')}, not enough for {wanted}; give smaller "
            "--train, --val and --test, or more data"
        )
    order = np.random.default_rng(options.seed).permutation(count)
    stop = count if test is None else needed
    return {TRAIN: order[:train], VAL: order[train : train + val], TEST: order[train + val : stop]}


def _from_files(
    count: int, options: SplitOptions, source: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    if any(number is not None for number in (options.train, options.val, options.test)):
        raise DataError("index files define the split; leave out --train, --val and --test")
    paths = (options.train_indices, options.val_indices, options.test_indices)
    if options.splits:
        if any(paths):
            raise DataError("give --splits or --train-indices ... , not both")
        splits = _read_npz(Path(options.splits))
        files = dict.fromkeys(NAMES, options.splits)
    else:
        if not (options.train_indices and options.val_indices):
            raise DataError(
                "index files are needed for training and validation (--train-indices, "
                "--val-indices); without --test-indices all other frames are for testing"
            )
        files = {name: path for name, path in zip(NAMES, paths) if path}
        splits = {name: _read_text(Path(path)) for name, path in files.items()}
    owner = np.full(count, -1)
    for number, (name, rows) in enumerate(splits.items()):
        _check_indices(rows, name, files[name], owner, list(splits), source)
        owner[rows] = number
    if len(splits[TRAIN]) == 0:
        raise DataError(f"{files[TRAIN]}: no index for training")
    if TEST not in splits:
        splits[TEST] = np.flatnonzero(owner < 0)
    return splits, list(dict.fromkeys(files.values()))


def _check_indices(
    rows: np.ndarray, name: str, file: str, owner: np.ndarray, names: list[str], source: str
) -> None:
    outside = rows[(rows < 0) | (rows >= len(owner))]
    if len(outside):
        raise DataError(
            f"{file}: index {outside[0]} for {name} is out of range: {source} has "
            f"{counted(len(owner), 'frame')}, counted from 0; give the index file of this data"
        )
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"{file}: index {values[counts > 1][0]} for {name} appears {counts.max()} times; "
            "remove the duplicates"
        )
    taken = rows[owner[rows] >= 0]
    if len(taken):
        raise DataError(
            f"{file}: {counted(len(taken), 'index', 'indices')} for {name} also in "
            f"{names[owner[taken[0]]]}, the first is {taken[0]}; each frame may be in one split "
            "only"
        )


def _read_text(path: Path) -> np.ndarray:
    """(n,) int64 from a csv or txt file with one index per line."""
    try:
        lines = existing_file(path, DataError).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: this is not text; for npz use --splits") from None
    rows = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        try:
            rows.append(np.int64(text))
        except (ValueError, OverflowError):
            raise DataError(
                f"{path}: line {number} is {text[:40]!r}, not an index; write one index per line"
            ) from None
    return np.array(rows, dtype=np.int64)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays idx_train, idx_val and idx_test of an npz file."""
    arrays = read_npz(path, DataError)
    splits = {}
    for name in NAMES:
        rows = arrays.get(f"idx_{name}")
        if rows is None:
            raise DataError(
                f"--splits {path}: the key `idx_{name}` is missing; it has {sorted(arrays)}"
            )
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise DataError(
                f"--splits {path}: `idx_{name}` is {rows.dtype} of shape {rows.shape}, expected a "
                "list of whole numbers"
            )
        splits[name] = rows.astype(np.int64)
    return splits
