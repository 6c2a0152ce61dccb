"""Any value of a wrong kind at any key of a configuration is one sentence, never a traceback."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import tiny_config
from fairchem_kit.commands.ending import explained
from fairchem_kit.training.checks.build_errors import said_of
from fairchem_kit.training.config import ConfigError
from ndem_ocp.testing import trainer_of
from ndem_ocp.trainer import NDeMTrainer

VALUES = [None, 5, "x", [1], {"a": 1}, math.nan]
OTHERS = ("model", "trainer")
OF_MODELS = [None, -1, "x", math.nan]


class Checked(Exception):
    """The model is about to be built: all checks have passed."""


def keys(section: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of every key and entry."""
    names = section if isinstance(section, dict) else range(len(section))
    for name in names:
        yield (*above, name)
        if isinstance(section[name], dict | list):
            yield from keys(section[name], (*above, name))


def with_value(config: dict, path: tuple, value: Any) -> dict:
    config = copy.deepcopy(config)
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return config


def unexplained(config: dict, folder: Any) -> str | None:
    """What would be a traceback."""
    try:
        trainer_of(config, folder, run_id="run")
    except Checked:
        return None
    except Exception as error:
        return None if explained(error) is not None else f"{type(error).__name__}: {error}"
    return None


def tracebacks(config: dict, values: list, folder: Any, chosen: Any) -> list[str]:
    found = []
    for path in keys(config):
        for value in values if chosen(path) else []:
            problem = unexplained(with_value(config, path, value), folder)
            if problem is not None:
                found.append(f"{'.'.join(map(str, path))} = {value!r}: {problem}")
    return found


@pytest.fixture
def config(demo_data):
    return tiny_config(demo_data, sigma_min=0.01)


def test_keys_outside_of_the_model(config, tmp_path, monkeypatch):
    def stop(self):
        raise Checked

    monkeypatch.setattr(NDeMTrainer, "load_model", stop)
    paths = list(keys(config))
    assert len(paths) > 100
    assert tracebacks(config, VALUES, tmp_path, lambda path: path[0] not in OTHERS) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_keys_of_the_model_and_of_the_schedule(config, tmp_path):
    """These are built, because only that shows whether they can be."""
    assert tracebacks(config, OF_MODELS, tmp_path, lambda path: path[0] == "model") == []
    assert tracebacks(config, VALUES, tmp_path, lambda path: "scheduler_params" in path) == []


def test_a_value_that_no_model_takes_is_named(config, tmp_path):
    for key, value, words in (
        ("num_heads", "x", "model.backbone.num_heads = 'x': must be a whole number"),
        ("max_radius", 0, "model.backbone.max_radius = 0 must be at least 0.1"),
        ("weight_init", "x", "model: it cannot be built .* AssertionError.*weight_init"),
    ):
        with pytest.raises(ConfigError, match=words):
            trainer_of(with_value(config, ("model", "backbone", key), value), tmp_path)


def test_what_a_constructor_raises_names_its_line_and_lost_ranks_stay_themselves():
    def build(value):
        assert value in ("normal", "uniform")

    with (
        pytest.raises(
            ConfigError, match=r"model: .*AssertionError: .*normal.*test_config_kinds.py, line"
        ),
        said_of("model"),
    ):
        build("x")
    with pytest.raises(ConnectionError), said_of("model"):
        raise ConnectionError("reset by peer")
