"""Which numbers of several runs may stand beside each other, and the sentences about the others.

Two runs' numbers of a split are of one *set* where their records are the same (by the hash of their
content, or by path where that is not recorded), selected alike, in the same units. Where there are
several, they are called A, B, ..., and a page joins, draws and subtracts within one of them only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from ndem_ocp.report.page.runs import Run

MEAN = "val_mean"
Arms = dict[str, list[Run]]
Identity = Hashable


@dataclass(frozen=True)
class Member:
    """One run's data of one split: what it is, and how that is told to people."""

    owner: str
    identity: Identity
    told: str


class Sets:
    """The validation sets of some runs.

    Attributes:
        notes: a sentence for each split that has more than one.
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
            told = {member.told for member in members.values()}
            # Means over the same splits: what differs is said of those.
            if len(names) > 1 and (split != MEAN or len(told) > 1):
                self.notes.append(different(split, list(members.values()), names))

    def letter(self, run: Run, split: str) -> str:
        """A, B, ...; "" where all runs have the same set."""
        return self._letters.get((id(run), split), "")

    def of(self, runs: Sequence[Run], split: str) -> dict[str, list[Run]]:
        """The runs that were validated on a split, by the letter of their set."""
        found: dict[str, list[Run]] = {}
        for run in runs:
            if split in run.validation_splits:
                found.setdefault(self.letter(run, split), []).append(run)
        return dict(sorted(found.items()))

    def only(self, arms: Arms, split: str, letter: str) -> Arms:
        """All arms, in order, with the runs of one set of a split."""
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
    """A split's name with its set, where it has several."""
    return f"{split}, set {letter}" if letter else split


def different(split: str, members: Sequence[Member], names: Mapping[Identity, str]) -> str:
    """The sentence about a split of which there are several sets."""
    parts = []
    for identity, letter in names.items():
        own = [member for member in members if member.identity == identity]
        owners = ", ".join(dict.fromkeys(member.owner for member in own))
        parts.append(f"set {letter} is {own[0].told} ({owners})")
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
    """Identity and description of a run's data of a split, beside the same of other runs."""
    told = [one[split] for one in run.validated_on if split in one]
    contents = dict.fromkeys((_content(one, split, runs), _selection(one)) for one in told)
    units = _units(run, runs)
    text = " and later ".join(dict.fromkeys(map(data_text, told))) or "data that was not recorded"
    if len({_units(other, runs) for other in runs}) > 1:
        text += f", {', '.join(f'{name} in {unit}' for name, unit in units) or 'no units given'}"
    return (tuple(contents), units), text


def _content(one: Mapping[str, Any], split: str, runs: Sequence[Run]) -> str:
    """Its hash; else that which other runs have for the same path, if they agree; else the path."""
    if one.get("hash"):
        return str(one["hash"])
    others = [o[split] for other in runs for o in other.validated_on if split in o]
    known = {str(o["hash"]) for o in others if o.get("hash") and o.get("src") == one.get("src")}
    return known.pop() if len(known) == 1 else f"path {one.get('src')}"


def _selection(one: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    known = ("src", "hash", "structures")
    return tuple(sorted((key, str(value)) for key, value in one.items() if key not in known))


def data_text(one: Mapping[str, Any]) -> str:
    """Path, size, selection and content of a split's data, for people."""
    parts = [str(one.get("src"))]
    if one.get("structures"):
        parts.append(f"{one['structures']} structures")
    parts += [f"{key} {value}" for key, value in _selection(one)]
    parts.append(f"content {one['hash']}" if one.get("hash") else "content not recorded")
    return ", ".join(parts)


def _units(run: Run, runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """(output, unit) of a run; where it says none, the one that all others say."""
    found = {}
    for name in sorted({name for other in runs for name in other.units}):
        said = {other.units[name] for other in runs if name in other.units}
        if name in run.units:
            found[name] = run.units[name]
        elif len(said) == 1:
            found[name] = said.pop()
    return tuple(found.items())
