"""Which numbers of several runs can be compared, and warnings about the others.

The numbers of two runs for a split belong to the same *set* if the records are the same (by the
hash of their content, or by path if that is not recorded), with the same selection and units.
Several sets are called A, B, ..., and a page averages, plots and subtracts only within a set.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from fairchem_kit.report.page.runs import Run
from fairchem_kit.words import counted

MEAN = "val_mean"
Arms = dict[str, list[Run]]
Identity = Hashable


@dataclass(frozen=True)
class Member:
    """One run's data of one split: identity and description."""

    owner: str
    identity: Identity
    description: str


class Sets:
    """The validation sets of some runs.

    Attributes:
        notes: a sentence for each split with more than one set.
    """

    def __init__(self, arms: Arms) -> None:
        self._letters: dict[tuple[int, str], str] = {}
        self.notes: list[str] = []
        runs = [run for members in arms.values() for run in members]
        for split in dict.fromkeys(name for run in runs for name in run.validation_splits):
            here = [run for run in runs if split in run.validation_splits]
            members = {id(run): _member(run, split, here) for run in here}
            names = letters([member.identity for member in members.values()])
            for run in here:
                self._letters[id(run), split] = names[members[id(run)].identity]
            descriptions = {member.description for member in members.values()}
            # Means over the same splits: differences are reported for those.
            if len(names) > 1 and (split != MEAN or len(descriptions) > 1):
                self.notes.append(different(split, list(members.values()), names))

    def letter(self, run: Run, split: str) -> str:
        """A, B, ...; "" if all runs have the same set."""
        return self._letters.get((id(run), split), "")

    def of(self, runs: Sequence[Run], split: str) -> dict[str, list[Run]]:
        """The runs validated on a split, by the letter of their set."""
        found: dict[str, list[Run]] = {}
        for run in runs:
            if split in run.validation_splits:
                found.setdefault(self.letter(run, split), []).append(run)
        return dict(sorted(found.items()))

    def only(self, arms: Arms, split: str, letter: str) -> Arms:
        """All arms, in order, with only the runs of one set of a split."""
        return {arm: self.of(runs, split).get(letter, []) for arm, runs in arms.items()}


def letters(identities: Sequence[Identity]) -> dict[Identity, str]:
    """Each identity's letter, in order; "" for a single one."""
    distinct = list(dict.fromkeys(identities))
    if len(distinct) < 2:
        return dict.fromkeys(distinct, "")
    return {
        identity: ascii_uppercase[n] if n < len(ascii_uppercase) else f"A{n}"
        for n, identity in enumerate(distinct)
    }


def titled(split: str, letter: str) -> str:
    """A split's name, with its set if it has several."""
    return f"{split}, set {letter}" if letter else split


def different(split: str, members: Sequence[Member], names: Mapping[Identity, str]) -> str:
    """The warning about a split with several sets."""
    parts = []
    for identity, letter in names.items():
        own = [member for member in members if member.identity == identity]
        owners = ", ".join(dict.fromkeys(member.owner for member in own))
        parts.append(f"set {letter} is {own[0].description} ({owners})")
    return (
        f"{split}: {'; '.join(parts)}. Numbers of different sets are not comparable: means, "
        "figures and differences are within one set only."
    )


def _member(run: Run, split: str, runs: Sequence[Run]) -> Member:
    if split != MEAN:
        return Member(run.name, *_data(run, split, runs))
    parts = [
        (name, _data(run, name, [other for other in runs if name in other.validation_splits])[0])
        for name in sorted(run.validation_splits)
        if name != MEAN
    ]
    return Member(run.name, tuple(parts), f"the mean of {', '.join(name for name, _ in parts)}")


def _data(run: Run, split: str, runs: Sequence[Run]) -> tuple[Identity, str]:
    """Identity and description of a run's data of a split, given the other runs."""
    records = [one[split] for one in run.validated_on if split in one]
    contents = dict.fromkeys((_content(one, split, runs), _selection(one)) for one in records)
    units = _units(run, runs)
    text = " and later ".join(dict.fromkeys(map(data_text, records))) or "data not recorded"
    if len({_units(other, runs) for other in runs}) > 1:
        text += f", {', '.join(f'{name} in {unit}' for name, unit in units) or 'no units given'}"
    return (tuple(contents), units), text


def _content(one: Mapping[str, Any], split: str, runs: Sequence[Run]) -> str:
    """Its hash; else the hash that other runs have for the same path, if they agree; else the
    path."""
    if one.get("hash"):
        return str(one["hash"])
    others = [o[split] for other in runs for o in other.validated_on if split in o]
    known = {str(o["hash"]) for o in others if o.get("hash") and o.get("src") == one.get("src")}
    return known.pop() if len(known) == 1 else f"path {one.get('src')}"


def _selection(one: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    known = ("src", "hash", "structures")
    return tuple(sorted((key, str(value)) for key, value in one.items() if key not in known))


def data_text(one: Mapping[str, Any]) -> str:
    """Path, size, selection and content of a split's data, as text."""
    parts = [str(one.get("src"))]
    if one.get("structures"):
        parts.append(counted(one["structures"], "structure"))
    parts += [f"{key} {value}" for key, value in _selection(one)]
    parts.append(f"content {one['hash']}" if one.get("hash") else "content not recorded")
    return ", ".join(parts)


def _units(run: Run, runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """(output, unit) of a run; if it has no unit, the one that all others have."""
    found = {}
    for name in sorted({name for other in runs for name in other.units}):
        said = {other.units[name] for other in runs if name in other.units}
        if name in run.units:
            found[name] = run.units[name]
        elif len(said) == 1:
            found[name] = said.pop()
    return tuple(found.items())
