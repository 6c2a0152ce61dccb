"""Interleaved measurement, with medians, quartiles and ratios."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ndem_ocp.bench.clock import Timing

Summary = dict[str, float]


class Measured(dict[str, list[Timing]]):
    """arm -> its timings, one per round; ``interrupted`` if Ctrl-C ended the rounds early."""

    interrupted = False


def interleave(
    arms: Sequence[str],
    step: Callable[[str, int], Timing],
    repeats: int,
    warmup: int,
    rounds: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Measured:
    """Rounds over all arms: in each round every arm runs once on the same batch, starting with the
    next arm.

    So a temporary slowdown of the machine affects all arms, and the ratios least. Ctrl-C ends the
    measurement; the complete rounds until then are used.

    Args:
        arms: names.
        step: runs (arm, round) and times it.
        repeats: measured rounds. warmup: rounds before them that are not measured.
        rounds: wraps the round numbers, for a progress bar.
    """
    measured = Measured({arm: [] for arm in arms})
    collecting = gc.isenabled()
    try:
        for number in rounds(range(warmup + repeats)):
            shift = number % len(arms)
            this_round = {}
            gc.collect()
            gc.disable()  # a collection takes as long as a small step and can happen in any arm
            for arm in (*arms[shift:], *arms[:shift]):
                this_round[arm] = step(arm, number)
            if number >= warmup:
                for arm, timing in this_round.items():
                    measured[arm].append(timing)
    except KeyboardInterrupt:
        measured.interrupted = True
    finally:
        if collecting:
            gc.enable()
    return measured


def summary(values: Sequence[float]) -> Summary:
    """Median and quartiles of at least one value."""
    ordered = sorted(values)
    if len(ordered) == 1:
        low = high = ordered[0]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"median": statistics.median(ordered), "q25": low, "q75": high, "n": len(ordered)}


def ratios(values: Sequence[float], reference: Sequence[float]) -> Summary:
    """Summary of the round-by-round ratios to the reference arm."""
    return summary([value / base for value, base in zip(values, reference)])


def arm_results(
    measured: Measured, reference: str, atoms: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """arm -> times (s), phases (s), ratios to the reference and atoms per second.

    Args:
        measured: with at least one round.
        reference: the arm to which ratios refer; without its measurement there are none.
        atoms: of the batch of each round.
    """
    base = measured.get(reference)
    results = {}
    for arm, timings in measured.items():
        wall = [t.wall_s for t in timings]
        process = [t.process_s for t in timings]
        phases = {name for t in timings for name in t.phases_s}
        results[arm] = {
            "wall_s": summary(wall),
            "process_s": summary(process),
            "phases_s": {
                name: summary([t.phases_s.get(name, 0.0) for t in timings])
                for name in sorted(phases)
            },
            "atoms_per_s": summary([n / t for n, t in zip(atoms, wall)]),
        }
        if base is not None:
            results[arm]["ratio"] = ratios(wall, [t.wall_s for t in base])
            results[arm]["process_ratio"] = ratios(process, [t.process_s for t in base])
    return results
