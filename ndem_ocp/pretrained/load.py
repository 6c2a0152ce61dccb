"""Start from the weights of a checkpoint of fairchem, Frad, SliDe, DP-TorchMD-NET or TorchMD-NET.

Checkpoints of fairchem and of this package can be loaded into any backbone (fairchem.py); weights
of the other four are mapped by name onto a TorchMD-NET backbone (torchmd.py; section 5.4.3 and
Table 6 of the paper). Weights that have another meaning in this model are refused. A report lists
what was loaded where. Details are in docs/pretrained.md.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import nn

from ndem_ocp.pretrained import fairchem, torchmd_names
from ndem_ocp.pretrained.fairchem import AUTO, NONE, Run
from ndem_ocp.pretrained.file import PretrainedError, existing, read_content
from ndem_ocp.pretrained.report import LoadReport
from ndem_ocp.pretrained.torchmd import load_torchmd

RUN, CHECKPOINT = "run", "checkpoint"  # whose normalizers to use (normalizers.py)
SECTION: dict[str, Any] = {
    "checkpoint": None,
    "kind": AUTO,
    "heads": AUTO,
    "weights": AUTO,
    "normalizers": RUN,
    "noise_head": False,
    "strict": True,
    "unsafe": False,
}


def init_from(
    model: nn.Module,
    section: Mapping[str, Any] | str | None,
    *,
    noise_gain: float | None = None,
    ema: ExponentialMovingAverage | None = None,
    config: Mapping[str, Any] | None = None,
    normalizers: Mapping[str, nn.Module] | None = None,
) -> LoadReport | None:
    """Load the checkpoint of ``task.init_from`` into a new model, and log the report.

    Args:
        model: a hydra model, not wrapped in DDP.
        section: a path, or a mapping with the keys of ``SECTION``; None does nothing.
        noise_gain: see :func:`load_pretrained`; only needed with ``noise_head: True``.
        ema: fairchem's moving average of this model; it is restarted from the loaded weights.
        config: the run's configuration, to compare with that in a fairchem checkpoint.
        normalizers: the run's normalizers by output, to compare likewise.

    Raises:
        PretrainedError: for an unknown key or impossible value, or from load_pretrained.
    """
    if section is None:
        return None
    settings = init_settings(section)
    path = settings.pop("checkpoint")
    del settings["normalizers"]  # already used when the run was set up
    run = Run(config or {}, normalizers or {})
    report = load_pretrained(model, path, noise_gain=noise_gain, run=run, **settings)
    if ema is not None:
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        for shadow, parameter in zip(ema.shadow_params, trained, strict=True):
            shadow.copy_(parameter.detach())
    if distutils.is_master():
        logging.info(str(report))
    return report


def check_section(section: Mapping[str, Any] | str) -> None:
    """Check ``task.init_from`` and that its file exists, before anything is built.

    Raises:
        PretrainedError: naming the key, or the path.
    """
    existing(init_settings(section)["checkpoint"])


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    kind: str = AUTO,
    heads: str = AUTO,
    weights: str = AUTO,
    noise_head: bool = False,
    noise_gain: float | None = None,
    strict: bool = True,
    unsafe: bool = False,
    run: Run | None = None,
) -> LoadReport:
    """Load a pre-trained checkpoint into a hydra model.

    Args:
        model: a hydra model, with a TorchMD-NET backbone unless kind is "fairchem".
        path: a checkpoint of fairchem, of Lightning, or a bare state dict.
        kind: "fairchem", "dp", "frad", "slide", "torchmd", or "auto": found from the file.
        heads: "none", or the name of the model's head into which the checkpoint's output head is
            loaded, or "auto": all matching heads of a fairchem checkpoint, none of any other.
        weights: which weights of a fairchem checkpoint: "ema", "raw", or "auto" (the moving average
            if there is one).
        noise_head: whether to load the pre-trained noise head into the auxiliary head. It was
            trained to predict + noise / std; its last projection is multiplied by std * noise_gain.
        noise_gain: output of the auxiliary head per Angstrom of noise. In NDeM f' = f(X) - eps*, so
            it is - eps*/eps = -1/sigma_max by default; in classical denoising it is + eps*/eps.
        strict: whether to refuse weights that have another meaning in this model. False loads
            everything with the same name and shape and reports the rest.
        unsafe: read the file with the unrestricted pickle reader, which can run code in it.
        run: configuration and normalizers of the new run, to compare with a fairchem checkpoint.

    Raises:
        PretrainedError: if the file cannot be read or the load is refused; the model is unchanged.
    """
    path = existing(path)
    content = read_content(path, unsafe)
    if kind == fairchem.KIND or (kind == AUTO and fairchem.is_fairchem(content)):
        return fairchem.load_fairchem(
            model,
            path,
            content,
            heads=heads,
            noise_head=noise_head,
            weights=weights,
            strict=strict,
            run=run,
        )
    if weights != AUTO:
        raise PretrainedError(
            f"task.init_from.weights: {weights} is for checkpoints of fairchem, but {path} is not "
            "one."
        )
    return load_torchmd(
        model,
        path,
        content,
        kind=kind,
        heads=NONE if heads == AUTO else heads,
        noise_head=noise_head,
        noise_gain=noise_gain,
        strict=strict,
    )


def init_settings(section: Mapping[str, Any] | str) -> dict[str, Any]:
    """``task.init_from`` completed with defaults.

    Raises:
        PretrainedError: naming the key, and the closest valid one.
    """
    given = {"checkpoint": section} if isinstance(section, (str, Path)) else section
    if not isinstance(given, Mapping):
        raise PretrainedError(
            f"task.init_from must be a path or a mapping such as {{checkpoint: PATH}}, not "
            f"{given!r}."
        )
    for key in given:
        if key not in SECTION:
            close = difflib.get_close_matches(str(key), SECTION, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PretrainedError(
                f"task.init_from.{key} is not known.{hint} Valid: {', '.join(SECTION)}."
            )
    settings = {**SECTION, **given}
    for key, default in SECTION.items():
        kind = bool if isinstance(default, bool) else (str, Path)
        if not isinstance(settings[key], kind) or settings[key] == "":
            wanted = "True or False" if kind is bool else "a string"
            raise PretrainedError(f"task.init_from.{key} = {settings[key]!r}: must be {wanted}.")
    for key, valid in (
        ("kind", (*torchmd_names.KINDS, fairchem.KIND)),
        ("weights", fairchem.WEIGHTS),
        ("normalizers", (RUN, CHECKPOINT)),
    ):
        if settings[key] not in valid:
            close = difflib.get_close_matches(settings[key], valid, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PretrainedError(
                f"task.init_from.{key} = {settings[key]!r} is not known.{hint} Choose one of: "
                f"{', '.join(valid)}."
            )
    return settings
