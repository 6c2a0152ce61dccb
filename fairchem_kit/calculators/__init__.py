"""Any ASE calculator, given by its dotted name."""
