"""Making, converting and checking S2EF data sets in OC20's LMDB layout.

Importing this package imports neither torch nor fairchem; its modules do so when needed.

=======================  ==============================================================
``sources``              a file for each kind of input: ``ndem data ase | is2re | md17 | qm9``
``convert.convert``      files of frames -> a data set, for any of these and ``ndem fit``
``demo.make_demo``       computes a small EMT data set (``ndem data demo``)
``check.check_dataset``  reads every record and reports what is wrong (``ndem data check``)
``statistics``           normalizer values, zero-force error, curvature of a data set
=======================  ==============================================================

Every source gives ``stream.Records`` to one ``writer``: frames of files are read twice, a few at a
time (``scan``, ``plan``, ``frame_records``); published molecule sets are read whole, as
``molecules.Molecules``.

Units: energies in eV, forces in eV/A, lengths in A, unless the dataset.json of a data set says
otherwise.
"""
