"""NDeM on a single-class model: the class becomes the backbone, its outputs become heads."""

from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, HeadInterface
from single_class_model import SingleClassModel
from torch import nn

from ndem_ocp.models import calls_of


@registry.register_model("single_class_backbone")
class SingleClassBackbone(SingleClassModel, BackboneInterface):
    ndem_auxiliary_head = "single_class_vector_head"

    def forward(self, data):
        with calls_of(self.norm) as calls:  # the layer that the features leave by
            outputs = super().forward(data)
        _, features = calls[0]
        return {"node_embedding": features, **outputs}


@registry.register_model("single_class_vector_head")
class VectorHead(nn.Module, HeadInterface):
    """f' from the vectors of the features, as the model's own forces are made."""

    def __init__(self, backbone):
        super().__init__()
        self.mix = nn.Linear(backbone.channels, backbone.channels, bias=False)
        self.gate = nn.Sequential(nn.Linear(backbone.channels, backbone.channels), nn.Sigmoid())
        self.out = nn.Linear(backbone.channels, 1, bias=False)

    def forward(self, data, emb):
        scalars, vectors = emb["node_embedding"][:, 0], emb["node_embedding"][:, 1:]
        mixed = self.mix(vectors) * self.gate(scalars)[:, None]
        return {"noisy_forces": self.out(mixed).squeeze(-1)}
