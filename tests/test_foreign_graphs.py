"""Backbones of other projects, whose generate_graph returns a tuple, a list, a named tuple."""

from __future__ import annotations

import sys
from collections import namedtuple

import pytest
import torch
from fairchem.core.common.registry import registry

from conftest import ROOT
from fairchem_kit.data.demo import make_demo
from ndem_ocp.models.graphs import edge_index_of
from ndem_ocp.testing import build, frames
from ndem_ocp.testing.views import collate, outputs

sys.path.insert(0, str(ROOT / "examples"))
from test_toy_backbone import MODEL
from toy_backbone import ToyBackbone

FIELDS = ("neighbors", "edge_distance", "cell_offsets", "edge_distance_vec", "edge_index",
          "offset_distances")  # fmt: skip
Graph = namedtuple("Graph", FIELDS)

#: How a stranger may hand over what is in fairchem's GraphData.
RETURNS = {
    "GraphData": lambda graph: graph,
    "dict": lambda graph: dict(vars(graph)),
    "tuple": lambda graph: tuple(getattr(graph, name) for name in FIELDS),
    "list": lambda graph: [getattr(graph, name) for name in FIELDS],
    "named tuple": lambda graph: Graph(*(getattr(graph, name) for name in FIELDS)),
    "few": lambda graph: (graph.edge_index, graph.edge_distance, graph.cell_offsets),
    "from source to target": lambda graph: (
        graph.edge_index, graph.edge_distance, -graph.edge_distance_vec, graph.cell_offsets.long()
    ),
}  # fmt: skip


class _View:
    """GraphData's two fields that the toy backbone reads, out of any container."""

    def __init__(self, graph):
        self.edge_index = edge_index_of(graph)
        fields = graph if isinstance(graph, dict) else getattr(graph, "__dict__", None)
        parts = fields.values() if fields else graph
        size = self.edge_index.shape[1]
        floats = [p for p in parts if isinstance(p, torch.Tensor) and p.shape == (size,)]
        self.edge_distance = next(p for p in floats if p.is_floating_point())


@pytest.fixture(scope="module", autouse=True)
def _registered():
    @registry.register_model("foreign_backbone")
    class ForeignBackbone(ToyBackbone):
        def __init__(self, returns: str, **options):
            super().__init__(**options)
            self.returns = RETURNS[returns]

        def generate_graph(self, data):
            return self.returns(super().generate_graph(data))

        def forward(self, data):
            plain = self.generate_graph
            self.generate_graph = lambda data: _View(plain(data))
            try:
                return super().forward(data)
            finally:
                self.generate_graph = plain


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    out = tmp_path_factory.mktemp("foreign") / "data"
    make_demo(out, size="small", progress=False)
    return frames(out)[:2]


def predicted(structures, returns, dtype):
    backbone = {**MODEL["backbone"], "model": "foreign_backbone", "returns": returns}
    model = build({**MODEL, "backbone": backbone}, dtype, coefficient=0.0)
    return {k: v.detach() for k, v in outputs(model(collate(structures, dtype))).items()}


@pytest.mark.parametrize("returns", RETURNS)
def test_every_container_runs_in_float64(structures, returns):
    expected = predicted(structures, "GraphData", torch.float64)
    found = predicted(structures, returns, torch.float64)
    for name, value in expected.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    single = predicted(structures, returns, torch.float32)
    assert not torch.equal(single["forces"].double(), expected["forces"])


def test_a_graph_without_edges_to_find_is_named():
    for graph in ((torch.ones(3),), [torch.ones(2, 3)], {"edges": 1}, object()):
        with pytest.raises(ValueError, match="without an edge index"):
            edge_index_of(graph)
