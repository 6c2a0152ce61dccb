"""Output heads on TorchMD-NET features: torchmd-net's own output models under fairchem.

Gradient forces: ``ndem_energy_gradient_head`` around ``torchmd_scalar_head``.
"""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import Tensor, nn
from torch_geometric.data import Batch

from ndem_ocp.models.torchmd import require_torchmd


class _OutputModelHead(nn.Module, HeadInterface):
    """An output model of torchmd-net as a head.

    Args:
        backbone: a TorchMD-NET backbone.
        kind: name of the class in ``torchmdnet.models.output_modules``.
        output: name of the output.
        reduce: "sum" or "mean" over a structure's atoms.
    """

    def __init__(self, backbone: nn.Module, kind: str, output: str, reduce: str = "sum") -> None:
        super().__init__()
        self.output = output
        self.output_model = getattr(require_torchmd("models.output_modules"), kind)(
            backbone.hidden_channels, activation=backbone.activation, reduce_op=reduce
        )

    def _per_atom(self, data: Batch, emb: dict[str, Tensor]) -> Tensor:
        return self.output_model.pre_reduce(
            emb["node_embedding"],
            emb["vector_embedding"],
            data.atomic_numbers.long(),
            data.pos,
            data.batch,
        )

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{output: (B,)}."""
        reduced = self.output_model.reduce(
            self._per_atom(data, emb), data.batch, num_systems=data.natoms.numel()
        )
        return {self.output: self.output_model.post_reduce(reduced).view(-1)}


@registry.register_model("torchmd_scalar_head")
class TorchMDScalarHead(_OutputModelHead):
    """A scalar per structure from scalar and vector features (EquivariantScalar;
    Scalar on TensorNet).

    Args:
        output: name of the output, such as energy or gap.
        reduce: "sum" or "mean" over a structure's atoms.
    """

    def __init__(self, backbone: nn.Module, output: str = "energy", reduce: str = "sum") -> None:
        super().__init__(backbone, f"{backbone.output_prefix}Scalar", output, reduce)


@registry.register_model("torchmd_dipole_head")
class TorchMDDipoleHead(_OutputModelHead):
    """Norm of the dipole moment, | sum_i q_i (r_i - r_com) + mu_i | (EquivariantDipoleMoment;
    without mu_i on TensorNet)."""

    def __init__(self, backbone: nn.Module, output: str = "mu") -> None:
        super().__init__(backbone, f"{backbone.output_prefix}DipoleMoment", output)


@registry.register_model("torchmd_spatial_extent_head")
class TorchMDSpatialExtentHead(_OutputModelHead):
    """Electronic spatial extent, sum_i q_i | r_i - r_com |^2 (ElectronicSpatialExtent)."""

    def __init__(self, backbone: nn.Module, output: str = "r2") -> None:
        super().__init__(backbone, "ElectronicSpatialExtent", output)


@registry.register_model("torchmd_vector_head")
class TorchMDVectorHead(_OutputModelHead):
    """A vector per atom from gated vector features: direct forces (EquivariantVectorOutput)."""

    def __init__(self, backbone: nn.Module, output: str = "forces") -> None:
        super().__init__(backbone, "EquivariantVectorOutput", output)

    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """{output: (N, 3)}."""
        return {self.output: self._per_atom(data, emb).view(-1, 3)}


@registry.register_model("ndem_torchmd_vector_head")
class TorchMDAuxiliaryHead(TorchMDVectorHead):
    """f' of Eq. 17 on TorchMD-NET features."""

    def __init__(self, backbone: nn.Module, output: str = "noisy_forces") -> None:
        super().__init__(backbone, output)
