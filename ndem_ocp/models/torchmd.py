"""TorchMD-NET backbones under fairchem: the equivariant transformer (ET) and TensorNet.

The networks are torchmd-net's own. Only their neighbour search is replaced by fairchem's, so that
periodic cells of any shape work and nothing has to be compiled. Parameters keep torchmd-net's names
under ``backbone.representation_model`` and ``output_heads.*.output_model``, so that checkpoints of
torchmd-net, and of methods built on it, can be mapped by name.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_kit.errors import ConfigError
from fairchem_kit.native_messages import without_lines
from ndem_ocp.models.heads import calls_of


class _Edges(NamedTuple):
    """A neighbour list as torchmd-net's models expect it, including self-loops."""

    index: Tensor  # (2, E) | index[1] is the receiving atom
    length: Tensor  # (E,) | Angstrom, 0 on self-loops
    vector: Tensor  # (E, 3) | pos[index[0]] - pos[index[1]] with the image's shift, Angstrom


class _GivenEdges(nn.Module):
    """Replaces torchmd-net's neighbour search: returns the edges that the caller passes in.

    The edges are passed as the argument ``box``, which the networks hand through without reading
    it. So a forward stores nothing on the module.
    """

    def forward(self, pos: Tensor, batch: Tensor, box: _Edges) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(box)


def require_torchmd(module: str) -> Any:
    """Import a module of torchmd-net.

    Raises:
        ImportError: naming the extra to install.
    """
    try:
        with without_lines(_is_of_no_use):
            import warp

            warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)  # no banner
            warp.init()  # here, and not at the first kernel
        return importlib.import_module(f"torchmdnet.{module}")
    except ImportError as error:
        raise ImportError(
            "The TorchMD-NET backbones need torchmd-net 3.1 and torch 2.7 or newer: "
            f"in a checkout, pip install '.[molecules]' (or make env). Import error: {error}"
        ) from error


def _is_of_no_use(line: str) -> bool:
    """Whether a line of Warp only says that there is no GPU where torch sees none either."""
    return line.startswith("Warp CUDA") and not torch.cuda.is_available()


