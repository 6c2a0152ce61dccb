"""Train for equal times: plain, NDeM, and second views in place of structures.

The second views are from the same potential as the generated data. This shows that training works
on the device, and its cost. What second views gain on published data is measured in
ndem_ocp.bench.experiments.second_views.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ndem_ocp.bench.gpu.results import Check, Results
from ndem_ocp.bench.gpu.whole_run import small_config

EXACT = "ase.calculators.emt:EMT()"


def run(check: Check, out: Results) -> None:
    from ndem_ocp.second_views.draws import Draws
    from ndem_ocp.second_views.make import MakeOptions, make_second_views

    views = check.work / "views.lmdb"
    draws = Draws(2 if check.tiny else 8, 0.02, 0.05)
    make_second_views(
        check.data() / "train", EXACT, views, MakeOptions(draws=draws, pairs=10, progress=False)
    )
    arms = _arms(views)
    for number, (name, settings) in enumerate(arms.items()):
        seconds = 2 if check.tiny else (check.left() - 6) / (len(arms) - number)
        with out.guarded(name):
            out.put(name, _trained(check, name, settings, seconds))


def _arms(views: Path) -> dict[str, dict[str, Any]]:
    drawn = {"sigma_min": 0.02, "sigma_max": 0.05}
    seen = {"target": "second_views", "second_views": str(views), "share": 0.5}
    return {
        "plain": {"coefficient": 0.0},
        "ndem": {"coefficient": 1.0},
        "second views, in place": {"coefficient": 1.0, **seen, **drawn},
    }


def _trained(check: Check, name: str, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Number of steps in this time, and the errors of the moving average of the weights."""
    from ndem_ocp.testing import trainer_of

    config = small_config(check, max_epochs=1000, eval_every=10**9, num_workers=0)
    config["task"]["ndem"] = settings
    trainer = trainer_of(config, check.work / name.replace(" ", "-"), cpu=not check.cuda)
    end, begin, count = time.time() + seconds, 0.0, 0
    backward = trainer._backward

    def counted(loss: Any) -> None:
        nonlocal begin, count
        backward(loss)
        begin, count = begin or time.time(), count + 1
        if time.time() > end:
            raise _Enough

    trainer._backward = counted
    try:
        trainer.train(disable_eval_tqdm=True)
    except _Enough:
        check.wait()
    took = time.time() - begin
    metrics = trainer.validate(split="val", disable_tqdm=True)
    found = {key: metrics[key]["metric"] for key in ("forces_mae", "energy_mae") if key in metrics}
    return {"steps": count, "ms a step": 1e3 * took / max(count - 1, 1), **found}


class _Enough(Exception):
    """Raised when the time is over."""
