"""What a step of each arm of second_views.py costs, in steps of plain training.

    python -m ndem_ocp.bench.experiments.second_views_cost ethanol_100_x4 oc20_60_800

The cases must have been run in this checkout, whose data are used. Steps of all arms alternate on
the same batches in one process, on one thread of the CPU, so other programs affect all arms alike.
It writes results/second_views_cost.json. The lengths of the runs in second_views.py are chosen
before them, from the costs assumed in second_views_cases.py; this says how good those were.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import dict_set_recursively, load_config

import ndem_ocp
from fairchem_kit.provenance import config_hash, files_hash, provenance
from ndem_ocp.bench.arms import build_arm
from ndem_ocp.bench.checkout import ROOT, in_checkout
from ndem_ocp.bench.clock import Stopwatch, Timing
from ndem_ocp.bench.experiments.second_views_cases import CASES, Case
from ndem_ocp.bench.measure import interleave, ratios, summary

RESULTS = ROOT / "results/second_views_cost.json"
WARMUP = 3  # rounds


def config_of(case: Case, arm: str) -> dict[str, Any]:
    """The configuration of an arm's runs."""
    config = load_config(case.config)[0]
    for key, value in case.overrides(arm).items():
        dict_set_recursively(config, key.split("."), value)
    return config


def configs_of(case: Case) -> dict[str, dict[str, Any]]:
    """The configuration of each arm that needs no pre-training and has its views here."""
    return {
        name: config_of(case, name)
        for name in case.arms
        if case.pretraining(name) is None and _has_views(case, name)
    }


def measure(case: Case, configs: dict[str, dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Processor time of a step of each arm, and its ratio to a plain step of the same round."""
    cpu = torch.device("cpu")
    arms = {name: build_arm(name, config, cpu) for name, config in configs.items()}
    trainer = arms["plain"].trainer
    size = case.batch_size

    def step(name: str, number: int) -> Timing:
        rows = [trainer.train_dataset[(number * size + i) % len(trainer.train_dataset)]
                for i in range(size)]  # fmt: skip
        return arms[name].step(trainer.collater(rows), number, Stopwatch(cpu))

    measured = interleave(list(arms), step, repeats, WARMUP)
    seconds = {name: [timing.process_s for timing in found] for name, found in measured.items()}
    return {
        "title": case.title,
        "rounds": len(seconds["plain"]),
        "arms": {
            name: {
                "assumed": case.all_arms[name].cost,
                "ratio": ratios(found, seconds["plain"]),
                "process_s": summary(found),
            }
            for name, found in seconds.items()
        },
    }


def _has_views(case: Case, name: str) -> bool:
    arm = case.all_arms[name]
    return not arm.has_views or Path(case.views_file(arm.views)).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    ndem_ocp.register()
    cases = {case.name: case for case in CASES if case.name in args.cases}
    configs = {name: configs_of(case) for name, case in cases.items()}
    found = {name: measure(case, configs[name], args.rounds) for name, case in cases.items()}
    result = {
        "what": "processor time of a training step, relative to a plain step of the same round",
        "cases": found,
        "units": {"assumed": "plain steps", "ratio": "plain steps", "process_s": "s"},
        "seeds": [0],
        "data": {name: files_hash(Path(case.data) / "train") for name, case in cases.items()},
        "config_hash": {name: config_hash(configs[name]) for name in cases},
        **provenance(ROOT),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, case in found.items():
        for arm, each in case["arms"].items():
            print(f"{name:16}{arm:14}{each['ratio']['median']:6.2f}  assumed {each['assumed']}")


if __name__ == "__main__":
    sys.exit(in_checkout(main))
