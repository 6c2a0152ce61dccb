"""EquiformerV2's auxiliary vector head, on fairchem's backbone and on ours."""

from __future__ import annotations

from typing import Any

from fairchem.core.common.registry import registry
from torch import nn

from ndem_ocp.models.equiformer import EquiformerV2ForceHead


class _Narrowed:
    """A proxy of a backbone with other channel counts; all other attributes are the backbone's."""

    def __init__(self, backbone: nn.Module, **counts: int) -> None:
        self._backbone = backbone
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        if name in self._counts:
            return self._counts[name]
        return getattr(self._backbone, name)


@registry.register_model("ndem_equiformer_v2_head")
class EquiformerV2AuxiliaryHead(EquiformerV2ForceHead):
    """fairchem's EquiformerV2 force head at a fraction of its attention width.

    At half width it adds 3.89M parameters to the 153M configuration (20 layers, L = 6, M = 3),
    which gives 157.5M, the 157M of the paper's Table 3. A full copy of the head gives 160.5M, as in
    DeNS.

    Args:
        backbone: EquiformerV2 backbone.
        width: factor on attn_hidden_channels and attn_alpha_channels.
    """

    def __init__(
        self, backbone: nn.Module, width: float = 0.5, output_name: str = "noisy_forces"
    ) -> None:
        narrowed = _Narrowed(
            backbone,
            attn_hidden_channels=max(1, round(width * backbone.attn_hidden_channels)),
            attn_alpha_channels=max(1, round(width * backbone.attn_alpha_channels)),
        )
        super().__init__(narrowed, output_name=output_name)
