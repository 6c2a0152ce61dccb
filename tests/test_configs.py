"""configs/oc20: every file loads, builds and says where its values come from; docs keep step."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import create_dict_from_args, load_config
from fairchem.core.modules.loss import DDPLoss
from fairchem.core.trainers import OCPTrainer

from conftest import ROOT
from fairchem_kit.training.schedule import safe_optim, uses_epochs
from helpers import on_meta_device
from ndem_ocp.method import NDeMSettings, Noise, SettingsError, noise_diagnostics
from ndem_ocp.method.settings import choices_of_all
from ndem_ocp.models import two_view_config
from ndem_ocp.trainer.config import HOST_KEYS, check_config, read_task

FOLDER = ROOT / "configs/oc20"
PARTS = ("base", "ndem")  # included by others, incomplete alone
FILES = sorted(path.stem for path in FOLDER.glob("*.yml"))
COMPLETE = [name for name in FILES if name not in PARTS]
TWINS = [name for name in COMPLETE if name.endswith("_ndem")]
PLAIN_TRAINER, NDEM_TRAINER = "equiformerv2_forces", "ndem_ocp.NDeMTrainer"
# Millions of parameters of the plain model and with the auxiliary head of NDeM.
SIZES = {"31M": (31.06, 32.90), "83M_2M": (83.16, 86.53), "153M": (153.60, 157.49)}
LAMBDA_E = {"31M": 4, "83M_2M": 2, "153M": 4, "153M_energy2": 2}
LAMBDA_F = 100


def load(name: str) -> dict[str, Any]:
    return load_config(str(FOLDER / f"{name}.yml"))[0]


def is_ndem(config: dict[str, Any]) -> bool:
    return config["trainer"] == NDEM_TRAINER


def model_of(config: dict[str, Any]) -> dict[str, Any]:
    """The model section that the configuration's trainer builds."""
    config = copy.deepcopy(config)
    if is_ndem(config):
        settings, auxiliary_head, _ = read_task(config)
        return two_view_config(config["model"], settings, auxiliary_head)
    return config["model"]


def build(model: dict[str, Any]) -> torch.nn.Module:
    model = copy.deepcopy(model)
    with on_meta_device():
        return registry.get_model_class(model.pop("name"))(**model)


def parameters(name: str) -> int:
    """Number of parameters; lambda_E has no part in it."""
    return _parameters(name.replace("_energy2", ""))


@functools.cache
def _parameters(name: str) -> int:
    return sum(p.numel() for p in build(model_of(load(name))).parameters())


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# --- each file is a configuration that can train -------------------------------------------------


def test_the_folder_is_the_one_the_tests_know():
    assert set(PARTS) < set(FILES)
    expected = {f"{name}{end}" for name in (*LAMBDA_E, "small") for end in ("", "_ndem")}
    assert set(COMPLETE) == expected | {"demo", "second_views"}


@pytest.mark.parametrize("name", COMPLETE)
def test_loads_without_conflicts_and_passes_the_trainers_checks(name):
    config, _, conflicts = load_config(str(FOLDER / f"{name}.yml"))
    assert conflicts == []
    assert issubclass(registry.get_trainer_class(config["trainer"]), OCPTrainer)
    registry.get_logger_class(config["logger"]["name"])
    if is_ndem(config):
        settings, _, _ = read_task(config)
        assert settings.active
        check_config(config, settings)
    else:
        assert config["trainer"] == PLAIN_TRAINER
        assert "task" not in config
    assert uses_epochs(config["optim"])
    assert safe_optim(config["optim"], 1000) == config["optim"]
    # What hydra models need beside the old single-class ones.
    assert config["model"]["otf_graph"] is True
    assert config["model"]["backbone"]["otf_graph"] is True
    assert {target: spec["property"] for target, spec in config["outputs"].items()} == {
        "energy": "energy",
        "forces": "forces",
    }


@pytest.mark.parametrize("name", COMPLETE)
def test_loss_functions_resolve_and_have_the_tables_weights(name):
    terms = {target: spec for term in load(name)["loss_functions"] for target, spec in term.items()}
    assert set(terms) == {"energy", "forces"}
    for spec in terms.values():
        DDPLoss(spec["fn"], reduction=spec.get("reduction"))
    assert terms["forces"]["coefficient"] == LAMBDA_F
    plain = name.removesuffix("_ndem")
    if plain in LAMBDA_E:
        assert terms["energy"]["coefficient"] == LAMBDA_E[plain]


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_in_trainer_and_task_ndem_only(name):
    ndem, plain = load(name), load(name.removesuffix("_ndem"))
    assert without(ndem, "trainer", "task") == without(plain, "trainer", "task")
    assert (plain["trainer"], ndem["trainer"]) == (PLAIN_TRAINER, NDEM_TRAINER)
    assert "task" not in plain
    assert set(ndem["task"]) == {"ndem"}


def sized(names: list[str]) -> list[Any]:
    """Parameters for pytest; building 83M and 153M takes over five seconds on a busy machine."""
    large = re.compile("83M|153M")
    return [pytest.param(n, marks=[pytest.mark.slow] * bool(large.match(n))) for n in names]


