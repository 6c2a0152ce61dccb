"""Valid names for the options of ``ndem bench``; this module imports nothing."""

from __future__ import annotations

# name -> file of configs/oc20
MODELS = {
    "demo": "demo.yml",
    "small": "small.yml",
    "31M": "31M.yml",
    "83M": "83M_2M.yml",
    "153M": "153M.yml",
}
# The channels of OC20's models, and few enough layers for minutes on a laptop.
DEFAULT_MODEL, DEFAULT_LAYERS = "31M", 2

#: Arms of ``ndem bench step`` besides the objectives; ndem_ocp.bench.arms describes them.
HOST_ARMS = ("upstream", "naive", "joint", "plain")
STEP_ARMS = ("upstream", "naive", "plain", "ndem", "dens")  # without --arms
SCALING_ARMS = ("upstream", "naive", "plain", "ndem")

#: Axes of ``ndem bench scaling``; see ndem_ocp.bench.scaling.
AXES = ("atoms", "edges", "L", "layers", "batch")
