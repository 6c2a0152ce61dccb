"""The split of the frames into training, validation and test, and the energy reference.

docs/settings.md gives the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairchem_kit.data.reference import composition_matrix
from fairchem_kit.data.scan import FrameTable
from fairchem_kit.data.split import TEST, TRAIN, VAL
from fairchem_kit.words import counted
from ndem_ocp.fit.errors import FitError

FRACTION = 0.1  # for validation, and the same for test
FEWEST_SYSTEMS = 5  # with fewer, all are needed for training
BLOCKS = 20  # of consecutive frames, per system
FEWEST_FRAMES = 10


@dataclass(frozen=True)
class Split:
    """Attributes:
    of: (n,) the split of each frame. reason: how and why, in a sentence. by_system: whether
        validation and test have systems that are not in training.
    """

    of: np.ndarray
    reason: str
    by_system: bool


def choose_split(table: FrameTable, roles: Mapping[str, str], seed: int) -> Split:
    """Split the frames; files given for a split are used as they are.

    Args:
        table: the usable frames. roles: ``{source name: split}``. seed: of the random choice.

    Raises:
        FitError: too few frames; elements that are not in training; the same frame in two splits.
    """
    of = np.array([roles[source.name] for source in table.sources], dtype=object)[table.source]
    train = of == TRAIN
    named = [split for split in (VAL, TEST) if (of == split).any()]
    # a validation file given by the user is what the model is evaluated on
    drawn = [] if VAL in named else [VAL] if TEST in named else [VAL, TEST]
    if train.sum() < FEWEST_FRAMES:
        paths = [source.path for source in table.sources if roles[source.name] == TRAIN]
        files = ", ".join(paths[:3]) + (", ..." if paths[3:] else "")
        raise FitError(
            f"{files}: {counted(int(train.sum()), 'usable frame')} to train on: at least "
            f"{FEWEST_FRAMES} are needed, and some hundreds for a useful model."
        )
    by_system, reason = True, f"{_files(named)} as given"
    if drawn:
        chosen = _systems(table, train, len(drawn), seed)
        by_system = chosen is not None
        chosen = _blocks(table, train, len(drawn), seed) if chosen is None else chosen
        for split, rows in zip(drawn, chosen, strict=True):
            of[rows] = split
        reason = _reason(table, train, by_system, drawn, named)
    reason += _same_frames(table, of, named)
    for split in drawn:
        if not (of == split).any():
            raise FitError(f"all frames are duplicates: none is left for {split}.")
    _refuse_new_elements(table, of)
    if named:
        shared = _shared_systems(table, of)
        if shared:
            by_system = False
            reason += f"; {shared}"
    return Split(of, reason, by_system)


def _systems(table: FrameTable, train: np.ndarray, parts: int, seed: int) -> list | None:
    """Rows of whole systems for each part; None if there are too few systems.

    A system stays in training if an element would otherwise be missing there.
    """
    systems = np.unique(table.system[train])
    if len(systems) < FEWEST_SYSTEMS:
        return None
    elements = {s: _elements(table, train & (table.system == s)) for s in systems}
    left = Counter(z for found in elements.values() for z in found)
    wanted = max(1, round(FRACTION * len(systems)))
    taken: list[list[int]] = [[] for _ in range(parts)]
    for system in np.random.default_rng(seed).permutation(systems):
        part = next((part for part in taken if len(part) < wanted), None)
        if part is None:
            break
        if all(left[z] > 1 for z in elements[system]):
            part.append(system)
            for z in elements[system]:
                left[z] -= 1
    if not all(taken):
        return None
    return [np.flatnonzero(train & np.isin(table.system, part)) for part in taken]


def _blocks(table: FrameTable, train: np.ndarray, parts: int, seed: int) -> list[np.ndarray]:
    """Rows of blocks of consecutive frames, from every system that has enough of them."""
    generator = np.random.default_rng(seed)
    rows: list[list[np.ndarray]] = [[] for _ in range(parts)]
    for system in np.unique(table.system[train]):
        frames = np.flatnonzero(train & (table.system == system))  # in the order of the source
        blocks = np.array_split(frames, min(BLOCKS, len(frames)))
        if len(blocks) < FEWEST_FRAMES:
            continue
        each = max(1, round(FRACTION * len(blocks)))
        order = generator.permutation(len(blocks))
        for number, part in enumerate(rows):
            part += [blocks[i] for i in order[number * each : (number + 1) * each]]
    if not rows[0]:  # many tiny systems without common elements
        frames = generator.permutation(np.flatnonzero(train))
        each = max(1, round(FRACTION * len(frames)))
        return [frames[i * each : (i + 1) * each] for i in range(parts)]
    return [np.concatenate(part) for part in rows]


def _reason(
    table: FrameTable, train: np.ndarray, by_system: bool, drawn: list[str], named: list[str]
) -> str:
    systems = np.unique(table.system[train])
    what = f"{' and '.join(drawn)}: {FRACTION:.0%}{' each' if len(drawn) > 1 else ''} of the "
    given = f"; {_files(named)} as given" if named else ""
    if by_system:
        return (
            f"{what}{counted(len(systems), 'whole system')}: frames of one system resemble each "
            f"other, and splitting them would flatter the model{given}"
        )
    longest = int(np.bincount(table.system[train]).max())
    one = len(systems) == 1
    few = "one system" if one else f"{counted(len(systems), 'system')}, too few to leave one out"
    return (
        f"{what}frames, in blocks of {max(1, round(longest / BLOCKS))} consecutive ones ({few}): "
        "neighbours in a trajectory resemble each other, and splitting single frames would "
        "flatter the model. Errors are for new frames of "
        f"{'this system' if one else 'these systems'}, not for new systems{given}"
    )


def _files(named: list[str]) -> str:
    return " and ".join("--valid" if split == VAL else "--test" for split in named)


def _shared_systems(table: FrameTable, of: np.ndarray) -> str:
    """A remark if all compositions in validation and test are also in training."""
    parts = []
    train = set(table.composition[of == TRAIN])
    for split in (VAL, TEST):
        found = set(table.composition[of == split])
        if found and found <= train:
            parts.append(split)
    if not parts:
        return ""
    return (
        f"every composition of {' and '.join(parts)} is also in training, so errors are for "
        "new frames of known systems"
    )


def _same_frames(table: FrameTable, of: np.ndarray, named: list[str]) -> str:
    """Frames that are in training and in another split (same atoms, energy and largest force).

    Of frames drawn at random the copy moves to training, in place; returns a remark on it.

    Raises:
        FitError: if the user's own files share frames.
    """
    seen: dict[tuple, int] = {}
    for row in np.flatnonzero(of == TRAIN):
        seen.setdefault(_identity(table, row), row)
    rows = [row for row in np.flatnonzero(of != TRAIN) if _identity(table, row) in seen]
    of_files = [row for row in rows if of[row] in named]
    if of_files:
        row = of_files[0]
        twin = seen[_identity(table, row)]
        raise FitError(
            f"{counted(len(of_files), 'frame')} in both training and evaluation files: the first "
            f"is frame {table.frame[row]} of {_path(table, row)}, which is also frame "
            f"{table.frame[twin]} of {_path(table, twin)} (same atoms, energy and largest force). "
            "Remove them from one of the two."
        )
    of[rows] = TRAIN
    return f"; {counted(len(rows), 'duplicate frame')} kept in training only" if rows else ""


def _identity(table: FrameTable, row: int) -> tuple:
    return (
        table.compositions[table.composition[row]],
        round(float(table.energy[row]), 9),
        round(float(table.max_force[row]), 9),
    )


def _path(table: FrameTable, row: int) -> str:
    return table.sources[table.source[row]].path


def _elements(table: FrameTable, mask: np.ndarray) -> set[int]:
    used = np.unique(table.composition[mask])
    return {z for c in used for z, _ in table.compositions[c]}


def _refuse_new_elements(table: FrameTable, of: np.ndarray) -> None:
    from ase.data import chemical_symbols

    known = _elements(table, of == TRAIN)
    for split in (VAL, TEST):
        new = sorted(_elements(table, of == split) - known)
        if new:
            having = [
                number
                for number, composition in enumerate(table.compositions)
                if {z for z, _ in composition} & set(new)
            ]
            row = np.flatnonzero((of == split) & np.isin(table.composition, having))[0]
            raise FitError(
                f"{_path(table, row)}: frame {table.frame[row]} has "
                f"{', '.join(chemical_symbols[z] for z in new)}, which are in no training frame: "
                "the model cannot know it. Add such frames to the training files, or leave these "
                "out."
            )


def choose_reference(table: FrameTable, of: np.ndarray) -> tuple[str, str]:
    """The mode of the energy reference, and why."""
    used = np.unique(table.composition[of == TRAIN])
    others = np.unique(table.composition[of != TRAIN])
    matrix = composition_matrix(table.compositions)
    known = matrix[used]
    # every composition must be a combination of training compositions, and the fit determined
    basis = np.linalg.pinv(known) @ known
    outside = np.abs(matrix[others] @ basis - matrix[others]).max(initial=0.0)
    rank = np.linalg.matrix_rank(known)
    if outside < 1e-6 and (len(used) > rank or len(used) <= 3):
        return (
            "linear",
            "minus a sum over the elements, fitted on the training frames: the rest is small "
            "enough for float32, and the model still predicts total energies",
        )
    return (
        "last-frame",
        f"minus that of each system's last frame: {counted(len(used), 'composition')} cannot "
        f"determine the energies of {counted(int((known.sum(axis=0) > 0).sum()), 'element')}. "
        "Only differences within one system are meaningful",
    )
