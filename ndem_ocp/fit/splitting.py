"""Which frames train, which validate and which test, and what is subtracted from the energies.

docs/settings.md argues for what is chosen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ndem_ocp.data.reference import composition_matrix
from ndem_ocp.data.scan import FrameTable
from ndem_ocp.data.split import TEST, TRAIN, VAL
from ndem_ocp.fit.errors import FitError

FRACTION = 0.1  # for validation, and as much for test
FEWEST_SYSTEMS = 5  # below, none can be spared
BLOCKS = 20  # of neighbouring frames, per system
FEWEST_FRAMES = 10


@dataclass(frozen=True)
class Split:
    """Attributes:
    of: (n,) the split of each frame. reason: how and why, in a sentence. by_system: whether
        validation and test are of systems that do not train.
    """

    of: np.ndarray
    reason: str
    by_system: bool


def choose_split(table: FrameTable, roles: Mapping[str, str], seed: int) -> Split:
    """Split the frames; files named for a split go there as they are.

    Args:
        table: the usable frames. roles: ``{source name: split}``. seed: of what is drawn.

    Raises:
        FitError: too few frames; elements or whole frames that the splits must not have.
    """
    of = np.array([roles[source.name] for source in table.sources], dtype=object)[table.source]
    train = of == TRAIN
    named = [split for split in (VAL, TEST) if (of == split).any()]
    # who names a validation file has decided what judges the model
    drawn = [] if VAL in named else [VAL] if TEST in named else [VAL, TEST]
    if train.sum() < FEWEST_FRAMES:
        raise FitError(
            f"{int(train.sum())} usable frames to train on: at least {FEWEST_FRAMES} are needed, "
            "and some hundreds for a model of any use."
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
            raise FitError(f"all frames are copies of others: none is left for {split}.")
    _refuse_new_elements(table, of)
    if named:
        shared = _shared_systems(table, of)
        if shared:
            by_system = False
            reason += f"; {shared}"
    return Split(of, reason, by_system)


def _systems(table: FrameTable, train: np.ndarray, parts: int, seed: int) -> list | None:
    """Rows of whole systems for each part; None where there are too few to spare.

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
    """Rows of blocks of neighbouring frames, of every system that has enough of them."""
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
    if not rows[0]:  # many tiny systems that share no elements
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
            f"{what}{len(systems)} systems, whole: frames of one system resemble each other, and "
            f"would flatter the model{given}"
        )
    longest = int(np.bincount(table.system[train]).max())
    one = len(systems) == 1
    return (
        f"{what}frames, in blocks of {max(1, round(longest / BLOCKS))} neighbours "
        f"({'one system' if one else f'{len(systems)} systems, none to spare'}): neighbours in a "
        "trajectory resemble each other, and single frames would flatter the model. Errors are for "
        f"new frames of {'this system' if one else 'these systems'}, not for new systems{given}"
    )


def _files(named: list[str]) -> str:
    return " and ".join("--valid" if split == VAL else "--test" for split in named)


def _shared_systems(table: FrameTable, of: np.ndarray) -> str:
    """A word on compositions that both train and are judged."""
    parts = []
    train = set(table.composition[of == TRAIN])
    for split in (VAL, TEST):
        found = set(table.composition[of == split])
        if found and found <= train:
            parts.append(split)
    if not parts:
        return ""
    return (
        f"every composition of {' and '.join(parts)} is also trained on, so errors are those on "
        "new frames of known systems"
    )


def _same_frames(table: FrameTable, of: np.ndarray, named: list[str]) -> str:
    """Frames that would train and judge (the same atoms, energy and largest force).

    Of drawn ones the copy goes to training, in place, and a word on it comes back.

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
            f"{len(of_files)} frame(s) would train the model and judge it: the first is frame "
            f"{table.frame[row]} of {_path(table, row)}, which is also frame {table.frame[twin]} "
            f"of {_path(table, twin)} (same atoms, energy and largest force). Take them out of one "
            "of the two."
        )
    of[rows] = TRAIN
    return f"; {len(rows)} frame(s) that are there twice train only" if rows else ""


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
                f"{', '.join(chemical_symbols[z] for z in new)}, which no training frame has: the "
                "model cannot know it. Add such frames to the training files, or leave these out."
            )


def choose_reference(table: FrameTable, of: np.ndarray) -> tuple[str, str]:
    """The mode of the energy reference, and why."""
    used = np.unique(table.composition[of == TRAIN])
    others = np.unique(table.composition[of != TRAIN])
    matrix = composition_matrix(table.compositions)
    known = matrix[used]
    # every composition must be a combination of those that trained, and the fit more than a guess
    basis = np.linalg.pinv(known) @ known
    outside = np.abs(matrix[others] @ basis - matrix[others]).max(initial=0.0)
    rank = np.linalg.matrix_rank(known)
    if outside < 1e-6 and (len(used) > rank or len(used) <= 3):
        return (
            "linear",
            "less a sum over the elements, fitted on the training frames: what is left is small "
            "enough for float32, and the model gives total energies again",
        )
    return (
        "last-frame",
        f"less the last frame's of each system: {len(used)} compositions do not settle the "
        f"energies of {int((known.sum(axis=0) > 0).sum())} elements. Only differences within a "
        "system mean something",
    )
