"""Starting runs: on this machine, as ranks of a SLURM step, as a SLURM array.

``ndem train`` builds fairchem's own trainer and task but does not use fairchem's launchers: the
local one shares a port between runs, and the SLURM one needs NCCL, a GPU and a fixed port.
"""
