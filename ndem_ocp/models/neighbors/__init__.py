"""Neighbours of atoms in periodic structures: fairchem's edges to the bit, but found faster.

fairchem's ``radius_graph_pbc`` computes the distance of every pair of atoms in all images within
the cutoff and then keeps only the nearest, such as 20 of about 400 within 12 Angstrom. Here a
smaller radius, expected to contain somewhat more than these 20, is searched first. Only atoms with
too few neighbours in it are searched again up to the cutoff.

In perfect crystals several atoms can be equally far away where the list ends, and rounding can
decide which of them is kept. So images, distances and the choice among equal distances are computed
exactly as in fairchem, in float32; only pairs that can never be kept are skipped. docs/neighbors.md
shows what this gains.
"""

from ndem_ocp.models.neighbors.edges import periodic_edges
from ndem_ocp.models.neighbors.graph import NearestNeighbors

__all__ = ["NearestNeighbors", "periodic_edges"]