@pytest.mark.parametrize("name", sized(COMPLETE))
def test_model_is_built_with_the_parameters_of_its_name(name):
    count, ndem = parameters(name), is_ndem(load(name))
    size = SIZES.get(name.removesuffix("_ndem").removesuffix("_energy2"))
    if size is not None:
        assert count / 1e6 == pytest.approx(size[ndem], abs=0.005)


@pytest.mark.parametrize("name", ["153M_energy2", "153M_energy2_ndem"])
def test_lambda_e_has_no_part_in_the_model(name):
    assert model_of(load(name)) == model_of(load(name.replace("_energy2", "")))


@pytest.mark.parametrize("name", COMPLETE)
def test_ndem_adds_one_head_and_nothing_else(name):
    config = load(name)
    shrink(config)
    heads = {"energy", "forces"} | ({"noisy_forces"} if is_ndem(config) else set())
    assert set(build(model_of(config)).output_heads) == heads


@pytest.mark.slow
def test_ndem_adds_389_million_parameters_to_153m():
    assert (parameters("153M_ndem") - parameters("153M")) / 1e6 == pytest.approx(3.89, abs=0.005)


# --- a misspelt key stops a run ------------------------------------------------------------------

MISSPELT = "sigma_maxx"


@pytest.mark.parametrize("name", COMPLETE)
def test_misspelt_setting_is_refused_by_name(name):
    config = load(name)
    config.setdefault("task", {}).setdefault("ndem", {})[MISSPELT] = 0.1
    with pytest.raises(SettingsError, match=rf"task\.ndem\.{MISSPELT}.*'sigma_max'"):
        read_task(config)


def test_the_energy_unit_follows_that_of_the_output():
    given = {"outputs": {"energy": {"unit": "kcal/mol"}}, "task": {"ndem": {"coefficient": 1}}}
    assert read_task(given).settings.energy_unit == "kcal/mol"
    given["outputs"]["energy"]["unit"] = "eV"  # the section now has all defaults
    with pytest.raises(SettingsError, match=r"'kcal/mol', but outputs\.energy\.unit is 'eV'"):
        read_task(given)


SECTIONS = [(), ("backbone",), ("heads", "energy"), ("heads", "forces")]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: ".".join(("model", *s)))
@pytest.mark.parametrize("name", COMPLETE)
def test_misspelt_model_key_is_refused_by_name(name, section):
    config = load(name)
    shrink(config)
    target = config["model"]
    for key in section:
        target = target[key]
    target["misspelt_key"] = 1
    with pytest.raises(TypeError, match="misspelt_key"):
        build(model_of(config))


@pytest.mark.parametrize("name", [*TWINS, "demo"])
def test_misspelt_key_of_the_auxiliary_head_is_refused_by_name(name):
    config = load(name)
    shrink(config)
    config["task"]["ndem"]["auxiliary_head"] = {"widht": 0.5}
    with pytest.raises(TypeError, match="widht"):
        build(model_of(config))


def shrink(config: dict[str, Any]) -> None:
    """Which keys a class accepts does not depend on its size."""
    config["model"]["backbone"].update(num_layers=1, lmax_list=[1], mmax_list=[1])


# --- every value has a source --------------------------------------------------------------------

SOURCE = re.compile(r"\[(EqV2|DeNS|NDeM)\]|not in the paper")
HEADER_SOURCE = re.compile(r"All values: \S+|not in the paper|Table \d")
# Paths, names and wiring: nothing that a paper would state.
PLUMBING = re.compile(
    r"includes|trainer|logger|evaluation_metrics"
    r"|dataset\.\w+\.(format|src|key_mapping)|outputs\.\w+\.(property|level|unit|report_unit)"
    r"|model\.(name|otf_graph|backbone\.model)|model\.heads\.\w+\.module"
)


def unsourced(text: str) -> list[str]:
    """Leaf values for which neither their line, their section nor the file names a source.

    A comment counts for the key on its line, for the key below it, and for the section whose
    first line it is.
    """
    lines = text.splitlines()
    header = " ".join(lines[: first_code_line(lines)])
    if HEADER_SOURCE.search(header):
        return []
    missing: list[str] = []

    def visit(node: yaml.Node, path: str, sourced: bool) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line
                here = f"{path}.{key.value}" if path else key.value
                section = isinstance(value, yaml.CollectionNode) and value.start_mark.line > line
                found = SOURCE.search(comments(lines, line, section, skip=path == ""))
                visit(value, here, sourced or found is not None)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                visit(value, path, sourced)
        elif not sourced and not PLUMBING.match(path):
            missing.append(path)

    visit(yaml.compose(text), "", False)
    return missing


def first_code_line(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))


