"""The component that logs metrics in the units that are usual in the literature."""

from __future__ import annotations

from typing import Any

from fairchem.core.modules.evaluator import Evaluator

from fairchem_kit.training.component import Component
from fairchem_kit.units.metrics import add_unit_metrics, unit_metrics


class UnitMetrics(Component):
    """Adds metrics in the units that are set for the outputs."""

    def prepare(self, inference_only: bool) -> None:
        self._named = unit_metrics(self.config.get("outputs") or {})

    def after_metrics(self, metrics: dict[str, Any], evaluator: Evaluator) -> None:
        add_unit_metrics(metrics, self._named)
