"""The configuration of a fit as text: an ordinary YAML file with comments for ``ndem train``."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from ndem_ocp.fit.length import Length
from ndem_ocp.fit.plan import EQUIFORMER, ET, Plan

_PLAIN = """\
    coefficient: 0               # plain training; 1 adds NDeM's second view (docs/settings.md)
"""
# from configs/md17/base.yml and configs/oc20/ndem.yml; used if the coefficient is above 0
_NOISE = {
    ET: "    sigma_max: 0.05              # A, noise of the second view\n",
    EQUIFORMER: (
        "    sigma_max: 0.1               # A, noise of the second view\n"
        "    sigma_min: 0.01\n"
        "    norm: l2mae\n"
    ),
}
# by whether the structures are periodic: what served molecules best in docs/second_views.md
_VIEWS = {
    False: (
        "    share: 0.6                   # of structures that are displaced\n"
        "    energies: False              # of displaced structures only the forces are labels\n"
    ),
    True: "    share: 0.5                   # of structures that are displaced\n",
}
_EVAL_BATCH = 4  # times the training batch


def config_text(plan: Plan, length: Length, folder: Path, data: Path, title: str) -> str:
    """The file's content.

    Args:
        plan: what to train. length: for how long. folder: of the fit. data: folder with train and
            val; paths are absolute, so that the file works from any directory. title: a comment.
    """
    return _fill(
        "run",
        title=_one_line(title),
        path=_one_line(shlex.quote(str(folder / "config.yml"))),
        folder=_one_line(shlex.quote(str(folder))),
        patience=length.patience,
        ndem=_ndem(plan),
        train=_quoted(data / "train"),
        val=_quoted(data / "val"),
        train_frames=_frames("train", length.train_frames),
        val_frames=_frames("val", length.val_frames),
        energy_mean=_number(plan.normalizer["energy"][0]),
        energy_stdev=_number(plan.normalizer["energy"][1]),
        forces_stdev=_number(plan.normalizer["forces"][1]),
        model=_fill(plan.model, **plan.sizes),
        batch_size=plan.batch_size,
        eval_batch_size=_EVAL_BATCH * plan.batch_size,
        weight_decay=0.0 if plan.model == ET else 0.001,
        epochs=length.epochs,
        eval_every=length.eval_every,
        # a twentieth of the run, and at least a step
        warmup=max(round(0.05 * length.epochs, 2), round(1.5 * length.epochs / length.steps, 3)),
        ema_decay=length.ema_decay,
    )


def parse(text: str) -> dict[str, Any]:
    """The configuration that fairchem reads from ``text``."""
    return yaml.safe_load(text)


def _ndem(plan: Plan) -> str:
    if plan.second_views is None:
        return _PLAIN + _NOISE[plan.model]
    return (
        "    coefficient: 1\n"
        f"    second_views: {_quoted(Path(plan.second_views).resolve())}\n"
        "    target: second_views\n"
        "    place: instead               # replace structures: a step costs as much as a plain "
        "one\n" + _VIEWS[plan.periodic]
    )


def _frames(split: str, number: int | None) -> str:
    if number is None:
        return ""
    return (
        f"    {split}_split_settings: {{sample_n: {number}}}   # a random sample that fits into "
        "--time\n"
    )


def _fill(template: str, **values: Any) -> str:
    text = (files("ndem_ocp.fit") / "templates" / f"{template}.yml").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _one_line(text: str) -> str:
    """For a comment."""
    return " ".join(text.split())


def _quoted(path: Path) -> str:
    """A path quoted so that YAML reads it back unchanged."""
    text = str(path)
    return (
        text
        if text.replace("/", "").replace("_", "").isalnum()
        else json.dumps(text, ensure_ascii=False)
    )


def _number(value: float) -> str:
    """Six digits, with the decimal point that YAML needs in 1e-05."""
    text = f"{round(value, 8) + 0.0:.6g}"  # no -0.0, and no rounding error of a sum
    return text if "." in text or "e" not in text else text.replace("e", ".0e")
