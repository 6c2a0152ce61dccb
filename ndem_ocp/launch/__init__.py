"""Starting runs: on this machine, as ranks of a SLURM step, as a SLURM array.

``ndem train`` builds fairchem's own trainer and task, without fairchem's launchers: its local one
shares a port between runs, its SLURM one needs NCCL, a GPU and a fixed port.
"""
