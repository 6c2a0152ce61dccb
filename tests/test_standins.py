"""Stand-ins for the compiled PyG extensions, against naive loops and their callers."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

import ndem_ocp
import ndem_ocp_standins

STATUS = ndem_ocp_standins.status()
if any(where != "stand-in" for where in STATUS.values()):
    pytest.skip(f"real packages are installed: {STATUS}", allow_module_level=True)

# Only now, and not by an import statement: these exist through the import above.
torch_cluster = importlib.import_module("torch_cluster")
torch_scatter = importlib.import_module("torch_scatter")
torch_sparse = importlib.import_module("torch_sparse")

ROOT = Path(__file__).resolve().parents[1]
REDUCTIONS = ("sum", "add", "mean", "min", "max", "mul")


def run_python(code: str, *paths: Path, flags: tuple[str, ...] = ()) -> str:
    """Run code in a fresh interpreter with `paths` and the project on sys.path."""
    head = f"import sys; sys.path[:0] = {[str(p) for p in (*paths, ROOT)]!r}\n"
    done = subprocess.run(
        [sys.executable, *flags, "-c", head + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def reduce_by_loop(rows: torch.Tensor, groups: list[int], size: int, reduce: str) -> torch.Tensor:
    """Reduce `rows` (E, *) along the first dimension, one group after the other."""
    out = []
    for group in range(size):
        members = [row for row, g in zip(rows, groups, strict=True) if g == group]
        if not members:
            fill = 1 if reduce == "mul" else 0
            out.append(torch.full_like(rows[0], fill))
            continue
        stack = torch.stack(members)
        if reduce in ("sum", "add"):
            out.append(stack.sum(0))
        elif reduce == "mean":
            total = stack.sum(0)
            exact = total.is_floating_point()
            out.append(total / len(members) if exact else total // len(members))
        elif reduce == "mul":
            out.append(stack.prod(0))
        else:
            out.append(stack.amin(0) if reduce == "min" else stack.amax(0))
    return torch.stack(out).to(rows.dtype)


def sample(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype, generator=generator)
    return torch.randint(-5, 6, shape, dtype=dtype, generator=generator)


# ---------------------------------------------------------------- scatter


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int32])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("ordered", [True, False])
def test_scatter_equals_a_loop(reduce, dtype, dim, ordered):
    groups = [3, 0, 0, 4, 3, 3, 0]
    groups = sorted(groups) if ordered else groups
    src = sample((7, 7, 7), dtype)
    out = torch_scatter.scatter(src, torch.tensor(groups), dim=dim, dim_size=6, reduce=reduce)
    expected = reduce_by_loop(src.movedim(dim, 0), groups, 6, reduce).movedim(0, dim)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scatter_with_an_index_of_full_shape(reduce):
    src = sample((6, 3), torch.float64)
    index = torch.randint(0, 4, (6, 3), generator=torch.Generator().manual_seed(1))
    out = torch_scatter.scatter(src, index, dim=0, dim_size=5, reduce=reduce)
    for column in range(3):
        expected = reduce_by_loop(src[:, column], index[:, column].tolist(), 5, reduce)
        torch.testing.assert_close(out[:, column], expected)


def test_scatter_defaults_to_the_last_dimension_and_the_largest_index():
    out = torch_scatter.scatter(torch.ones(2, 3), torch.tensor([0, 2, 2]))
    assert out.tolist() == [[1, 0, 2], [1, 0, 2]]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scatter_of_nothing(reduce):
    src, index = torch.empty(0, 3, requires_grad=True), torch.empty(0, dtype=torch.int64)
    assert torch_scatter.scatter(src, index, dim=0, reduce=reduce).shape == (0, 3)
    out = torch_scatter.scatter(src, index, dim=0, dim_size=2, reduce=reduce)
    assert out.tolist() == [[float(reduce == "mul")] * 3] * 2
    out.sum().backward()


@pytest.mark.parametrize("name", ["scatter_min", "scatter_max"])
def test_extremes_give_the_first_position(name):
    src = torch.tensor([[2.0, 1.0], [2.0, 5.0], [-1.0, 5.0], [7.0, 1.0]])
    index = torch.tensor([0, 0, 0, 3])
    values, arg = getattr(torch_scatter, name)(src, index, dim=0, dim_size=5)
    if name == "scatter_min":
        assert values[0].tolist() == [-1, 1]
        assert arg[0].tolist() == [2, 0]
    else:
        assert values[0].tolist() == [2, 5]
        assert arg[0].tolist() == [0, 1]
    assert values[3].tolist() == [7, 1]
    assert arg[3].tolist() == [3, 3]
    assert values[[1, 2, 4]].eq(0).all()
    assert arg[[1, 2, 4]].eq(4).all()


def test_extremes_keep_nan_and_infinity():
    src = torch.tensor([1.0, float("nan"), float("-inf")])
    values, arg = torch_scatter.scatter_max(src, torch.tensor([0, 0, 1]))
    assert values[0].isnan()
    assert arg.tolist() == [1, 2]
    assert values[1] == float("-inf")


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scatter_gradients(reduce):
    src = sample((6, 3), torch.float64).requires_grad_()
    index = torch.tensor([2, 0, 2, 4, 0, 0])

    def reduced(x):
        return torch_scatter.scatter(x, index, dim=0, dim_size=5, reduce=reduce)

    assert torch.autograd.gradcheck(reduced, (src,))
    if reduce != "mul":
        assert torch.autograd.gradgradcheck(reduced, (src,))


def test_out_is_added_to_or_refused():
    index = torch.tensor([0, 0, 1])
    out = torch.full((2,), 10.0)
    assert torch_scatter.scatter(torch.ones(3), index, out=out) is out
    assert out.tolist() == [12, 11]
    out = torch.full((2,), 2.0)
    torch_scatter.scatter_mul(torch.full((3,), 3.0), index, out=out)
    assert out.tolist() == [18, 6]
    for reduce in ("mean", "min", "max"):
        with pytest.raises(NotImplementedError, match="pip install torch-scatter"):
            torch_scatter.scatter(torch.ones(3), index, out=out, reduce=reduce)
    with pytest.raises(ValueError, match="reduce must be"):
        torch_scatter.scatter(torch.ones(3), index, reduce="median")


def test_broadcast():
    from torch_scatter.utils import broadcast

    index, other = torch.tensor([0, 1]), torch.zeros(3, 2, 4)
    for dim in (1, -2):
        full = broadcast(index, other, dim)
        assert full.shape == other.shape
        assert full[2, :, 3].tolist() == [0, 1]
    assert broadcast(index.view(1, 2), other, 1)[1, :, 2].tolist() == [0, 1]


# ---------------------------------------------------------------- segment


@pytest.mark.parametrize("reduce", REDUCTIONS[:-1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_segments_equal_a_loop(reduce, dtype):
    src = sample((6, 3), dtype)
    groups, pointer = [0, 0, 2, 2, 2, 3], torch.tensor([0, 2, 2, 5, 6, 6])
    expected = reduce_by_loop(src, groups, 5, reduce)
    coo = torch_scatter.segment_coo(src, torch.tensor(groups), dim_size=5, reduce=reduce)
    torch.testing.assert_close(coo, expected)
    torch.testing.assert_close(torch_scatter.segment_csr(src, pointer, reduce=reduce), expected)
    # The same along another dimension, with one and with several pointers.
    wide = src.t().contiguous()
    for leading in (1, 3):
        many = pointer.expand(leading, -1)
        out = torch_scatter.segment_csr(wide, many, reduce=reduce)
        torch.testing.assert_close(out, expected.t())
        index = torch.tensor(groups).expand(leading, -1)
        out = torch_scatter.segment_coo(wide, index, dim_size=5, reduce=reduce)
        torch.testing.assert_close(out, expected.t())


def test_segment_csr_leaves_out_what_no_range_holds():
    src = torch.arange(6)
    assert torch_scatter.segment_csr(src, torch.tensor([1, 3, 3, 5])).tolist() == [3, 0, 7]
    assert torch_scatter.segment_csr(src, torch.tensor([0])).shape == (0,)
    empty = torch.empty(0, 2)
    assert torch_scatter.segment_csr(empty, torch.tensor([0, 0]), reduce="max").tolist() == [[0, 0]]


@pytest.mark.parametrize("reduce", REDUCTIONS[:-1])
def test_segment_gradients(reduce):
    src = sample((5, 2), torch.float64).requires_grad_()
    pointer, index = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 2, 2, 2])
    csr = lambda x: torch_scatter.segment_csr(x, pointer, reduce=reduce)  # noqa: E731
    coo = lambda x: torch_scatter.segment_coo(x, index, reduce=reduce)  # noqa: E731
    assert torch.autograd.gradcheck(csr, (src,))
    assert torch.autograd.gradcheck(coo, (src,))


def test_gather_repeats_rows():
    src = sample((3, 2), torch.float64).requires_grad_()
    pointer, index = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 2, 2, 2])
    assert torch.equal(torch_scatter.gather_csr(src, pointer), src[index])
    assert torch.equal(torch_scatter.gather_coo(src, index), src[index])
    wide = torch_scatter.gather_csr(src.t().contiguous(), pointer.view(1, -1).expand(2, -1))
    assert torch.equal(wide, src[index].t())
    assert torch.autograd.gradcheck(lambda x: torch_scatter.gather_csr(x, pointer), (src,))


# ---------------------------------------------------------------- SparseTensor


def sparse_example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    row = torch.randint(0, 5, (30,), generator=generator)
    row[row == 2] = 3  # an empty row
    col = torch.randint(0, 4, (30,), generator=generator)
    return row, col, torch.arange(30)


def test_entries_are_sorted_and_copies_keep_their_order():
    row, col, value = sparse_example()
    matrix = torch_sparse.SparseTensor(row=row, col=col, value=value, sparse_sizes=(6, 4))
    expected = sorted(zip(row.tolist(), col.tolist(), value.tolist(), strict=True))
    got = zip(*(part.tolist() for part in matrix.coo()), strict=True)
    assert list(got) == expected
    assert matrix.sparse_sizes() == (6, 4)
    assert matrix.sizes() == [6, 4]
    assert matrix.nnz() == 30
    counts = [row.eq(r).sum().item() for r in range(6)]
    assert matrix.storage.rowcount().tolist() == counts
    assert matrix.storage.rowptr().tolist() == [0, *itertools.accumulate(counts)]
    again = torch_sparse.SparseTensor(
        rowptr=matrix.storage.rowptr(), col=matrix.storage.col(), sparse_sizes=(6, 4)
    )
    assert torch.equal(again.storage.row(), matrix.storage.row())
    assert not again.has_value()


def test_rows_are_selected_with_repeats():
    row, col, value = sparse_example()
    matrix = torch_sparse.SparseTensor(row=row, col=col, value=value, sparse_sizes=(6, 4))
    wanted = torch.tensor([4, 2, 0, 4, 5, 3])
    taken = matrix[wanted]
    expected = []
    for place, source in enumerate(wanted.tolist()):
        entries = zip(*(part.tolist() for part in matrix.coo()), strict=True)
        expected += [(place, c, v) for r, c, v in entries if r == source]
    assert list(zip(*(part.tolist() for part in taken.coo()), strict=True)) == expected
    assert taken.sparse_sizes() == (6, 4)
    mask = torch.tensor([True, False, True, False, False, True])
    assert torch.equal(
        matrix[mask].storage.value(), matrix[mask.nonzero().view(-1)].storage.value()
    )
    assert matrix[torch.empty(0, dtype=torch.int64)].nnz() == 0
    nothing = torch.empty(0, dtype=torch.int64)
    empty = torch_sparse.SparseTensor(row=nothing, col=nothing, sparse_sizes=(3, 3))
    assert empty[torch.tensor([0, 2])].nnz() == 0
    assert empty.sum(dim=1).tolist() == [0, 0, 0]


def test_values_are_set_and_summed():
    row, col, value = sparse_example()
    matrix = torch_sparse.SparseTensor(row=row, col=col, value=value, sparse_sizes=(6, 4))
    dense = torch.zeros(6, 4, dtype=torch.int64).index_put((row, col), value, accumulate=True)
    assert torch.equal(matrix.sum(dim=1), dense.sum(1))
    assert torch.equal(matrix.sum(dim=0), dense.sum(0))
    assert matrix.sum() == value.sum()
    bare = matrix.set_value(None)
    assert bare.sum(dim=1).tolist() == matrix.storage.rowcount().tolist()
    assert matrix.has_value()
    assert not bare.has_value()
    matrix.set_value_(torch.arange(30) * 2, layout="coo")
    assert matrix.storage.value().tolist() == list(range(0, 60, 2))
    weights = sample((30, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: matrix.set_value(w)[row].sum(dim=1), (weights,))


def test_wrong_sparse_input_is_refused():
    index = torch.tensor([0, 3])
    with pytest.raises(ValueError, match="outside"):
        torch_sparse.SparseTensor(row=index, col=index, sparse_sizes=(3, 3))
    with pytest.raises(ValueError, match="needs `col`"):
        torch_sparse.SparseTensor(row=index)
    matrix = torch_sparse.SparseTensor(row=index, col=index)
    for refused in (lambda: matrix[0], lambda: matrix[:, index], lambda: matrix.t()):
        with pytest.raises(NotImplementedError, match="pip install torch-sparse"):
            refused()


# ---------------------------------------------------------------- torch_cluster


def radius_by_loop(x, y, r, batch_x, batch_y, limit, skip_same):
    pairs = []
    for i in range(len(y)):
        near = [
            ((x[j] - y[i]).square().sum().item(), j)
            for j in range(len(x))
            if batch_x[j] == batch_y[i] and not (skip_same and i == j)
        ]
        near = sorted(pair for pair in near if pair[0] < r * r)
        pairs += [(i, j) for j in sorted(j for _, j in near[:limit])]
    return pairs


BATCHES = [[0] * 12, [0] * 4 + [1] * 5 + [3] * 3]  # the second one skips a graph


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("limit", [2, 32, None])
@pytest.mark.parametrize("loop", [True, False])
def test_radius_graph_equals_a_loop(batch, limit, loop, monkeypatch):
    # Small blocks, so that their seams are crossed.
    monkeypatch.setattr(sys.modules["torch_cluster.neighbours"], "_PAIRS_AT_ONCE", 20)
    x = sample((12, 3), torch.float64)
    edges = torch_cluster.radius_graph(
        x, r=1.7, batch=torch.tensor(batch), loop=loop, max_num_neighbors=limit
    )
    expected = radius_by_loop(x, x, 1.7, batch, batch, limit, not loop)
    assert edges.flip(0).t().tolist() == [list(pair) for pair in expected]
    turned = torch_cluster.radius_graph(
        x, 1.7, torch.tensor(batch), loop, limit, flow="target_to_source"
    )
    assert torch.equal(turned, edges.flip(0))


def test_radius_between_two_sets():
    x, y = sample((9, 2), torch.float32), sample((6, 2), torch.float32, seed=1)
    batch_x, batch_y = [0] * 4 + [2] * 5, [0, 0, 1, 1, 2, 2]
    pairs = torch_cluster.radius(x, y, 1.0, torch.tensor(batch_x), torch.tensor(batch_y))
    expected = radius_by_loop(x, y, 1.0, batch_x, batch_y, 32, False)
    assert pairs.t().tolist() == [list(pair) for pair in expected]


def test_radius_edge_cases():
    line = torch.tensor([0.0, 1.0, 3.0])
    assert torch_cluster.radius_graph(line, r=1.0).shape == (2, 0)  # the radius is left out
    assert torch_cluster.radius_graph(line, r=1.01).tolist() == [[1, 0], [0, 1]]
    assert torch_cluster.radius_graph(torch.empty(0, 3), r=1.0).shape == (2, 0)
    with pytest.raises(ValueError, match="sorted"):
        torch_cluster.radius_graph(line, 1.0, torch.tensor([1, 0, 0]))


def test_nearest_neighbours():
    x = sample((10, 3), torch.float64)
    batch = torch.tensor([0] * 6 + [1] * 3 + [2])
    edges = torch_cluster.knn_graph(x, 2, batch)
    expected = []
    for i in range(10):
        others = [j for j in range(10) if batch[j] == batch[i] and j != i]
        others.sort(key=lambda j: (x[j] - x[i]).norm().item())
        expected += [[j, i] for j in others[:2]]
    assert edges.t().tolist() == expected
    assert torch_cluster.knn(x, x, 1, batch, batch).tolist() == [list(range(10))] * 2
    assert "batch_size" in torch_cluster.knn.__doc__  # earlier torch-geometric looks for it
    with pytest.raises(NotImplementedError, match="cosine"):
        torch_cluster.knn(x, x, 1, cosine=True)


# ---------------------------------------------------------------- the import hooks


def test_install_is_idempotent():
    before = list(sys.meta_path)
    ndem_ocp_standins.install()
    importlib.reload(ndem_ocp_standins)
    assert sys.meta_path == before
    assert ndem_ocp_standins.status() == dict.fromkeys(ndem_ocp_standins.STAND_INS, "stand-in")


def test_start_up_is_light():
    code = """
        import ndem_ocp_standins
        assert not {"typing", "re", "importlib.util", "torch"} & set(sys.modules)
        assert ndem_ocp_standins.status()["torch_scatter"] == "stand-in"
        print(sorted({"torch", "numpy", "torch_scatter"} & set(sys.modules)))
    """
    # Without site: other packages' .pth files load modules of their own.
    assert run_python(code, flags=("-S",)) == "[]"


def test_an_installed_package_wins(tmp_path):
    (tmp_path / "torch_scatter").mkdir()
    (tmp_path / "torch_scatter" / "__init__.py").write_text("scatter = 'real'\n")
    info = tmp_path / "torch_scatter-9.8.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-scatter\nVersion: 9.8.7\n")
    code = """
        import ndem_ocp_standins
        import torch_scatter
        assert torch_scatter.scatter == "real"
        try:
            from torch_scatter import scatter_std
        except ImportError as error:
            assert "ndem" not in str(error)  # its errors are its own
        print(ndem_ocp_standins.status()["torch_scatter"])
    """
    assert run_python(code, tmp_path) == "installed 9.8.7"


def test_a_finder_appended_later_takes_precedence():
    code = """
        import importlib.machinery, types
        import ndem_ocp_standins
        class Loader:
            def create_module(self, spec):
                return types.ModuleType(spec.name)
            def exec_module(self, module):
                module.real = True
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch_sparse":
                    return importlib.machinery.ModuleSpec(name, Loader())
        sys.meta_path.append(Finder())
        import torch_sparse
        print(torch_sparse.real, ndem_ocp_standins.status()["torch_sparse"])
    """
    assert run_python(code) == "True installed (version unknown)"


@pytest.mark.parametrize(
    ("module", "name"),
    [(torch_scatter, "scatter_std"), (torch_sparse, "spspmm"), (torch_cluster, "fps")],
)
def test_uncovered_names_say_how_to_get_them(module, name):
    package = module.__name__
    sentence = f"{name} is not covered .* pip install {package.replace('_', '-')} .*data.pyg.org"
    assert not hasattr(module, name)
    with pytest.raises(NotImplementedError, match=sentence):
        getattr(module, name)
    with pytest.raises(ImportError, match=sentence):
        exec(f"from {package} import {name}", {})
    with pytest.raises(AttributeError):
        module.__no_such_probe__  # noqa: B018


# ---------------------------------------------------------------- torch-geometric


def test_pyg_sees_what_it_can_use():
    typing = pytest.importorskip("torch_geometric.typing")
    assert typing.WITH_TORCH_SCATTER
    assert typing.torch_scatter is torch_scatter
    # Otherwise it would call compiled operators of torch-sparse.
    assert not typing.WITH_TORCH_SPARSE


def test_pyg_imports_without_a_warning():
    pytest.importorskip("torch_geometric")
    code = """
        import warnings
        import torch
        import ndem_ocp_standins
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*torch-(cluster|scatter|sparse)")
        from torch_geometric.nn import radius_graph
        print(radius_graph(torch.tensor([[0.0], [1.0]]), 2.0).tolist())
    """
    assert run_python(code) == "[[1, 0], [0, 1]]"


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max", "mul", "any"])
def test_pyg_scatter(reduce):
    utils = pytest.importorskip("torch_geometric.utils")
    src, groups = sample((6, 2), torch.float64), [1, 0, 1, 3, 0, 0]
    out = utils.scatter(src, torch.tensor(groups), dim=0, dim_size=4, reduce=reduce)
    if reduce != "any":
        torch.testing.assert_close(out, reduce_by_loop(src, groups, 4, reduce))
    assert out.shape == (4, 2)


def test_pyg_segment_softmax_and_argmax():
    utils = pytest.importorskip("torch_geometric.utils")
    from torch_geometric.utils._scatter import scatter_argmax

    pointer, index = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 2, 2, 2])
    src = sample((5, 2), torch.float64).requires_grad_()
    expected = torch.cat([src[:2].softmax(0), src[2:].softmax(0)])
    torch.testing.assert_close(utils.softmax(src, index), expected)
    torch.testing.assert_close(utils.softmax(src, ptr=pointer), expected)
    torch.testing.assert_close(utils.softmax(src.t(), ptr=pointer, dim=1), expected.t())
    assert torch.autograd.gradcheck(lambda x: utils.softmax(x, ptr=pointer), (src,))
    for reduce in ("sum", "mean", "min", "max"):
        out = utils.segment(src, pointer, reduce=reduce)
        torch.testing.assert_close(out, reduce_by_loop(src, index.tolist(), 3, reduce))
    best = scatter_argmax(src[:, 0].detach(), index, dim_size=3)
    assert best[0] == src[:2, 0].argmax()
    assert best[2] == 2 + src[2:, 0].argmax()


def test_pyg_layers_and_sparse_products():
    nn = pytest.importorskip("torch_geometric.nn")
    from torch_geometric import EdgeIndex

    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    x = sample((3, 4), torch.float32).requires_grad_()
    for layer in (nn.GCNConv(4, 2), nn.GATConv(4, 2), nn.SAGEConv(4, 2, aggr="max")):
        layer(x, edges).sum().backward()
    # A weight that needs a gradient is what torch-geometric would hand to torch-sparse.
    weight = sample((4,), torch.float32).requires_grad_()
    product = EdgeIndex(edges, sparse_size=(3, 3), sort_order="row").matmul(x, weight)
    dense = torch.zeros(3, 3).index_put((edges[0], edges[1]), weight)
    torch.testing.assert_close(product, dense @ x)


@pytest.mark.parametrize("batch", BATCHES)
def test_pyg_radius_graph(batch):
    nn = pytest.importorskip("torch_geometric.nn")
    x, batch = sample((12, 3), torch.float32), torch.tensor(batch)
    got = nn.radius_graph(x, r=1.7, batch=batch, max_num_neighbors=50)
    assert torch.equal(got, torch_cluster.radius_graph(x, 1.7, batch, max_num_neighbors=50))
    assert nn.pool.radius(x, x, 1.7, batch, batch).shape[0] == 2


# ---------------------------------------------------------------- fairchem models

GEMNET_SIZES = {
    "num_spherical": 3,
    "num_radial": 4,
    "num_blocks": 1,
    "emb_size_atom": 8,
    "emb_size_edge": 8,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "cutoff": 4.0,
    "max_neighbors": 8,
    "otf_graph": True,
}
TRIPLET_SIZES = {"emb_size_trip": 6, "emb_size_bil_trip": 6}
OC_SIZES = {
    **{f"emb_size_{kind}_{side}": 6 for kind in ("trip", "quad", "aint") for side in ("in", "out")},
    "emb_size_sbf": 4,
    "num_output_afteratom": 1,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "qint_tags": [0, 1, 2],
}
MODELS = {
    "gemnet_oc": {**GEMNET_SIZES, **OC_SIZES},
    "gemnet_t": {**GEMNET_SIZES, **TRIPLET_SIZES},
    "dimenetplusplus": {
        "hidden_channels": 8,
        "num_blocks": 1,
        "int_emb_size": 4,
        "out_emb_channels": 8,
        "num_spherical": 3,
        "num_radial": 3,
        "cutoff": 4.0,
        "otf_graph": True,
    },
    "painn": {"hidden_channels": 8, "num_layers": 2, "num_rbf": 8, "cutoff": 4.0},
}


# fairchem 1.10 uses interfaces that newer torch and torch-geometric deprecate.
fairchem_warnings = pytest.mark.filterwarnings("ignore::UserWarning")


def crystals(periodic: bool = True):
    """Two random boxes of 5 and 6 atoms as fairchem's batch."""
    from torch_geometric.data import Batch, Data

    boxes = []
    for seed, count in enumerate((5, 6)):
        pos = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 4.5
        boxes.append(
            Data(
                pos=pos,
                cell=torch.eye(3)[None] * 4.5,
                atomic_numbers=torch.arange(count) + 6,
                natoms=count,
                tags=torch.arange(count) % 3,
                fixed=torch.zeros(count),
                pbc=torch.tensor([[periodic] * 3]),
            )
        )
    return Batch.from_data_list(boxes)


