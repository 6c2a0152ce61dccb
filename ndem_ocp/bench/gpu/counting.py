"""What a step moves and multiplies on a GPU, counted operation by operation on the CPU.

Each operation below autograd is one kernel that reads its inputs and writes its results once. The
kernels of ``ndem_ocp.models.equiformer.kernels`` are not run for this: they return zeros of the
right shape, and their traffic is counted by formula.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# no kernel: views, and memory that nothing is written to
FREE = {
    *("view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "permute"),
    *("as_strided", "detach", "alias", "split", "split_with_sizes", "chunk", "unbind", "diagonal"),
    *("_unsafe_view", "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided"),
    *("new_empty_strided", "lift_fresh", "unfold", "narrow", "_local_scalar_dense"),
}
GATHERS = {"index", "index_select", "embedding", "gather"}  # read no more than they write
ADDS = {
    *("index_add_", "index_add", "scatter_add_", "scatter_add", "embedding_dense_backward"),
    *("index_put_", "_index_put_impl_", "scatter_reduce_", "scatter_reduce"),
}


class Operation(NamedTuple):
    name: str
    fixed: float  # bytes of weights and the like
    growing: float  # bytes of tensors that grow with the batch
    flops: float  # of matrix products
    grows: bool

    def of(self, growth: float) -> tuple[float, float]:
        """Bytes and products for a batch ``growth`` times as large."""
        times = growth if self.grows else 1.0
        return self.fixed + self.growing * growth, self.flops * times


class Count(TorchDispatchMode):
    """Within, ``operations`` gets every kernel.

    Args:
        atoms: of the batch, with a prime factor that no size of the model has: a tensor whose size
            is a multiple of it grows with the batch.
    """

    def __init__(self, atoms: int) -> None:
        super().__init__()
        self.atoms = atoms
        self.operations: list[Operation] = []
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self.paused and name not in FREE:
            inputs, outputs = _tensors((args, kwargs)), _tensors(out)
            moved = _moved(name, _tensors(args[:1]), inputs, outputs)
            self.add(name, moved, _flops(name, inputs))
        return out

    def add(self, name: str, moved: list[tuple[Tensor, float]], flops: float) -> None:
        """``moved``: tensors and how often each is read or written."""
        sizes = {False: 0.0, True: 0.0}
        for tensor, times in moved:
            grows = tensor.numel() > 0 and tensor.numel() % self.atoms == 0
            sizes[grows] += times * size_of(tensor)
        self.operations.append(Operation(name, sizes[False], sizes[True], flops, sizes[True] > 0))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def size_of(tensor: Tensor) -> int:
    """Bytes, an expanded dimension once."""
    count = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride()):
        count *= length if stride else 1
    return count


def _moved(
    name: str, first: list[Tensor], inputs: list[Tensor], outputs: list[Tensor]
) -> list[tuple[Tensor, float]]:
    if name in GATHERS:
        return [(each, 2) for each in outputs]
    if name in ADDS:  # read what is added, read and write where it goes
        return [(max(inputs[1:], key=size_of), 3)] if len(inputs) > 1 else []
    if name.endswith("_"):  # written in place
        return [(each, 1) for each in (*inputs, *first)]
    seen = {(each.data_ptr(), each.shape, each.stride()): each for each in (*inputs, *outputs)}
    return [(each, 1) for each in seen.values()]


def _flops(name: str, inputs: list[Tensor]) -> float:
    if name in ("mm", "bmm"):
        a, b = inputs[:2]
    elif name in ("addmm", "addmm_", "baddbmm", "baddbmm_"):
        a, b = inputs[1:3]
    else:
        return 0
    return 2 * a.numel() * b.shape[-1]


# --- our kernels ---------------------------------------------------------------------------------


@contextlib.contextmanager
def counted_kernels(count: Count) -> Iterator[None]:
    """Within, our EquiformerV2 takes its kernels, which only count."""
    from ndem_ocp.models.equiformer import kernels

    made = {
        "s2": _s2(count),
        "messages": _messages(count),
        "sums": _sums(count),
        "softmax": _softmax(count),
        "norm": _norm(count),
    }
    with contextlib.ExitStack() as stack:
        for name, module in made.items():
            whole = f"{kernels.__name__}.{name}"
            stack.enter_context(mock.patch.dict(sys.modules, {whole: module}))
            stack.enter_context(mock.patch.object(kernels, name, module, create=True))
        stack.enter_context(mock.patch.object(kernels, "usable", return_value=True))
        stack.enter_context(mock.patch.object(kernels, "agrees", return_value=True))
        yield


def _s2(count: Count) -> ModuleType:
    class Activation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, gate, to_grid, from_grid):
            ctx.save_for_backward(x, gate)
            ctx.flops = (
                2 * x.numel() * len(to_grid),
                2 * x.numel() // x.shape[1] * from_grid.numel(),
            )
            with count.pause():
                out = x.new_zeros(len(x), len(from_grid), x.shape[2])
            count.add("S2 activation", [(x, 1), (out, 1)], sum(ctx.flops))
            return out

        @staticmethod
        def backward(ctx, g):
            x, gate = ctx.saved_tensors
            with count.pause():
                d_x, d_gate = torch.zeros_like(x), None if gate is None else torch.zeros_like(gate)
            flops = 2 * ctx.flops[0] + ctx.flops[1]
            count.add("S2 activation, backward", [(x, 2), (g, 1)], flops)
            return d_x, d_gate, None, None

    module = ModuleType("s2")
    module.s2_activation = Activation.apply  # type: ignore[attr-defined]
    return module


def _messages(count: Count) -> ModuleType:
    def blocks(where: Any, chunk: slice) -> tuple[Tensor, float]:
        """The frames, of which only the blocks that are not zero are read."""
        frames, layout = where[0].frames[chunk], where[1]
        part = sum(2 * degree + 1 for degree, _ in layout.rows) / frames[0].numel()
        return frames, part

    def weighted(x: Tensor, radial: Tensor, chunk: slice, where: Any) -> Tensor:
        n, wide = chunk.stop - chunk.start, 2 * x.shape[2]
        with count.pause():
            out = x.new_zeros(n, len(where[1].rows), wide)
            both = x.new_empty(n, x.shape[1], wide)  # what is gathered
            frames = blocks(where, chunk)
        count.add("message", [(both, 1), frames, (radial, 1), (out, 1)], 0)
        return out

    def gradients(
        back: Tensor, x: Tensor, radial: Tensor, chunk: slice, where: Any
    ) -> tuple[Tensor, Tensor]:
        with count.pause():
            d_radial = torch.zeros_like(radial)
            d_both = x.new_zeros(len(back), x.shape[1], 2 * x.shape[2])
            frames = blocks(where, chunk)
        count.add("message, backward", [(d_both, 2), frames, (back, 1), (radial, 2)], 0)
        return d_radial, d_both

    module = ModuleType("messages")
    module.weighted, module.gradients = weighted, gradients  # type: ignore[attr-defined]
    return module


def _sums(count: Count) -> ModuleType:
    def add_to_nodes(
        out: Tensor, values: Tensor, start: Tensor, order: Any, chunk: slice, offset: int = 0
    ) -> None:
        part = out.shape[2] / values.shape[2]
        count.add("sums over edges", [(values, part), (out, 2)], 0)

    module = ModuleType("sums")
    module.add_to_nodes = add_to_nodes  # type: ignore[attr-defined]
    return module


def _softmax(count: Count) -> ModuleType:
    def softmax(logits: Tensor, start: Tensor, order: Tensor) -> Tensor:
        with count.pause():
            out = torch.zeros_like(logits)
        count.add("softmax over edges", [(logits, 1), (out, 1)], 0)
        return out

    def softmax_backward(weights: Tensor, g: Tensor, start: Tensor, order: Tensor) -> Tensor:
        with count.pause():
            out = torch.zeros_like(weights)
        count.add("softmax over edges, backward", [(weights, 1), (g, 1), (out, 1)], 0)
        return out

    module = ModuleType("softmax")
    module.softmax, module.softmax_backward = softmax, softmax_backward  # type: ignore[attr-defined]
    return module


def _norm(count: Count) -> ModuleType:
    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, first, bias, weight, share, eps):
            with count.pause():
                out, moments = torch.zeros_like(x), x.new_zeros(len(x), 3)
            ctx.save_for_backward(x, moments, weight)
            count.add("layer norm", [(x, 1), (out, 1), (moments, 1)], 0)
            return out

        @staticmethod
        def backward(ctx, g):
            x, moments, weight = ctx.saved_tensors
            with count.pause():
                d_x = torch.zeros_like(x)
            count.add("layer norm, backward", [(x, 1), (g, 1), (d_x, 1), (moments, 1)], 0)
            if weight is None:
                return d_x, None, None, None, None, None
            with count.pause():  # as many programs as there are for a large batch
                parts = x.new_zeros(256, len(weight) + 2, x.shape[2])
            total = parts.sum(0)
            return d_x, total[0], total[-1], total[1:-1], None, None

    module = ModuleType("norm")
    module.layer_norm = Norm.apply  # type: ignore[attr-defined]
    return module
