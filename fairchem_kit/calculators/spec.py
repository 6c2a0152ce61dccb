"""An ASE calculator from a string, and what identifies it.

    ase.calculators.emt:EMT()
    sevenn.calculator:SevenNetCalculator(model="7net-0")
    torchani.models:ANI1ccx(periodic_table_index=True).ase()
    fairchem.core:FAIRChemCalculator.from_model_checkpoint("uma-s-1p1", task_name="oc20")
    ./my_potential.py:calculator()
    data                               no potential, only what is fitted to the data (NoPotential)

Before the colon is a module or the path of a Python file, after it names, calls and plain values.
Nothing else is evaluated.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_kit.data.errors import DataError

DATA = "data"
_SEARCH_DEPTH = 3  # calculators have their network in self.model or self.predictor.model


@dataclass(frozen=True)
class Provenance:
    """What identifies a calculator.

    Attributes:
        spec: the string from which it was made. name: of its class.
        package, version: the installed distribution of the calculator.
        weights: first 12 hex digits of the SHA-256 of its network's weights, or of its parameters
            if it has no network; None if neither is found.
    """

    spec: str
    name: str
    package: str
    version: str
    weights: str | None

    @property
    def expression(self) -> str:
        """The call without its module: ``SevenNetCalculator(model='7net-0')``."""
        return self.spec.partition(":")[2] or self.spec

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        weights = f", weights {self.weights}" if self.weights else ""
        return f"{self.name} ({self.package} {self.version}{weights})"


def calculator_of(spec: str) -> Any:
    """The ASE calculator described by a string.

    Args:
        spec: ``module:expression``, see the docstring of this module.

    Raises:
        DataError: not of that form, not importable, or not a calculator; with the reason.
    """
    if spec == DATA:
        from .nothing import NoPotential  # ASE takes a second

        return NoPotential()
    module, expression = _split(spec)
    made = _evaluate(expression, _import(module, spec), spec)
    if isinstance(made, type) or not hasattr(made, "get_property"):
        raise DataError(
            f"--calculator {spec!r} gives {made!r}, which is not an ASE calculator"
            + ("; call it by adding ()" if callable(made) else "")
        )
    return made


def _split(spec: str) -> tuple[str, ast.expr]:
    module, colon, text = spec.partition(":")
    if not colon or not module or not text:
        raise DataError(
            f"--calculator {spec!r}: write MODULE:CALCULATOR, such as 'ase.calculators.emt:EMT()', "
            f"or {DATA}"
        )
    try:
        return module, ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise DataError(
            f"--calculator {spec!r}: {text!r} is not a Python call ({error.msg})"
        ) from None


def _import(name: str, spec: str) -> Any:
    try:
        if name.endswith(".py"):
            return _from_file(Path(name))
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's own module raises on import
        raise DataError(
            f"--calculator {spec!r}: {name} cannot be imported here "
            f"({type(error).__name__}: {error}). Run this command in the environment in which the "
            "calculator is installed; it needs this package, ASE, NumPy and lmdb there"
        ) from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _evaluate(node: ast.expr, module: Any, spec: str) -> Any:
    """The value of names, attributes and calls with plain values as arguments."""
    try:
        if isinstance(node, ast.Name):
            return getattr(module, node.id)
        if isinstance(node, ast.Attribute):
            return getattr(_evaluate(node.value, module, spec), node.attr)
        if isinstance(node, ast.Call):
            function = _evaluate(node.func, module, spec)
            arguments = [ast.literal_eval(argument) for argument in node.args]
            keywords = {item.arg: ast.literal_eval(item.value) for item in node.keywords}
            return function(*arguments, **keywords)
    except DataError:
        raise
    except Exception as error:  # from the calculator: a missing file of weights, a wrong argument
        raise DataError(
            f"--calculator {spec!r}: {ast.unparse(node)} failed ({type(error).__name__}: {error})"
        ) from error
    raise DataError(
        f"--calculator {spec!r}: {ast.unparse(node)!r} is neither a name nor a call with plain "
        "values; put it into a Python file and write './file.py:name()'"
    )


def provenance_of(calculator: Any, spec: str) -> Provenance:
    """What identifies a calculator: :class:`Provenance`."""
    top = __name__ if spec == DATA else spec.partition(":")[0]
    package = top if top.endswith(".py") else _distribution(top.partition(".")[0])
    return Provenance(
        spec=spec,
        name=type(calculator).__name__,
        package=package,
        version=_file_hash(Path(top)) if top.endswith(".py") else _version(package),
        weights=_weights_hash(calculator),
    )


def _distribution(module: str) -> str:
    """Name of the distribution that provides a top-level module; the module's own without one."""
    return next(iter(importlib.metadata.packages_distributions().get(module, [])), module)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _weights_hash(calculator: Any) -> str | None:
    networks = list(_networks(calculator, _SEARCH_DEPTH, set()))
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            if hasattr(tensor, "detach"):  # extra state of a module is not weights
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(_numbers(tensor)).tobytes())
    if networks:
        return digest.hexdigest()[:12]
    parameters = dict(getattr(calculator, "parameters", None) or {})
    if not parameters:
        return None
    text = json.dumps(parameters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _numbers(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype.itemsize != 2 else tensor.float()).numpy()  # bf16 has no NumPy


def _networks(thing: Any, depth: int, seen: set[int]) -> Any:
    """The torch modules in an object's attributes, lists and dictionaries."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if hasattr(thing, "state_dict") and hasattr(thing, "named_parameters"):
        yield thing
        return
    if depth == 0:
        return
    if isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        inside = list(thing)
    else:
        inside = list(getattr(thing, "__dict__", {}).values())
    for value in inside:
        if not isinstance(value, (str, bytes, int, float, np.ndarray, type)):
            yield from _networks(value, depth - 1, seen)
