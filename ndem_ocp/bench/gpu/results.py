"""What all stages share: the results file, which is always up to date, and the device."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The content of the file; {} if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Let one process after another work in a folder, if its file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Results:
    """The part of the file for one stage. Several stages may write at the same time."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage, self.begin = path, stage, time.time()

    def put(self, *place: Any) -> None:
        """``put(key, ..., value)``: write a value to the file, immediately and atomically."""
        *keys, value = place
        with only_here(self.path.parent):
            content = read(self.path)
            part = content.setdefault(self.stage, {})
            for key in map(str, keys[:-1]):
                if not isinstance(part.get(key), dict):
                    part[key] = {}
                part = part[key]
            part[str(keys[-1])] = value
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(content, indent=1, default=str))
            os.replace(partial, self.path)
        shown = f": {value}" if isinstance(value, (str, int, float)) else ""
        self.say(f"{' / '.join(map(str, keys))}{shown}")

    def say(self, words: str) -> None:
        """Write to the log when something happened."""
        print(f"{self.stage}, {time.time() - self.begin:.1f} s: {words}", flush=True)

    @contextlib.contextmanager
    def guarded(self, *keys: Any) -> Iterator[None]:
        """Record an error in this context beside what is at this place, and continue."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.put(*keys, "error", f"{type(error).__name__}: {error}"[:500])


@dataclass(frozen=True)
class Check:
    """The device of a stage, and its deadline."""

    kind: str  # cuda or cpu
    deadline: float  # as in time.time()
    work: Path
    tiny: bool

    @property
    def cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda:0" if self.cuda else "cpu")

    def until(self, deadline: float) -> Check:
        """The same with another deadline."""
        return replace(self, deadline=deadline)

    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.time()

    def data(self) -> Path:
        """The small generated data set (train, val_id), made when it is first needed."""
        from ndem_ocp.testing import small_data

        with only_here(self.work):
            return small_data(self.work)

    def wait(self) -> None:
        from ndem_ocp.bench.clock import synchronize

        synchronize(self.device)

    def seconds(self, function: Callable[[], Any], repeats: int = 5, warmup: int = 2) -> float:
        """Median time of a call in seconds, with synchronisation before and after."""
        times = []
        for _ in range(warmup + repeats):
            self.wait()
            begin = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[warmup:])


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Use fp32, tf32, bf16 or fp16; the last two only set the dtype of autocast on CUDA."""
    import torch

    products, kind = torch.get_float32_matmul_precision(), torch.get_autocast_dtype("cuda")
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    torch.set_autocast_dtype("cuda", torch.float16 if name == "fp16" else torch.bfloat16)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.set_autocast_dtype("cuda", kind)


# a small EquiformerV2, for everything that is not timed and for dry runs
SMALL: dict[str, Any] = {
    "num_layers": 2, "sphere_channels": 16, "attn_hidden_channels": 16, "num_heads": 2,
    "attn_alpha_channels": 8, "attn_value_channels": 8, "ffn_hidden_channels": 16,
    "edge_channels": 16, "max_radius": 4.0, "max_neighbors": 12, "alpha_drop": 0.0,
    "drop_path_rate": 0.0,
}  # fmt: skip
TINY: dict[str, Any] = {
    **SMALL, "num_layers": 1, "lmax_list": [2], "mmax_list": [2], "grid_resolution": 8,
}  # fmt: skip