def fairchem_model(name: str, **options):
    pytest.importorskip("fairchem.core")
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    torch.manual_seed(0)
    model = registry.get_model_class(name)(**MODELS[name], **options)
    for parameter in model.parameters():
        if not parameter.any():  # DimeNet++ starts with an output of zero
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_graph(edges: int, atoms: int, seed: int) -> dict[str, torch.Tensor]:
    """Edges with repeats, told apart by cell offsets, as in a small crystal."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "edge_index": torch.randint(0, atoms, (2, edges), generator=generator),
        "cell_offset": torch.randint(-1, 2, (edges, 3), generator=generator),
    }


def test_fairchem_triplets_equal_a_loop():
    indices = pytest.importorskip("fairchem.core.models.gemnet_oc.interaction_indices")
    graph, other = random_graph(25, 6, 0), random_graph(18, 6, 1)
    source, target = graph["edge_index"].tolist()
    source_o, target_o = other["edge_index"].tolist()

    got = indices.get_triplets(graph, num_atoms=6)
    expected = {(b, c) for c in range(25) for b in range(25) if b != c and target[b] == target[c]}
    assert set(zip(got["in"].tolist(), got["out"].tolist(), strict=True)) == expected
    assert len(got["in"]) == len(expected)
    assert got["out"].tolist() == sorted(got["out"].tolist())
    seen: dict[int, int] = {}
    for edge, place in zip(got["out"].tolist(), got["out_agg"].tolist(), strict=True):
        assert place == seen.get(edge, 0)
        seen[edge] = place + 1

    def same(offset: torch.Tensor) -> bool:
        return not bool(offset.any())

    got = indices.get_mixed_triplets(graph, other, num_atoms=6, to_outedge=True, return_adj=True)
    expected = {
        (i, o)
        for o in range(18)
        for i in range(25)
        if target[i] == source_o[o]
        and not (
            source[i] == target_o[o] and same(other["cell_offset"][o] + graph["cell_offset"][i])
        )
    }
    assert set(zip(got["in"].tolist(), got["out"].tolist(), strict=True)) == expected
    assert torch.equal(got["adj_edges"].storage.row(), got["out"])


def test_fairchem_quadruplets_equal_a_loop():
    indices = pytest.importorskip("fairchem.core.models.gemnet_oc.interaction_indices")
    main, inter = random_graph(14, 5, 2), random_graph(9, 5, 3)
    got = indices.get_quadruplets(main, inter, num_atoms=5)
    s, t = main["edge_index"].tolist()
    s_i, t_i = inter["edge_index"].tolist()
    cell, cell_i = main["cell_offset"].tolist(), inter["cell_offset"].tolist()

    def combine(*terms: tuple[int, list[int]]) -> list[int]:
        return [sum(sign * cell[k] for sign, cell in terms) for k in range(3)]

    expected = []
    for db, ba, ca in itertools.product(range(14), range(9), range(14)):  # d->b->a<-c
        if t[db] != s_i[ba] or t_i[ba] != t[ca]:
            continue
        if s[db] == t_i[ba] and combine((1, cell_i[ba]), (1, cell[db])) == [0, 0, 0]:
            continue
        if s_i[ba] == s[ca] and combine((1, cell[ca]), (-1, cell_i[ba])) == [0, 0, 0]:
            continue
        closing = combine((1, cell[db]), (1, cell_i[ba]), (-1, cell[ca]))
        if s[ca] == s[db] and closing == [0, 0, 0]:
            continue
        expected.append((db, ba, ca))
    inner, outer = got["trip_in_to_quad"], got["trip_out_to_quad"]
    found = zip(
        got["triplet_in"]["in"][inner].tolist(),
        got["triplet_in"]["out"][inner].tolist(),
        got["out"].tolist(),
        strict=True,
    )
    assert sorted(found) == sorted(expected)
    assert torch.equal(got["triplet_out"]["in"][outer], got["triplet_in"]["out"][inner])


def test_fairchem_graph_parallel_sum():
    """The part of gemnet_gp that uses `broadcast` (its forward fails in fairchem 1.10)."""
    block = pytest.importorskip("fairchem.core.models.gemnet_gp.layers.atom_update_block")
    src, groups = sample((5, 2), torch.float64), [2, 0, 2, 2, 0]
    out = block.scatter_sum(src, torch.tensor(groups), dim=0, dim_size=4)
    torch.testing.assert_close(out, reduce_by_loop(src, groups, 4, "sum"))


@fairchem_warnings
@pytest.mark.parametrize("name", sorted(MODELS))
def test_fairchem_models_run(name):
    model = fairchem_model(name)
    data = crystals()
    out = model(data)
    assert out["energy"].numel() == 2
    assert out["forces"].shape == (11, 3)
    (out["energy"].sum() + out["forces"].square().sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


@fairchem_warnings
@pytest.mark.parametrize("name", ["gemnet_oc", "gemnet_t", "dimenetplusplus"])
def test_fairchem_forces_are_the_gradient_of_the_energy(name):
    """Holds only if the reductions and their gradients are right."""
    model, data = fairchem_model(name), crystals()
    forces = model(data.clone())["forces"].detach()
    step = 1e-2  # the graph is single precision in fairchem
    moves = [(0, 0), (4, 2), (7, 1)]
    slopes = []
    for atom, axis in moves:
        energies = []
        for sign in (1, -1):
            moved = data.clone()
            moved.pos = data.pos.clone()
            moved.pos[atom, axis] += sign * step
            energies.append(model(moved)["energy"].detach().sum())
        slopes.append((energies[0] - energies[1]) / (2 * step))
    got = torch.stack([forces[move] for move in moves])
    error = (got + torch.stack(slopes)).abs().max() / forces.abs().max()
    assert error < 0.03


@fairchem_warnings
def test_fairchem_model_without_periodic_boundaries():
    """fairchem takes radius_graph from torch-geometric here."""
    data = crystals(periodic=False)
    out = fairchem_model("painn", use_pbc=False)(data)
    assert out["energy"].isfinite().all()
    assert out["forces"].shape == (11, 3)


def test_a_folder_of_the_projects_name_hides_nothing(tmp_path):
    """A script beside a clone: the clone's folder is called ndem_ocp and is no package."""
    (tmp_path / "ndem_ocp" / "docs").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text("import ndem_ocp; print(ndem_ocp.__version__, ndem_ocp.__file__)\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    plain = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert plain.stdout.split()[0] == ndem_ocp.__version__, plain.stderr
    # an ordinary package of that name is what was asked for
    (tmp_path / "ndem_ocp" / "__init__.py").write_text("__version__ = 'mine'\n")
    mine = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert mine.stdout.split()[0] == "mine", mine.stderr


# ---------------------------------------------------------------- other packages


def test_scipys_sph_harm_is_put_back_where_it_is_gone(tmp_path):
    """As in scipy 1.17 and newer; fairchem's GemNet imports it."""
    package = tmp_path / "scipy" / "special"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("def sph_harm_y(*given):\n    return given\n")
    code = """
    import ndem_ocp_standins
    from scipy.special import sph_harm
    print(sph_harm(1, 2, "azimuth", "polar"))
    """
    assert run_python(code, tmp_path) == "(2, 1, 'polar', 'azimuth')"


def test_the_sph_harm_that_is_put_back_is_scipys():
    from types import SimpleNamespace

    from scipy import special

    from ndem_ocp_standins import _finder

    if not hasattr(special, "sph_harm_y"):
        pytest.skip("scipy before 1.15")
    lent = SimpleNamespace(sph_harm_y=special.sph_harm_y)
    _finder._lend_sph_harm(lent)
    for m, n in ((0, 0), (-1, 2), (3, 4)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            expected = special.sph_harm(m, n, 0.3, 1.1)
        assert lent.sph_harm(m, n, 0.3, 1.1) == pytest.approx(expected, rel=1e-12)


def test_torchmd_nets_syntax_warnings_are_no_errors_here_and_others_are():
    """Python 3.12 warns when it compiles a file; the module's name is its path then."""
    name = "/env/lib/python3.12/site-packages/torchmdnet/datasets/md17.py"
    warnings.warn_explicit("invalid escape sequence", SyntaxWarning, name, 7)
    with pytest.raises(SyntaxWarning):
        warnings.warn_explicit("invalid escape sequence", SyntaxWarning, "/here/tests/a.py", 7)
