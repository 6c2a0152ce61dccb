"""The default device of a command: a GPU if one is visible, else the CPU."""

from __future__ import annotations

import os

from fairchem_kit.launch.errors import LaunchError
from fairchem_kit.launch.places import slurm_job

_DRIVER = "/proc/driver/nvidia/version"


def choose_cpu(cpu: bool, gpu: bool = False, in_jobs: bool = True) -> bool:
    """Whether to compute on the CPU.

    Args:
        cpu: the user wants the CPU. gpu: the user wants a GPU. in_jobs: allow falling back to the
            CPU in a SLURM job too. Not for training, which would spend its time limit on a node
            with a broken GPU.

    Raises:
        LaunchError: if a GPU was requested, or should be there, and torch sees none.
    """
    import torch

    if cpu or torch.cuda.device_count() > 0:
        return cpu
    if gpu:
        raise LaunchError(
            "--gpu: torch sees no GPU here (`ndem doctor` may show why). Leave out --gpu."
        )
    if slurm_job() is not None and not in_jobs:
        raise LaunchError("No CUDA device is visible. To train on the CPU, add --cpu.")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and os.path.exists(_DRIVER) and not hidden:
        raise LaunchError(
            "An NVIDIA driver is loaded, but torch sees no GPU (`ndem doctor` may show why). To "
            "train on the CPU anyway, add --cpu."
        )
    return True
