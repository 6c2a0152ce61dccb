"""Read ``runner.train_eval_unit.ndem``, and check it together with the rest of the unit."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fairchem.core.common import distutils
from fairchem.core.models.base import HydraModel
from fairchem.core.units.mlip_unit.mlip_unit import Task
from omegaconf import OmegaConf
from torch import nn

from fairchem_kit.commands.ending import REFUSED, TRACEBACK
from fairchem_kit.errors import UserError
from ndem_ocp.method import NDeMSettings, SettingsError
from ndem_ocp.method.settings import check_second_views

FORCES, ENERGY = "forces", "energy"
HOST_KEYS = {
    "auxiliary_head": "Arguments of the auxiliary head, such as `{width: 0.5}`, or another head: "
    "`{module: package.module.Class, ...}`, which must return `forces`, (atoms, 3).",
    "second_views": "A file made by `ndem data second-views`. Needed with `target: second_views`.",
    "check_references": "Whether to stop before the first step if the element references do not "
    "fit the energies of the training data (true).",
}
AUXILIARY_HEAD, SECOND_VIEWS, CHECK_REFERENCES = HOST_KEYS


class Refused(SystemExit):
    """Ends training with exit status 2, after the error has been printed in one sentence.

    It is a SystemExit, because hydra and fairchem print a traceback for all other exceptions.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(REFUSED)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """End the run with one sentence and exit status 2 if an error is one that the user can fix."""
    try:
        yield
    except UserError as error:
        # messages are shared with fairchem 1.10, where the settings are under task.ndem
        sentence = str(error).replace("task.ndem.", "ndem.")
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        if distutils.is_master():
            print(f"ndem: {sentence}", file=sys.stderr, flush=True)
        raise Refused(sentence) from None


class Section(NamedTuple):
    """The content of the section ``ndem``."""

    settings: NDeMSettings
    auxiliary_head: dict[str, Any] | None
    second_views: str | None  # path
    check_references: bool


def read_section(given: Any) -> Section:
    """Read the section ``ndem``; None means ``{coefficient: 0}``, the plain unit.

    Raises:
        SettingsError: if it is not a mapping, or has an unknown key or an invalid value.
    """
    if OmegaConf.is_config(given):
        given = OmegaConf.to_container(given, resolve=True)
    if given is None:
        given = {"coefficient": 0.0}
    if not isinstance(given, Mapping):
        raise SettingsError(
            f"task.ndem.* must be a mapping such as {{coefficient: 1}}, not {given!r}."
        )
    method = dict(given)
    head = method.pop(AUXILIARY_HEAD, None)
    path = method.pop(SECOND_VIEWS, None)
    check = method.pop(CHECK_REFERENCES, True)
    if head is not None and not isinstance(head, Mapping):
        raise SettingsError("task.ndem.auxiliary_head must be a mapping such as {width: 0.5}.")
    if not isinstance(check, bool):
        raise SettingsError(f"task.ndem.check_references = {check!r}: must be true or false.")
    _check_objective(method.get("objective"))  # before settings that depend on it
    settings = NDeMSettings.from_mapping(method, host_keys=tuple(HOST_KEYS))
    check_second_views(settings, path, head)
    return Section(settings, None if head is None else dict(head), path, check)


def _check_objective(objective: Any) -> None:
    if objective == "dens":
        raise SettingsError(
            "task.ndem.objective = 'dens' does not run with fairchem 2, whose models cannot encode "
            "forces as an input: choose ndem or noisy_nodes."
        )


def check_host(
    settings: NDeMSettings, model: nn.Module, tasks: Sequence[Task], host: Mapping[str, Any]
) -> None:
    """Refuse models and settings that NDeM does not work with, before anything is built.

    Args:
        model: the model that fairchem has built. tasks: the tasks. host: other arguments of the
            unit.

    Raises:
        SettingsError: naming the key and what to do.
    """
    if type(model) is not HydraModel:
        raise SettingsError(
            f"NDeM needs a model of class fairchem.core.models.base.HydraModel, but this one is a "
            f"{type(model).__name__}: use a HydraModel, or task.ndem.coefficient: 0."
        )
    if not forces_tasks(tasks):
        raise SettingsError(
            "NDeM needs forces, but no task has property: forces. Add such a task, or set "
            "task.ndem.coefficient: 0."
        )
    if not getattr(model.backbone, "otf_graph", True):
        raise SettingsError(
            "NDeM needs graphs that are built on the fly, because X and X + eps have different "
            "edges: set otf_graph: True in the model's backbone (in a fine-tuning: "
            "model.overrides.backbone)."
        )
    if str(host.get("train_strategy", "ddp")) == "fsdp":
        raise SettingsError(
            "train_strategy: fsdp does not run with NDeM (nor does it start in fairchem-core "
            "2.24.0, which imports a name that torch does not have): use ddp."
        )


def forces_tasks(tasks: Sequence[Task]) -> list[Task]:
    """The tasks with property forces."""
    return [task for task in tasks if task.property == FORCES and not task.inference_only]
