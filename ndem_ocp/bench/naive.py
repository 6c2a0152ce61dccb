"""The simplest implementation of NDeM: the model runs on X, then again on X + eps.

The reference for the joint forward pass, not slowed down on purpose: upstream's model, no auxiliary
head in the first pass, the same losses, one backward pass.
"""

from __future__ import annotations

import copy
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch_geometric.data import Batch

from ndem_ocp.models import AUXILIARY_OUTPUT, TwoViewHydra
from ndem_ocp.models.views import EPS, JOINT
from ndem_ocp.trainer import NDeMTrainer

TWO_PASS_MODEL = "ndem_ocp.bench.naive.TwoPassHydra"


@registry.register_model("ndem_two_pass_hydra")
class TwoPassHydra(TwoViewHydra):
    """Outputs and weights of :class:`TwoViewHydra` with a separate head, two forward passes per
    step.

    Every structure of the batch gets its second view (``fraction: 1``).
    """

    def forward(self, data: Batch) -> dict[str, Any]:
        if EPS not in data:
            return super().forward(data)
        clean = HydraModel.forward(self, data)
        noisy = copy.copy(data)
        noisy.pos = data.pos + data[EPS]
        noisy[JOINT] = True  # makes the auxiliary head run
        second = HydraModel.forward(self, noisy)[AUXILIARY_OUTPUT]
        clean[AUXILIARY_OUTPUT] = second[AUXILIARY_OUTPUT] if isinstance(second, dict) else second
        return clean


class NaiveTrainer(NDeMTrainer):
    """The NDeM trainer on a :class:`TwoPassHydra`."""

    def load_model(self) -> None:
        self.config["model"] = {**self.config["model"], "name": TWO_PASS_MODEL}
        super().load_model()
