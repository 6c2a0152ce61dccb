"""Heads for any backbone: an output that it computes itself, forces as the energy's gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError


@registry.register_model("ndem_output_head")
class OutputHead(nn.Module, HeadInterface):
    """Returns an output that the backbone itself has computed.

    For single-class models: an adapter makes such a model a backbone, which returns energy and
    forces together with the features that the auxiliary head needs.

    Args:
        backbone: not used.
        output_name: name of the output, such as energy or forces.
    """

    def __init__(self, backbone: nn.Module, output_name: str) -> None:
        super().__init__()
        self.output_name = output_name

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.output_name not in emb:
            raise ConfigError(
                f"The backbone has no output {self.output_name!r} (it has: {', '.join(emb)}). Does "
                "it need regress_forces: True?"
            )
        return {self.output_name: emb[self.output_name]}


@registry.register_model("ndem_energy_gradient_head")
class EnergyGradientHead(nn.Module, HeadInterface):
    """Energy from another head, forces as minus its gradient; needs pass_through_head_outputs.

    Args:
        backbone: with regress_forces and without direct_forces, so that positions have gradients.
        energy: {"module": ..., ...} of the energy head.
        force_scale: std_E / rms_F of the normalizers. As the energy is normalised, E* = (E - mean)
            / std_E, the forces must be normalised too: f* = F / rms_F = -(std_E / rms_F) dE*/dx.
            The NDeM trainer sets it from the normalizers of the configuration.

    Raises:
        ConfigError: in the forward, if the backbone's output does not depend on the positions.
    """

    def __init__(
        self, backbone: nn.Module, energy: dict[str, Any], force_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone_name = type(backbone).__name__
        self.force_scale = force_scale
        arguments = dict(energy)
        self.energy = registry.get_model_class(arguments.pop("module"))(backbone, **arguments)

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{energy: (B,), forces: (N, 3)}."""
        second_derivatives = torch.is_grad_enabled()
        with torch.enable_grad():
            energy = self.energy(data, emb)["energy"]
            if not (data.pos.requires_grad and energy.requires_grad):
                raise ConfigError(
                    f"The energy of {self.backbone_name} has no gradient with respect to the "
                    "positions: set regress_forces: True and direct_forces: False, where the "
                    "backbone has these keys, or use a direct force head."
                )
            (gradient,) = torch.autograd.grad(
                energy.sum(), data.pos, create_graph=second_derivatives
            )
        return {"energy": energy, "forces": -self.force_scale * gradient}


@contextlib.contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Record the calls of a module: a list of (positional arguments, result).

    For adapters of models that do not return their features: run the model's own forward inside
    this context, then read the input or output of one of its layers.
    """
    calls: list[tuple[tuple[Any, ...], Any]] = []
    handle = module.register_forward_hook(lambda _, given, result: calls.append((given, result)))
    try:
        yield calls
    finally:
        handle.remove()
