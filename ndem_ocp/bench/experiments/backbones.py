"""Run the contract tests on every backbone: ``python -m ndem_ocp.bench.experiments.backbones``.

Results, with commit, versions and measured errors, are written to results/backbones.json; ``make
results`` then writes the table in docs/backbones.md.
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
RESULTS = ROOT / "results/backbones.json"
VERSIONS = ("fairchem-core", "torch", "torch_geometric", "e3nn", "numpy")


class Recorder:
    """A pytest plug-in that records the measurements of each contract class."""

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
    """Numbers of parameters of the model and of its auxiliary head, from the configuration."""
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
    """Results of the contract tests, and pytest's exit status."""
    from fairchem_kit.provenance import provenance

    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    status = pytest.main([*options, *(str(ROOT / test) for test in TESTS)], plugins=[recorder])
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    found = {**provenance(ROOT), "versions": versions, "backbones": recorder.backbones}
    return found, int(status)


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found, status = run()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(in_checkout(main))
