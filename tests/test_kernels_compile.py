"""Triton's kernels compile for GPUs that are not here, and fit into their shared memory.

No GPU is needed: Triton brings the compiler and the assembler. Numbers are tested in Triton's
interpreter (test_kernels.py), which knows nothing of registers or memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

SHARED = 99 * 1024  # bytes that a block can have on consumer cards; an H100 has 227 KB
CODE = """
import json, sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ndem_ocp.models.equiformer.kernels import messages, norm, s2, sums
from ndem_ocp.models.equiformer.layout import layout

found = {}

def shared(name, kernel, pointers, integers, constants, **options):
    given = {**pointers, **dict.fromkeys(integers, "i32"), **dict.fromkeys(constants, "constexpr")}
    names = {each: given[each] for each in kernel.arg_names}
    for capability in (80, 90):
        made = triton.compile(
            ASTSource(fn=kernel, signature=names, constexprs=constants),
            target=GPUTarget("cuda", capability, 32), options=options,
        )
        found[f"{name} {capability}"] = made.metadata.shared

def numbers(words, kind="fp32"):
    return {word: f"*{kind}" for word in words.split()}

wide = {"R": 7, "K": 9, "C": 128, "Q": 5, "L": 2, "WIDTH": 4, "CHANNELS": 128}
ends = {**numbers("source target", "i64"), **numbers("rows pairs weights", "i32")}
shared("message", messages._weighted,
       {**ends, **numbers("x frames radial out")}, ["first"], wide)
shared("message, backward", messages._weighted_backward,
       {**ends, **numbers("x frames radial back d_radial d_both")}, ["first"], {**wide, "MOST": 2})
shared("sums", sums._add, {**numbers("out values"), **numbers("start order", "i64")},
       ["first", "stop"],
       {"K": 25, "C": 128, "STRIDE": 256, "OFFSET": 128, "VALUES": 128})
rows, tile = len(layout(6, 3).rows), s2.TILE
grid = {"R": rows, "RO": rows, "H": 64, "P": 324, "RP": 64, "COLUMNS": tile.columns,
        "POINTS": tile.points, "PRODUCTS": "tf32x3", "WIDE": False}
options = {"num_warps": tile.warps, "num_stages": tile.stages}
shared("S2", s2._forward, numbers("x out to_grid from_grid"), ["count"], grid, **options)
shared("S2, backward", s2._backward, numbers("x g d_x to_grid from_grid"), ["count"], grid,
       **options)
sizes = norm.sizes_of(torch.empty(1, 49, 128, device="meta"), True)
options = {"num_warps": sizes.pop("num_warps")}
weights = numbers("first bias weight share moments") | {"eps": "fp32"}
shared("layer norm", norm._forward, {**weights, **numbers("x out")}, [], sizes, **options)
shared("layer norm, backward", norm._backward, {**weights, **numbers("x g d_x parts")}, ["count"],
       sizes, **options)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus_and_fit(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 14
    assert max(found.values()) <= SHARED, found
