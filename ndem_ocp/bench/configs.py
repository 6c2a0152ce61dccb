"""The configuration of the measured model, with changed sizes if requested."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

import ndem_ocp
from fairchem_kit.yaml_file import read_mapping, yaml_errors
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.names import MODELS

NDEM = "ndem.yml"  # settings of task.ndem for configurations without any


def config_path(name: str) -> Path:
    """The YAML file of a model of :data:`MODELS`, or a path itself.

    Raises:
        BenchError: if there is no such file.
    """
    if name not in MODELS:
        path = Path(name)
        if path.is_file():
            return path
        raise BenchError(
            f"--model {name}: no such file, and not one of the names {', '.join(MODELS)}."
        )
    return _shipped(MODELS[name])


def _shipped(name: str) -> Path:
    places = [Path("configs/oc20"), Path(ndem_ocp.__file__).parents[1] / "configs" / "oc20"]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise BenchError(
        f"configs/oc20/{name} does not exist: run this in a checkout of the project, or give "
        "--model the path of a configuration."
    )


def read_config(
    name: str,
    layers: int | None = None,
    lmax: int | None = None,
    mmax: int | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """A complete configuration, with ``task.ndem`` filled in from configs/oc20/ndem.yml.

    Args:
        name: of :data:`MODELS`, or a path.
        layers: model.backbone.num_layers.
        lmax: largest degree L.
        mmax: largest order M; with a smaller L, at most L.
        overrides: ``--key.key=value`` as fairchem's command line has them.

    Raises:
        BenchError: for a model that is not a hydra model, or has none of these sizes.
    """
    from fairchem.core.common.utils import load_config

    path = config_path(name)
    read_mapping(path, BenchError, "a configuration")
    with yaml_errors(path, BenchError):
        config = load_config(str(path))[0]
    for override in overrides or ():
        set_key(config, override)
    model = config.get("model")
    kind = model.get("name") if isinstance(model, dict) else model
    if kind != "hydra":
        raise BenchError(
            f"{name}: model.name is {kind!r}; what can be compared are models written "
            "as name: hydra (docs/configs.md)."
        )
    resize(model["backbone"], name, layers, lmax, mmax)
    task = config["task"] = config.get("task") or {}
    if not task.get("ndem"):
        task["ndem"] = load_config(str(_shipped(NDEM)))[0]["task"]["ndem"]
    return config


def resize(
    backbone: dict[str, Any],
    name: str,
    layers: int | None = None,
    lmax: int | None = None,
    mmax: int | None = None,
) -> None:
    """Set sizes of a backbone section; None leaves a size unchanged.

    Raises:
        BenchError: if the backbone of the model ``name`` has no such size, or the value is
            impossible.
    """
    given = {"--layers": layers, "--lmax": lmax, "--mmax": mmax}
    keys = {"--layers": "num_layers", "--lmax": "lmax_list", "--mmax": "mmax_list"}
    for option, value in given.items():
        if value is not None and keys[option] not in backbone:
            raise BenchError(f"{option}: model.backbone of {name} has no {keys[option]}.")
        if value is not None and value < (1 if option == "--layers" else 0):
            raise BenchError(f"{option} {value} is too small.")
    if layers is not None:
        backbone["num_layers"] = layers
    if lmax is not None:
        backbone["lmax_list"] = [lmax]
        backbone["mmax_list"] = [min(backbone["mmax_list"][0], lmax)]
        if backbone.get("grid_resolution"):  # e3nn's grids need two points per degree
            least = 2 * (lmax + 1)
            backbone["grid_resolution"] = max(backbone["grid_resolution"], least)
    if mmax is not None:
        if mmax > backbone["lmax_list"][0]:
            raise BenchError(f"--mmax {mmax} is above the L of the model.")
        backbone["mmax_list"] = [mmax]


def set_key(config: dict[str, Any], override: str) -> None:
    """Set one ``[--]key.key=value``; the value is read as YAML.

    Raises:
        BenchError: if it is not of that form.
    """
    key, found, value = override.lstrip("-").partition("=")
    if not (key and found):
        raise BenchError(f"{override!r} is not an override: write --model.backbone.num_layers=2.")
    *sections, last = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
        if not isinstance(config, dict):
            raise BenchError(f"{override!r}: {section} is not a section.")
    config[last] = yaml.safe_load(value)


def describe(model: dict[str, Any]) -> str:
    """Size of a model in words, such as ``equiformer_v2_backbone, 2 layers, L = 6, M = 2``."""
    backbone = model["backbone"]
    parts = [str(backbone.get("model"))]
    if "num_layers" in backbone:
        parts.append(f"{backbone['num_layers']} layers")
    if "lmax_list" in backbone:
        parts.append(f"L = {backbone['lmax_list'][0]}, M = {backbone['mmax_list'][0]}")
    if "sphere_channels" in backbone:
        parts.append(f"{backbone['sphere_channels']} channels")
    return ", ".join(parts)


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without paths, for a hash that does not depend on where the data are."""
    config = copy.deepcopy(config)
    for section in (config.get("dataset") or {}).values():
        section.pop("src", None)
    return config
