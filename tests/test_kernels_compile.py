"""Triton's kernels compile for GPUs that are not here, and fit into their memory and registers.

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
SPILLED = 32  # bytes per thread; of the S2 activation in float32 at L = 6
CODE = """
import json, os, re, subprocess, sys, tempfile
import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ndem_ocp.models.equiformer.kernels import messages, norm, s2, softmax, sums
from ndem_ocp.models.equiformer.layout import layout

found = {}
tools = os.path.join(os.path.dirname(triton.backends.nvidia.__file__), "bin")

def spilled(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.path.join(tools, "cuobjdump"), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:([0-9]+)", said)[1])

def compiled(name, kernel, pointers, integers, constants, **options):
    given = {**pointers, **dict.fromkeys(integers, "i32"), **dict.fromkeys(constants, "constexpr")}
    names = {each: given[each] for each in kernel.arg_names}
    # as launched: torch's tensors are aligned, and Triton then loads 16 bytes at once
    aligned = {(kernel.arg_names.index(each),): [["tt.divisibility", 16]] for each in pointers
               if each in names}
    for capability in (80, 90):
        made = triton.compile(
            ASTSource(fn=kernel, signature=names, constexprs=constants, attrs=aligned),
            target=GPUTarget("cuda", capability, 32), options=options,
        )
        ptx = made.asm["ptx"]
        found[f"{name} {capability}"] = {
            "shared": made.metadata.shared,
            "spilled": spilled(made.asm["cubin"]),
            "fast products": len(re.findall("wgmma.mma_async", ptx)),
            "barriers": len(re.findall("bar.sync|barrier.sync|shfl", ptx)),
            "wide": len(re.findall(r"ld.global[.a-zA-Z0-9:]*[.]v4", ptx)),
        }

def numbers(words, kind="fp32"):
    return {word: f"*{kind}" for word in words.split()}

ends = numbers("source target", "i64")
lay = layout(4, 2)
sizes = {"R": len(lay.rows), "K": 25, "C": 128, "Q": 12, "L": 4, "M": 2, "EACH": 1, "CHANNELS": 128}
compiled("message", messages._weighted,
         {**ends, **numbers("x frames radial out")}, ["first"], sizes, num_warps=1)
compiled("message, backward", messages._weighted_backward,
         {**ends, **numbers("x frames radial back d_radial d_both")}, ["first"], sizes,
         num_warps=1)
compiled("sums", sums._add, {**numbers("out values"), **numbers("start order", "i64")},
         ["first", "stop"],
         {"K": 25, "C": 128, "STRIDE": 256, "OFFSET": 128, "VALUES": 128})
rows, tile = len(layout(6, 3).rows), s2.TILE
grid = {"R": rows, "RO": rows, "H": 64, "P": 324, "RP": 64, "COLUMNS": tile.columns,
        "POINTS": tile.points, "PRODUCTS": "tf32x3", "WIDE": False}
options = {"num_warps": tile.warps, "num_stages": tile.stages}
compiled("S2", s2._forward, numbers("x out to_grid from_grid"), ["count"], grid, **options)
compiled("S2, backward", s2._backward, numbers("x g d_x to_grid from_grid"), ["count"], grid,
         **options)
sizes = norm.sizes_of(torch.empty(1, 49, 128, device="meta"), True)
options = {"num_warps": sizes.pop("num_warps")}
weights = numbers("first bias weight share moments") | {"eps": "fp32"}
compiled("layer norm", norm._forward, {**weights, **numbers("x out")}, [], sizes, **options)
compiled("layer norm, backward", norm._backward, {**weights, **numbers("x g d_x parts")}, ["count"],
       sizes, **options)
heads = {"H": 8, "HEADS": 8}
of_nodes = numbers("start order", "i64")
compiled("softmax", softmax._softmax, {**numbers("logits out"), **of_nodes}, [], heads, num_warps=1)
compiled("softmax, backward", softmax._softmax_backward,
       {**numbers("weights g out"), **of_nodes}, [], heads, num_warps=1)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus_and_fit(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 18
    assert max(each["shared"] for each in found.values()) <= SHARED, found
    assert max(each["spilled"] for each in found.values()) <= SPILLED, found
    for name in ("message 80", "message 90", "message, backward 80", "message, backward 90"):
        # threads that wait for each other made the backward five times as long
        assert found[name]["barriers"] == 0, found[name]
        assert found[name]["spilled"] == 0, found[name]
        assert found[name]["wide"] > 0, found[name]
    for name in ("S2 90", "S2, backward 90"):
        assert found[name]["fast products"] > 0, found[name]
