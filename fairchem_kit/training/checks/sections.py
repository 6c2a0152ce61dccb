"""Check keys and names in all sections except the model's."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from fairchem.core.modules import transforms as transform_functions

from fairchem_kit.training.checks import known_keys
from fairchem_kit.training.checks.messages import hint, is_close, shown, unknown_keys, warn

# name under ``dataset`` -> section in a trainer's configuration
SPLITS = {
    "dataset": "train",
    "val_dataset": "val",
    "test_dataset": "test",
    "relax_dataset": "relax",
}


def task_problems(
    task: Any, old_layout: bool = False, more_keys: Iterable[str] = ()
) -> Iterator[str]:
    """``task``. Components check the values of their own keys.

    Args:
        task: the section.
        more_keys: valid keys in addition to fairchem's.
        old_layout: whether fairchem converted an older configuration and has read its old keys.
    """
    valid = (*known_keys.TASK, *more_keys)
    yield from unknown_keys(task, *_with_old(valid, "task", known_keys.OLD_TASK, old_layout))
    relax = task.get("relax_opt") if isinstance(task, Mapping) else None
    if relax is not None:
        valid = [name for name in _parameters(LBFGS) if name != "optimizable_batch"]
        harmless = {"name": "fairchem 1.10 only has LBFGS"}
        yield from unknown_keys(relax, valid, "task.relax_opt", harmless)


#: classes of torch from which others are made
_BASES = ("Optimizer", "LRScheduler")


def optim_problems(optim: Any, old_layout: bool = False) -> Iterator[str]:
    """``optim``, including keys of the optimizer and of the schedule."""
    if not isinstance(optim, Mapping):
        yield f"optim must be a mapping of keys to values, not {shown(optim)}."
        return
    scheduler, params = optim.get("scheduler"), optim.get("scheduler_params")
    valid, harmless = [*known_keys.OPTIM], dict(known_keys.OLD_OPTIM)
    step_keys = [*known_keys.STEP_SCHEDULE, *_torch_names(torch.optim.lr_scheduler, scheduler)]
    if params is None:
        valid += step_keys
    else:
        harmless |= dict.fromkeys(step_keys, "optim.scheduler_params describes the schedule")
    yield from unknown_keys(optim, *_with_old(valid, "optim", harmless, old_layout))

    name = optim.get("optimizer", "AdamW")
    names = _classes(torch.optim)
    if name not in names:
        yield f"optim.optimizer = {shown(name)}: torch.optim has no such class. {hint(name, names)}"
    else:
        given = _parameters(getattr(torch.optim, name))
        valid = [key for key in given if key not in ("params", "lr")]
        yield from unknown_keys(optim.get("optimizer_params"), valid, "optim.optimizer_params")
    yield from _scheduler_problems(scheduler, params)


def _scheduler_problems(scheduler: Any, params: Any) -> Iterator[str]:
    if scheduler in (None, "Null"):
        return
    known = _torch_names(torch.optim.lr_scheduler, scheduler)
    if not known:
        names = ["Null", *_classes(torch.optim.lr_scheduler)]
        yield (
            f"optim.scheduler = {shown(scheduler)}: torch.optim.lr_scheduler has no such schedule. "
            f"{hint(scheduler, names)}"
        )
        return
    if params is None:
        if scheduler == "LambdaLR":
            yield (
                "optim.scheduler = 'LambdaLR' needs optim.scheduler_params (lambda_type: cosine, "
                "warmup_epochs, warmup_factor, lr_min_factor); for fairchem's schedule in steps "
                "leave optim.scheduler out."
            )
        return
    valid = [*known, *known_keys.WRITTEN_BY_THE_TRAINER]
    if scheduler == "LambdaLR":
        keys = {key for kind in known_keys.EPOCH_SCHEDULE.values() for key in kind}
        valid = [*known_keys.WRITTEN_BY_THE_TRAINER, *sorted(keys), "last_epoch", "verbose"]
    yield from unknown_keys(params, valid, "optim.scheduler_params")


def dataset_problems(config: Mapping[str, Any], old_layout: bool = False) -> Iterator[str]:
    """``dataset.train``, ``val`` and ``test``: keys of the reader, splits, transforms."""
    outputs = output_names(config.get("outputs"))
    for key, split in SPLITS.items():
        section = config.get(key)
        where = f"dataset.{split}"
        if not section:
            continue
        if not isinstance(section, Mapping):
            yield f"{where} must be a mapping with src, not {shown(section)}."
            continue
        reader = section.get("format") or (config.get("dataset") or {}).get("format") or "lmdb"
        valid = None
        try:
            valid = reader_keys(registry.get_dataset_class(reader))
        except RuntimeError:
            names = registry.mapping["dataset_name_mapping"]
            yield f"{where}.format = {shown(reader)} is not a reader. {hint(reader, names)}"
        if valid is None:  # a reader that does not declare its keys
            _warn_about_close(section, [*known_keys.DATASET], where)
        else:
            keys = _with_old(valid, where, known_keys.OLD_DATASET, old_layout)
            yield from unknown_keys(section, *keys)
            for name in known_keys.DATASET:
                if name.endswith("_split_settings"):
                    yield from unknown_keys(section.get(name), valid, f"{where}.{name}")
        if section.get("normalize_labels") and not _normalizer(section):
            yield (
                f"{where}.normalize_labels = True belongs to fairchem's old layout and normalizes "
                f"nothing with loss_functions: write {where}.transforms.normalizer: {{energy: "
                "{mean: ..., stdev: ...}, forces: {mean: 0.0, stdev: ...}}."
            )
        yield from _transform_problems(section.get("transforms"), f"{where}.transforms", outputs)


def reader_keys(reader: type) -> list[str] | None:
    """Keys of a dataset section for this reader; None if unknown.

    A reader of another package declares them in a class attribute ``known_keys``: the keys that it
    reads in addition to those of fairchem's BaseDataset and of fairchem's readers among its bases.
    """
    own = getattr(reader, "known_keys", None)
    names = [base.__name__ for base in reader.__mro__]
    if own is None and not reader.__module__.startswith("fairchem."):
        return None
    bases = [key for name in names for key in known_keys.READERS.get(name, ())]
    return [*known_keys.DATASET, *bases, *(own or ())]


def _normalizer(section: Mapping[str, Any]) -> Any:
    return (section.get("transforms") or {}).get("normalizer")


def _transform_problems(transforms: Any, where: str, outputs: list[str]) -> Iterator[str]:
    if not transforms:
        return
    own = [name for name, value in vars(transform_functions).items() if inspect.isfunction(value)]
    own = [name for name in own if name not in ("suppress", "cg_change_mat", "irreps_sum")]
    yield from unknown_keys(transforms, ["normalizer", "element_references", *own], where)
    if not isinstance(transforms, Mapping):
        return
    for name, keys, fit in (
        ("normalizer", known_keys.NORMALIZER, known_keys.FIT_NORMALIZER),
        ("element_references", known_keys.REFERENCES, known_keys.FIT_REFERENCES),
    ):
        section = transforms.get(name)
        if isinstance(section, str) and name == "normalizer":
            if section != "dataset":
                yield f"{where}.{name} = {shown(section)}: must be a mapping, or dataset."
            continue
        if section is not None and not isinstance(section, Mapping):
            yield f"{where}.{name} must be a mapping, not {shown(section)}."
            continue
        for target, value in (section or {}).items():
            inside = f"{where}.{name}.{target}"
            if target == "file":
                continue
            yield from unknown_keys(value, fit if target == "fit" else keys, inside)
            if target != "fit" and target not in outputs:
                yield from _no_such_output(inside, target, outputs)


def _no_such_output(where: str, name: Any, outputs: list[str]) -> Iterator[str]:
    """A misspelled output is a mistake; any other unknown output only gives a warning."""
    if is_close(name, outputs):
        yield f"{where}: there is no output {name!r}. {hint(name, outputs)}"
    else:
        warn(f"{where} has no effect: there is no output {name!r} under outputs.")


def output_names(outputs: Any) -> list[str]:
    """Names of all outputs, including parts of decomposed ones."""
    names = []
    for name, output in outputs.items() if isinstance(outputs, Mapping) else ():
        names.append(name)
        if isinstance(output, Mapping) and isinstance(output.get("decomposition"), Mapping):
            names += list(output["decomposition"])
    return names


def output_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """``outputs``: keys, and entries that fairchem needs."""
    outputs, model = config.get("outputs"), config.get("model") or {}
    if not isinstance(outputs, Mapping):
        yield f"outputs must be a mapping of names to settings, not {shown(outputs)}."
        return
    heads = model.get("heads") if isinstance(model, Mapping) else None
    by_head = isinstance(heads, Mapping) and not model.get("pass_through_head_outputs")
    for name, output in outputs.items():
        where = f"outputs.{name}"
        yield from unknown_keys(output, known_keys.OUTPUT, where, known_keys.OLD_OUTPUT)
        if not isinstance(output, Mapping):
            continue
        for part, settings in (output.get("decomposition") or {}).items():
            yield from unknown_keys(
                settings, known_keys.OUTPUT, f"{where}.decomposition.{part}", known_keys.OLD_OUTPUT
            )
        if output.get("level") not in ("system", "atom"):
            yield (
                f"{where}.level = {shown(output.get('level'))}: write 'system' (one value per "
                "structure) or 'atom'."
            )
        for key in ("train_on_free_atoms", "eval_on_free_atoms"):
            if output.get("level") == "atom" and key not in output:
                yield f"{where}.{key} is missing: set it to True (OC20) or False."
        if not by_head or "decomposition" in output:
            continue
        if name not in heads:
            yield (
                f"{where}: model.heads has no head {name!r}. {hint(name, heads)} With "
                "model.pass_through_head_outputs: True one head may return several outputs."
            )
        elif "property" not in output:
            yield (
                f"{where}.property is missing, but heads of a hydra model return named properties: "
                f"write {where}.property: {name}."
            )


def logger_problems(logger: Any) -> Iterator[str]:
    """``logger`` and the ``inner`` logger of :class:`ndem_ocp.HistoryLogger`."""
    if logger is None:
        return
    section = {"name": logger} if isinstance(logger, str) else logger
    if not isinstance(section, Mapping):
        yield f"logger must be a name or a mapping with name, not {shown(logger)}."
        return
    names = ["wandb_singleton", *registry.mapping["logger_name_mapping"]]
    classes = []
    for key in ("name", "inner"):
        name = section.get(key)
        if name is None and key == "inner":
            continue
        if name in names:
            classes.append(registry.mapping["logger_name_mapping"].get(name))
        elif isinstance(name, str) and "." in name:
            try:
                classes.append(registry.get_logger_class(name))
            except RuntimeError as error:
                yield f"logger.{key} = {shown(name)} cannot be imported: {error.__cause__}."
        else:
            yield f"logger.{key} = {shown(name)} is not a logger. {hint(name, names)}"
    ours = ("fairchem.", "fairchem_kit.", "ndem_ocp.")
    if all(cls is None or cls.__module__.startswith(ours) for cls in classes):
        yield from unknown_keys(section, [*known_keys.LOGGER, *known_keys.HISTORY_LOGGER], "logger")


def _with_old(
    valid: Iterable[str], where: str, old: Mapping[str, str], old_layout: bool
) -> tuple[list[str], str, dict[str, str]]:
    """The last three arguments of :func:`unknown_keys`, depending on the layout."""
    return ([*valid, *old], where, {}) if old_layout else ([*valid], where, dict(old))


def _warn_about_close(section: Mapping[str, Any], valid: list[str], where: str) -> None:
    for key in section:
        if key not in valid and is_close(key, valid):
            warn(f"{where}.{key} looks like a misspelled key. {hint(key, valid)}")


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def _classes(module: Any) -> list[str]:
    """What a configuration can name: classes that are made in the module's package itself."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__.startswith(module.__name__)
        and not name.startswith("_")
        and name not in _BASES
    ]


def _torch_names(module: Any, name: Any) -> list[str]:
    if name not in _classes(module):
        return []
    given = _parameters(getattr(module, name))
    return [key for key in given if key not in ("optimizer", "lr_lambda")]
