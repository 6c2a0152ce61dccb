"""Run the contract on every backbone and write docs/backbones.md's table:
`python -m ndem_ocp.bench.experiments.backbones [--check | --from-results]`.

The results, with commit, versions and measured errors, go to results/backbones.json. With
``--from-results`` nothing is run and the table is written from that file; with ``--check`` it is
only compared, and a difference is exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from typing import Any

import pytest

from ndem_ocp.bench.checkout import ROOT, in_checkout

TESTS = ["tests/test_backbones.py", "tests/test_outside_backbones.py"]
RESULTS, PAGE = ROOT / "results/backbones.json", ROOT / "docs/backbones.md"
START, END = "<!-- table: backbones -->", "<!-- end table -->"
VERSIONS = ("fairchem-core", "torch", "torch_geometric", "e3nn", "numpy")
# The contract's checks in the table's order, and what heads their columns.
CHECKS = {
    "test_equivariance": "float32 error",
    "test_equivariance_float64": "float64 error",
    "test_forces_are_the_energys_gradient": "f = -dE/dX",
    "test_one_backbone_forward_per_training_step": "one forward",
    "test_gradients_reach_the_backbone_and_both_heads": "gradients",
    "test_coefficient_zero_is_the_plain_trainer": "λ = 0",
    "test_evaluation_is_the_plain_model": "evaluation",
    "test_training_lowers_both_losses": "learns",
    "test_checkpoint_round_trip": "checkpoint",
}


class Recorder:
    """A pytest plug-in that keeps what each contract class measured."""

    def __init__(self) -> None:
        self.classes: dict[str, Any] = {}
        self.backbones: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        from ndem_ocp.testing import BackboneContract

        for item in items:
            cls = getattr(item, "cls", None)
            if cls is not None and issubclass(cls, BackboneContract):
                self.classes[item.nodeid] = cls

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cls = self.classes.get(report.nodeid)
        decided = report.when == "call" or report.outcome != "passed"
        if cls is None or not decided:
            return
        key = cls.__name__.removeprefix("Test")
        if key not in self.backbones:
            self.backbones[key] = _described(cls)
        check = self.backbones[key]["checks"].setdefault(report.nodeid.rsplit("::", 1)[1], {})
        check["outcome"] = report.outcome
        check.update(dict(report.user_properties))
        if report.skipped:
            check["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")


def _described(cls: Any) -> dict[str, Any]:
    config = getattr(cls, "config", None)
    return {
        "name": cls.name or cls.__name__.removeprefix("Test"),
        "config": config and f"configs/backbones/{config}.yml",
        "forces": cls.forces,
        "note": cls.note,
        "size": _size(cls, config),
        "checks": {},
    }


def _size(cls: Any, config: str | None) -> dict[str, int]:
    """Parameters of the model and of its auxiliary head, as the configuration has them."""
    from fairchem.core.common.utils import load_config

    from ndem_ocp.testing import build

    path = ROOT / f"configs/backbones/{config}.yml"
    model = build(load_config(str(path))[0]["model"] if config else cls.model)
    head = model.output_heads["noisy_forces"]
    count = {
        "model": sum(p.numel() for p in model.parameters()),
        "auxiliary_head": sum(p.numel() for p in head.parameters()),
    }
    return {**count, "module": type(head.head).__name__}


def run() -> tuple[dict[str, Any], int]:
    """Results of the contract, and pytest's exit status."""
    from fairchem_kit.provenance import provenance

    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    status = pytest.main([*options, *(str(ROOT / test) for test in TESTS)], plugins=[recorder])
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    found = {**provenance(ROOT), "versions": versions, "backbones": recorder.backbones}
    return found, int(status)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = ["backbone", "forces", "f' (parameters of all)", *CHECKS.values()]
    rows = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    notes = []
    for entry in found["backbones"].values():
        mark = ""
        if entry["note"]:
            notes.append(f"{len(notes) + 1}. {entry['name']}, {entry['forces']}: {entry['note']}")
            mark = f" ({len(notes)})"
        size = entry["size"]
        head_cell = f"{size['module']} ({size['auxiliary_head']:,} of {size['model']:,})"
        name = entry["name"]
        if entry["config"]:
            name = f"[{name}](../{entry['config']})"
        cells = [f"{name}{mark}", entry["forces"], head_cell]
        cells += [_cell(entry["checks"].get(check, {})) for check in CHECKS]
        rows.append(f"| {' | '.join(cells)} |")
    hardware, versions = found["hardware"], found["versions"]
    rows += [
        "",
        "Errors are the larger of the main forces' and f' under rotation, translation and "
        'renumbering, relative to the largest component; "-": does not apply. '
        f"fairchem-core {versions['fairchem-core']}, torch {versions['torch']}, "
        f"{hardware['cpu']}, commit {found['commit'][:10]}; "
        "[all numbers](../results/backbones.json).",
        "",
        *notes,
    ]
    return "\n".join(rows)


def _cell(check: dict[str, Any]) -> str:
    if check.get("outcome") == "skipped":
        return "-"
    if check.get("outcome") != "passed":
        return "**failed**" if check else "not run"
    if "forces_error" in check:
        return f"{max(check['forces_error'], check['noisy_forces_error']):.0e}"
    return f"{check['gradient_error']:.0e}" if "gradient_error" in check else "yes"


def filled(text: str, found: dict[str, Any]) -> str:
    """The page with its table written anew."""
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{START}\n{table(found)}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the page")
    parser.add_argument("--from-results", action="store_true", help="run nothing")
    args = parser.parse_args()
    status = 0
    if args.check or args.from_results:
        found = json.loads(RESULTS.read_text())
    else:
        found, status = run()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old, found)
    if args.check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(in_checkout(main))
