"""Choosing the arm with which the others are compared."""

from __future__ import annotations

from dataclasses import dataclass

from fairchem_kit.report.page.comparable import Arms
from fairchem_kit.report.page.errors import ReportError

PLAIN = "plain"


@dataclass(frozen=True)
class Baseline:
    """The arm with which others are compared, or None, and a sentence about the choice."""

    arm: str | None
    sentence: str


def baseline_of(arms: Arms, asked: str | None = None) -> Baseline:
    """The requested arm, else the one named plain, else the only one of plain training.

    If every run is an arm of its own, an arm's name means its only run.

    Raises:
        ReportError: if the requested arm does not exist; the message lists those that do.
    """
    if asked is not None:
        found = _named(arms, asked)
        if found is None:
            raise ReportError(f"--baseline {asked}: no such arm. There are: {', '.join(arms)}.")
        return Baseline(found, f"Baseline: {found}, as requested.")
    if len(arms) < 2:
        return Baseline(None, "")
    found = _named(arms, PLAIN)
    if found is not None:
        odd = any(run.is_plain is False for run in arms[found])
        but = ", although its configuration is not plain training" if odd else ""
        return Baseline(found, f"Baseline: {found}{but}.")
    plain = [name for name, runs in arms.items() if all(run.is_plain for run in runs)]
    other = f"--baseline NAME selects another: {', '.join(arms)}."
    if len(plain) == 1:
        return Baseline(plain[0], f"Baseline: {plain[0]}, the only arm of plain training. {other}")
    which = f"{', '.join(plain)} are all plain training" if plain else "none is plain training"
    return Baseline(
        None,
        f"No baseline, so no differences: no arm is named {PLAIN}, and {which}. "
        f"--baseline NAME selects one: {', '.join(arms)}.",
    )


def _named(arms: Arms, name: str) -> str | None:
    """The arm of that name, or the only one whose runs belong to it."""
    if name in arms:
        return name
    found = [arm for arm, runs in arms.items() if all(run.arm == name for run in runs)]
    return found[0] if len(found) == 1 else None


def baseline_first(arms: Arms, baseline: str | None) -> Arms:
    """The same arms with the baseline first."""
    front = [baseline] if baseline else []
    return {name: arms[name] for name in [*front, *(n for n in arms if n not in front)]}
