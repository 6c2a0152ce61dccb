"""Components of the trainer: who uses which moment, in which order, and what a call may change."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import ndem_ocp
from fairchem_kit.training import Trainer, component
from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.resume import Resume
from helpers import state_of

PLAIN = Path(inspect.getfile(component)).parent


def written() -> dict[str, set[str]]:
    """{moment: names of components} of the table in component.py."""
    lines = (component.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["moment"])
    column = lines[start].index("who uses it")
    table: dict[str, set[str]] = {}
    moments: list[str] = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        moments = line[:column].split("  ")[2].split(", ") if line[4] != " " else moments
        for moment in moments:
            table.setdefault(moment.strip(), set()).update(line[column:].split())
    return table


def overridden(moment: str) -> set[str]:
    """Components of the NDeM trainer that override a moment, by the name of the class that does."""
    owners = set()
    for kind in ndem_ocp.NDeMTrainer.kinds:
        owner = next(base for base in kind.__mro__ if moment in vars(base))
        owners |= set() if owner is Component else {owner.__name__}
    return owners


def test_the_table_of_moments_is_what_the_classes_do():
    table = written()
    assert {moment: overridden(moment) for moment in table} == table


def test_every_moment_is_in_the_table_and_every_method_is_one():
    moments = {name for name, value in vars(Component).items() if inspect.isfunction(value)}
    assert moments - {"__init__"} == set(written())


def test_each_hook_point_of_fairchem_is_overridden_once():
    """No class between fairchem's trainer and NDeM's overrides what another one does."""
    packages = ("ndem_ocp.", "fairchem_kit.")
    kinds = ndem_ocp.NDeMTrainer.__mro__
    ours = [kind for kind in kinds if kind.__module__.startswith(packages)]
    names = [name for kind in ours for name, value in vars(kind).items() if callable(value)]
    assert ours == [ndem_ocp.NDeMTrainer, Trainer]
    assert len(names) == len(set(names))


def test_the_plain_trainer_trains_as_ndem_at_coefficient_zero(new_trainer):
    def without_ndem(config):
        del config["task"]["ndem"]

    ours = new_trainer(coefficient=0.0)
    ours.train(disable_eval_tqdm=True)
    plain = new_trainer(name="fairchem_kit.training.Trainer", edit=without_ndem)
    plain.train(disable_eval_tqdm=True)
    expected, found = state_of(ours), state_of(plain)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())
    assert plain.config["trainer"] == "fairchem_kit.training.Trainer"
    assert isinstance(plain.resume, Resume)


def test_the_plain_trainer_refuses_the_keys_of_the_idea(new_trainer):
    with pytest.raises(ConfigError, match=r"task\.ndem .*no such key"):
        new_trainer(name="fairchem_kit.training.Trainer")


def test_what_a_call_changes_holds_for_it_alone(new_trainer):
    trainer = new_trainer()
    given = trainer.output_targets
    call = Call(trainer, None)
    call.trainer.output_targets = {}
    assert trainer.output_targets is given