class _TorchMDBackbone(nn.Module, GraphModelMixin, BackboneInterface):
    """What both networks share: graph, differentiable positions, batch.

    Args:
        network: torchmd-net's class.
        hidden_channels, num_layers, num_rbf, activation: as torchmd-net has them.
        cutoff, cutoff_lower: in Angstrom.
        use_pbc: search neighbours across cell boundaries. A batch may also contain structures
            without periodicity.
        max_neighbors: largest number of edges per atom; the nearest are kept. If forces are
            gradients of the energy, no edge may be dropped: choose a number larger than any atom's
            number of neighbours within the cutoff.
        regress_forces: allow heads to differentiate with respect to the positions.
        **given: the network's other arguments.
    """

    ndem_auxiliary_head = "ndem_torchmd_vector_head"
    # prefix of torchmd-net's output models that also read vectors; the others only read scalars
    output_prefix = "Equivariant"
    # A batch's own edges describe X and not X + eps, so graphs are always built on the fly.
    otf_graph = True
    use_pbc_single = False
    enforce_max_neighbors_strictly = True

    def __init__(
        self,
        network: type[nn.Module],
        *,
        hidden_channels: int,
        num_layers: int,
        cutoff: float,
        num_rbf: int = 32,
        cutoff_lower: float = 0.0,
        activation: str = "silu",
        use_pbc: bool = True,
        max_neighbors: int = 64,
        regress_forces: bool = True,
        **given: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigError("model.backbone.num_layers must be at least 1.")
        self.hidden_channels = hidden_channels
        self.cutoff = cutoff
        self.activation = activation
        self.use_pbc = use_pbc
        self.max_neighbors = max_neighbors
        self.regress_forces = regress_forces
        self.representation_model = network(
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            num_rbf=num_rbf,
            cutoff_lower=cutoff_lower,
            cutoff_upper=cutoff,
            activation=activation,
            **given,
        )
        self.representation_model.distance = _GivenEdges()

    def _edges(self, data: Batch) -> _Edges:
        graph = self.generate_graph(data)
        loops = torch.arange(data.pos.shape[0], device=data.pos.device).expand(2, -1)
        vector = graph.edge_distance_vec
        return _Edges(
            torch.cat([graph.edge_index, loops], dim=1),
            torch.cat([graph.edge_distance, vector.new_zeros(loops.shape[1])]),
            torch.cat([vector, vector.new_zeros(loops.shape[1], 3)]),
        )

    def forward(self, data: Batch) -> dict[str, Tensor]:
        """{node_embedding: (N, C) scalars, vector_embedding: (N, 3, C) polar vectors}."""
        differentiate = self.regress_forces
        with torch.set_grad_enabled(torch.is_grad_enabled() or differentiate):
            if differentiate:
                data.pos.requires_grad_(True)
            scalars, vectors, *_ = self.representation_model(
                data.atomic_numbers.long(), data.pos, data.batch, box=self._edges(data)
            )
            return {"node_embedding": scalars, "vector_embedding": vectors}


@registry.register_model("torchmd_et_backbone")
class TorchMDETBackbone(_TorchMDBackbone):
    """TorchMD-NET's equivariant transformer (Thölke and De Fabritiis, ICLR 2022).

    Args:
        hidden_channels, num_layers, cutoff, trainable_rbf, and num_heads, num_rbf, rbf_type,
            activation, attn_activation, neighbor_embedding, distance_influence, max_z,
            vector_cutoff: of ``torchmdnet.models.torchmd_et.TorchMD_ET``. vector_cutoff makes the
            energy smooth where an atom leaves the cutoff; in published models it is off.
        cutoff_lower, use_pbc, max_neighbors, regress_forces: see the base class.
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 6,
        cutoff: float = 5.0,
        trainable_rbf: bool = False,
        **given: Any,
    ) -> None:
        super().__init__(
            require_torchmd("models.torchmd_et").TorchMD_ET,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            cutoff=cutoff,
            trainable_rbf=trainable_rbf,
            **given,
        )


@registry.register_model("torchmd_tensornet_backbone")
class TorchMDTensorNetBackbone(_TorchMDBackbone):
    """TensorNet (Simeon and De Fabritiis, NeurIPS 2023).

    Its features are 3 x 3 tensors per channel. Their antisymmetric parts are polar vectors, which
    direct force heads use. As in torchmd-net, scalar outputs depend on scalar features only.

    Args:
        hidden_channels, num_layers, cutoff, and num_rbf, rbf_type, trainable_rbf, activation,
            max_z, equivariance_invariance_group: of ``torchmdnet.models.tensornet.TensorNet``.
        cutoff_lower, use_pbc, max_neighbors, regress_forces: see the base class.
    """

    output_prefix = ""

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 2,
        cutoff: float = 4.5,
        **given: Any,
    ) -> None:
        module = require_torchmd("models.tensornet")
        super().__init__(
            module.TensorNet,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            cutoff=cutoff,
            static_shapes=False,
            **given,
        )
        # the tensors of the last layer; the network itself only returns scalars made from them
        self._vector_of = module.skewtensor_to_vector

    def forward(self, data: Batch) -> dict[str, Tensor]:
        with calls_of(self.representation_model.layers[-1]) as calls:
            embedding = super().forward(data)
        ((_, tensors),) = calls
        # The tensors are of size 1e-5; the network applies a layer norm to them. Vectors are
        # divided by the norm of the whole tensor, which is not zero where symmetry makes the
        # vectors zero.
        size = tensors.square().sum(dim=(1, 2), keepdim=True).mean(dim=-1, keepdim=True)
        vectors = self._vector_of(tensors) * torch.rsqrt(size.squeeze(1) + 1e-16)
        return {**embedding, "vector_embedding": vectors}
