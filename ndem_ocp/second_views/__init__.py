"""Second views with true curvature: structures displaced by eps, labelled by a cheap potential.

A potential T that anyone can install is often poor at forces and good at how forces *change* over
a few hundredths of an Angstrom. So T labels the change, and DFT the rest:

    F(X + eps) ~ F_DFT(X) + s [T(X + eps) - T(X)]

============================  ===================================================================
``calculators``               an ASE calculator from a line of text; its version and weights
``sidecar``                   the file of second views: bound to the records by their structures
``make.make_second_views``    writes it (``ndem data second-views``)
``source.ViewSource``         draws from it in training
============================  ===================================================================

Making views needs ASE, NumPy, lmdb and the potential; neither fairchem nor torch_geometric.
Energies are in eV, forces in eV/A, lengths in A throughout, whatever the data set is in.
"""
