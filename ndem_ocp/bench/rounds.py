"""One point of a measurement: all arms on the same batches."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from fairchem_kit.words import counted
from ndem_ocp.bench.arms import build_arm, share_weights
from ndem_ocp.bench.batches import Batches
from ndem_ocp.bench.clock import Stopwatch, Timing, parameters_of
from ndem_ocp.bench.measure import arm_results, interleave, summary
from ndem_ocp.bench.options import Common

REFERENCE = "upstream"
BATCHES = 4  # different batches used in turn by the rounds


def measure_arms(
    configs: dict[str, dict[str, Any]],
    batches: Batches,
    common: Common,
    repeats: int,
    warmup: int,
    label: str,
) -> dict[str, Any] | None:
    """Interleaved training steps of all arms, from the same weights.

    Args:
        configs: arm -> configuration from ``arm_config``; all get the first arm's weights. batches:
            used in turn.
        common: device, seed, progress.
        repeats: measured rounds. warmup: rounds before them.
        label: of the progress bar.

    Returns:
        ``atoms`` (summary over the batches), ``rounds``, ``interrupted`` and ``arms``; None if
        Ctrl-C came before the first measured round.

    Raises:
        BenchError: if an arm fails.
        torch.cuda.OutOfMemoryError: on CUDA.
    """
    device, seed = common.device, common.seed
    arms = {
        name: build_arm(name, config, device, common.amp, seed) for name, config in configs.items()
    }
    share_weights(list(arms.values()))
    first = {name: arm.evaluate(batches.on(0, device), seed) for name, arm in arms.items()}
    watch = Stopwatch(device)

    def step(name: str, number: int) -> Timing:
        return arms[name].step(batches.on(number, device), seed + number, watch)

    def progress(numbers: Any) -> Any:
        text = f"{label}, {counted(len(arms), 'arm')}"
        return tqdm(numbers, desc=text, disable=not common.progress, leave=False)

    measured = interleave(list(arms), step, repeats, warmup, progress)
    rounds = len(measured[REFERENCE])
    if not rounds:
        return None
    seen = [batches.atoms[(warmup + i) % len(batches.atoms)] for i in range(rounds)]
    results = arm_results(measured, REFERENCE, seen)
    for name, arm in arms.items():
        results[name] |= {
            "parameters": parameters_of(arm.trainer._unwrapped_model),
            "evaluation_loss": first[name],
            "edges": arm.edges,
        }
    return {
        "atoms": summary(batches.atoms),
        "rounds": rounds,
        "interrupted": measured.interrupted,
        "arms": results,
    }
