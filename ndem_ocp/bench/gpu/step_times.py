"""Time and memory of training steps and inference, by model, precision and batch size."""

from __future__ import annotations

import contextlib
import gc
import statistics
import traceback
from collections.abc import Callable
from typing import Any

from ndem_ocp.bench.gpu.bench import ARMS, INSTEAD, Bench
from ndem_ocp.bench.gpu.results import Check, Results, precision

# of the same models, timed with one precision
TORCHS = ", torch's code"
MORE = (INSTEAD, f"plain{TORCHS}", f"ndem{TORCHS}", f"{INSTEAD}{TORCHS}")
WARM_UP = 3
# (products, structures in a batch, rounds): the most informative first
FIRST = (("tf32", 8, 10), ("tf32", 4, 10), ("bf16", 8, 6), ("fp32", 8, 6))
LATER = (
    ("tf32", 16, 6),
    ("bf16", 16, 5),
    ("tf32", 1, 8),
    ("tf32", 32, 5),
    ("bf16", 32, 5),
    ("fp16", 8, 5),
    ("bf16", 4, 5),
    ("fp32", 4, 5),
    ("fp32", 16, 5),
    ("tf32", 2, 5),
)
# before the large batches, whose memory fairchem's model does not give back
INFERENCE = (("tf32", 8), ("tf32", 1), ("fp32", 8), ("bf16", 8))
LARGE = 16  # from this batch size on, fairchem's needs most of the memory of a card
TINY_FIRST = (("fp32", 1, 1),)


def prepare(check: Check, waiting: Callable[[], bool]) -> Bench:
    """Build the arms; as long as another stage has its turn, compile the kernels with them."""
    bench = Bench(check, "31M", None)
    for name in ARMS:
        bench.arm(name)
    for kind in ("tf32", "bf16", "fp32", "fp16") if check.cuda else ():
        if waiting():
            try:
                bench.warm_up(kind)
            except Exception:  # measuring will tell
                traceback.print_exc()
    return bench


def run(check: Check, out: Results, bench: Bench | None = None) -> None:
    bench = bench or prepare(check, lambda: False)
    _free(check)
    gc.freeze()  # so that the collection after each round is short
    steps = Steps(check, out, bench)
    for kind, size, rounds in TINY_FIRST if check.tiny else FIRST:
        steps.measure("31M", kind, size, rounds)
    kind, size, _ = TINY_FIRST[0] if check.tiny else FIRST[0]
    steps.measure("31M", kind, size, 1 if check.tiny else 5, ("upstream", *MORE))
    for kind, size in (("fp32", 1),) if check.tiny else INFERENCE:
        steps.inference(kind, size)
    if check.tiny:
        return
    if check.left() > 40:
        with out.guarded("153M, 4 layers"):
            other = Bench(check, "153M", 4)
            for kind in ("tf32", "bf16"):
                Steps(check, out, other).measure("153M, 4 layers", kind, 4, 5)
            del other
            _free(check)
    for kind, size, rounds in LATER:
        steps.measure("31M", kind, size, rounds)


