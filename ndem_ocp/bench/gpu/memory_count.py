"""How much memory the tensors of a step take at its peak, counted on the CPU.

Every tensor that an operation makes is followed until its memory is free again: activations that
are kept for backward, temporary ones, gradients, the optimizer's moments. That is what
``torch.cuda.max_memory_allocated`` reports on a GPU, except for the workspaces of its libraries.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within, ``moments`` gets the bytes in use after every operation.

    Args:
        atoms: of the batch, with a prime factor that no size of the model has: a tensor whose size
            is a multiple of it grows with the batch. None: nothing grows.
        there: tensors that are in memory already, such as weights.
    """

    def __init__(self, atoms: int | None = None, there: list[Tensor] | None = None) -> None:
        super().__init__()
        self.atoms = atoms
        self.moments: list[tuple[int, int]] = []  # bytes that are fixed, and that grow
        self._in_use = {False: 0, True: 0}
        self._seen: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        for tensor in there or ():
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.moments.append((self._in_use[False], self._in_use[True]))
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._seen.get(storage._cdata) is storage:
            return
        self._seen[storage._cdata] = storage
        size, count = storage.nbytes(), storage.nbytes() // tensor.element_size()
        grows = self.atoms is not None and count > 0 and count % self.atoms == 0
        self._in_use[grows] += size
        weakref.finalize(storage, self._free, grows, size).atexit = False

    def _free(self, grows: bool, size: int) -> None:
        self._in_use[grows] -= size

    def peak(self, growth: float = 1.0) -> float:
        """Bytes at the peak, for a batch ``growth`` times as large."""
        return max(fixed + growth * growing for fixed, growing in self.moments)


def held(trainer: Any) -> list[Tensor]:
    """Weights, buffers and the moving average of the weights of a trainer."""
    model = trainer._unwrapped_model
    average = trainer.ema.shadow_params if trainer.ema else []
    return [*model.parameters(), *model.buffers(), *average]
