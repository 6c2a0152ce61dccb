"""Making, converting and checking S2EF data sets in OC20's LMDB layout.

Importing this package imports neither torch nor fairchem; its modules do so when needed.

========================  =============================================================
``convert.convert``       ASE trajectories and databases -> sharded LMDBs (``ndem data ase``)
``md17.convert_md17``     MD17, revised MD17 and CCSD(T) npz files -> LMDBs (``ndem data md17``)
``qm9.convert_qm9``       QM9 -> LMDBs with twelve targets (``ndem data qm9``)
``demo.make_demo``        computes a small EMT data set (``ndem data demo``)
``is2re``                 relaxation trajectories -> IS2RE LMDBs (``ndem data is2re``)
``check.check_dataset``   reads every record and reports what is wrong (``ndem data check``)
``statistics``            normalizer values, zero-force error, curvature of a data set
========================  =============================================================

Every source gives ``stream.Records`` to one ``writer``: frames of files are read twice, a few at a
time (``scan``, ``plan``, ``frame_records``); published molecule sets are read whole, as
``molecules.Molecules``.

Units: energies in eV, forces in eV/A, lengths in A, unless the dataset.json of a data set says
otherwise.
"""