class Steps:
    """Measures a bench's arms and puts the results into the file, after every round."""

    def __init__(self, check: Check, out: Results, bench: Bench) -> None:
        self.check, self.out, self.bench = check, out, bench
        self.done: dict[tuple[str, str], dict[str, Any]] = {}

    def measure(
        self, model: str, kind: str, size: int, rounds: int, labels: tuple[str, ...] = ARMS
    ) -> None:
        """Steps of each arm with the same batches, by default in rounds (:func:`order`).

        An arm that runs out of memory is left out, from then on and for larger batches of the same
        precision.
        """
        warm_up, check = 0 if self.check.tiny else WARM_UP, self.check
        if check.left() < 8:
            return
        batches = self.bench.batches(size)
        place = (model, f"{kind}, batch {size}, {round(statistics.mean(batches.atoms))} atoms")
        series = Series()
        with self.out.guarded(*place), precision(kind), no_collection():
            for label, number in order(labels, warm_up + rounds, size >= LARGE):
                if self._too_large(label, kind, size) or check.left() < 3:
                    continue
                if size >= LARGE and number == 0:
                    _free(check)
                found = self.bench.step(label, kind, batches, number)
                gc.collect()
                if found is None:
                    self.bench.too_large[label, kind] = size
                elif number >= warm_up:
                    series.add(label, number, *found)
                    self._put(place, series, batches.atoms)
            without = [label for label in labels if self._too_large(label, kind, size)]
            more = {"out of memory": without} if without else {}
            content = self._put(place, series, batches.atoms, more)
            self.done[place] = {key: content[key] for key in series.steps}

    def _too_large(self, label: str, kind: str, size: int) -> bool:
        limit = self.bench.too_large.get((label, kind))
        return limit is not None and size >= limit

    def _put(
        self, place: tuple[str, str], series: Series, atoms: list[int], more: Any = None
    ) -> dict[str, Any]:
        """What was measured before at this place, with other arms and in more rounds, stays."""
        found = series.summary()
        for name, each in found.items():
            each["edges"] = self.bench.arm(name.partition(", ")[0]).edges
        found = {"atoms": atoms, **(more or {}), **found, **self.done.get(place, {})}
        self.out.put(*place, found)
        return found

    def inference(self, kind: str, size: int) -> None:
        """Time of energies and forces, without gradients, in ms."""
        import torch

        from ndem_ocp.models.equiformer.kernels import without_kernels

        check = self.check
        if check.left() < 6:
            return
        batches = self.bench.batches(size)
        place = ("inference", f"{kind}, batch {size}, {batches.atoms[0]} atoms")
        repeats, warmup = (1, 0) if check.tiny else (10, 3)
        found: dict[str, float] = {}
        with self.out.guarded(*place), precision(kind), torch.no_grad():
            for name in ("upstream", "plain", f"plain{TORCHS}"):
                model = self.bench.arm(name.partition(", ")[0]).trainer._unwrapped_model.eval()

                def call(model: Any = model) -> None:
                    with self.bench.autocast(kind):
                        model(batches.on(0, check.device))

                with without_kernels() if TORCHS in name else contextlib.nullcontext():
                    found[name] = 1e3 * check.seconds(call, repeats, warmup)
                self.out.put(*place, {**found, "to upstream": found[name] / found["upstream"]})
            self.out.put(*place, {**found, "to upstream": found["plain"] / found["upstream"]})


def order(labels: tuple[str, ...], rounds: int, arm_by_arm: bool) -> list[tuple[str, int]]:
    """(label, round): rounds over all arms, each starting with the next one, so that a slow moment
    of the machine affects all of them. Arm by arm, none has to wait until memory that another
    one has used is given back."""
    if arm_by_arm:
        return [(label, number) for label in labels for number in range(rounds)]
    shifts = [number % len(labels) for number in range(rounds)]
    return [
        (label, number)
        for number, shift in enumerate(shifts)
        for label in (*labels[shift:], *labels[:shift])
    ]


class Series:
    """Timings of some arms: medians, and medians of the ratios within rounds."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[int, tuple[Any, dict[str, float]]]] = {}

    def add(self, label: str, number: int, timing: Any, memory: dict[str, float]) -> None:
        """Of the step in round ``number``."""
        self.steps.setdefault(label, {})[number] = (timing, memory)

    def summary(self) -> dict[str, dict[str, Any]]:
        found = {}
        reference = {n: each[0] for n, each in self.steps.get("upstream", {}).items()}
        for name, rounds in self.steps.items():
            timings = [timing for timing, _ in rounds.values()]
            found[name] = {
                "ms": _ms(timing.wall_s for timing in timings),
                "rounds": len(timings),
                "submitted after, ms": _ms(timing.submitted_s for timing in timings),
                "processor ms": _ms(timing.process_s for timing in timings),
                "phases, ms": {
                    phase: _ms(timing.phases_s.get(phase, 0) for timing in timings)
                    for phase in timings[0].phases_s
                },
            }
            for key in next(iter(rounds.values()))[1]:
                found[name][key] = max(memory[key] for _, memory in rounds.values())
            ratios = [
                timing.wall_s / reference[number].wall_s
                for number, (timing, _) in rounds.items()
                if number in reference
            ]
            if ratios:
                found[name]["to upstream"] = statistics.median(ratios)
        return found


def _ms(seconds: Any) -> float:
    return 1e3 * statistics.median(seconds)


@contextlib.contextmanager
def no_collection() -> Any:
    """Without the garbage collector, which takes as long as a small step and could hit any arm."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _free(check: Check) -> None:
    import torch

    gc.collect()
    if check.cuda:
        torch.cuda.empty_cache()