def comments(lines: list[str], line: int, section: bool, skip: bool) -> str:
    """Comment of a line, of the comment lines above it (unless ``skip``) and, for a section's
    key, of those below it."""

    def is_comment(i: int) -> bool:
        return 0 <= i < len(lines) and lines[i].lstrip().startswith("#")

    found = [lines[line].partition("#")[2]]
    above, below = line - 1, line + 1
    while not skip and is_comment(above):
        found.append(lines[above])
        above -= 1
    while section and is_comment(below):
        found.append(lines[below])
        below += 1
    return " ".join(found)


@pytest.mark.parametrize("name", FILES)
def test_every_value_names_its_source(name):
    assert unsourced((FOLDER / f"{name}.yml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("optim:\n  lr: 1\n", ["optim.lr"]),
        ("optim:\n  lr: 1   # [DeNS]\n  n: 2\n", ["optim.n"]),
        ("optim:   # [EqV2]\n  lr: 1\n  a: {b: 2}\n", []),
        ("optim:\n  # [EqV2]\n  lr: 1\n  n: 2\n", []),
        ("optim:\n  lr: 1\n  # not in the paper\n  n: 2\n", ["optim.lr"]),
        ("loss_functions:\n  - energy: {fn: mae}\n", ["loss_functions.energy.fn"]),
        ("# A file.\ntask: {ndem: {sigma_max: 1}}\n", ["task.ndem.sigma_max"]),
        ("# All values: somewhere.\noptim:\n  lr: 1\n", []),
        ("trainer: x\ndataset:\n  train:\n    src: y\n", []),
    ],
)
def test_the_source_check_finds_what_lacks_one(text, missing):
    assert unsourced(text) == missing


# --- the documents keep step ---------------------------------------------------------------------


def doc(name: str = "configs.md") -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def table_after(heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading of docs/configs.md: {name: other cells}."""
    rows: dict[str, list[str]] = {}
    for line in doc().split(f"\n## {heading}\n")[1].splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            rows[name.strip().strip("`")] = cells
        elif rows:
            break
    return rows


def test_docs_list_every_setting_with_its_default():
    page = doc("settings_reference.md")
    defaults = {field.name: field.default for field in dataclasses.fields(NDeMSettings)}
    entries = re.findall(r"^### `(\w+)`\n\nDefault: `(.+?)`(.*)\n\n(.+)$", page, re.MULTILINE)
    assert [name for name, *_ in entries] == [*defaults, *HOST_KEYS]
    for name, default, values, text in entries:
        assert yaml.safe_load(default) == defaults.get(name), name
        assert len(text) > 20, name
        for choice in choices_of_all().get(name, ()):
            assert f"`{choice}`" in values, (name, choice)
    # What the paper says of a default; settings of second views have a paper of their own.
    noise = page.split("\n## Noise")[1].split("\n## Second views")[0]
    for entry in noise.split("\n### ")[1:]:
        assert "paper" in entry.lower() or "DeNS" in entry, entry


def test_docs_name_every_logged_quantity():
    rows = table_after("What NDeM logs")
    ones, yes = torch.ones(2, 3), torch.ones(2).bool()
    logged = noise_diagnostics(
        difference=ones,
        scale=ones[:, :1],
        noise=Noise(eps=ones, sigma=ones[:, 0], moved=yes, viewed=yes),
        keep=yes,
        force_rms=1.0,
        energy_unit=NDeMSettings().energy_unit,
        sigma_range=(0.0, 1.0),
    )
    quarters = {name for name in logged if "_sigma_" in name and name.endswith("of4")}
    assert len(quarters) == 4
    shown = "ndem_unrecovered_sigma_1of4` ... `4of4"
    alone = {"ndem_loss", "ndem_share_of_loss", "ndem_coefficient", *logged} - quarters
    assert set(rows) == {*alone, shown}


def test_docs_show_the_difference_between_twins_as_it_is():
    shown = doc().split("```diff\n")[1].split("```")[0].splitlines()
    before, after = (
        yaml.safe_dump(load(name), sort_keys=True).splitlines() for name in ("31M", "31M_ndem")
    )
    actual = difflib.unified_diff(before, after, n=1, lineterm="")
    keep = [line for line in actual if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert [line for line in shown if line[0] in "+-"] == keep


def test_docs_overrides_are_read_as_they_say():
    task = create_dict_from_args(["--task.ndem.coefficient=10", "--task.ndem.noise_scale=sigma"])
    assert task == {"task": {"ndem": {"coefficient": 10, "noise_scale": "sigma"}}}
    # Python's literals, not YAML's: "true" stays a string, which NDeM refuses by name.
    for value, fine in (("True", True), ("true", False)):
        given = create_dict_from_args([f"--task.ndem.learned_curvature={value}"])
        if fine:
            assert read_task(given)[0].learned_curvature
        else:
            with pytest.raises(SettingsError, match="learned_curvature"):
                read_task(given)


def test_docs_name_every_file_and_only_files_that_exist():
    text = doc()
    for name in FILES:
        assert f"`{name}.yml`" in text, name
    for path in re.findall(r"`((?:ndem_ocp|configs|tests|docs)/[\w/.]+)`", text + doc("method.md")):
        assert Path(ROOT / path).exists(), path
