"""Any ASE calculator, by its dotted name."""
