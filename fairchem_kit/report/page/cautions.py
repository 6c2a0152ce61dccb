"""Warnings for the comparison of runs, as sentences."""

from __future__ import annotations

from fairchem_kit.report.page.comparable import MEAN, Arms, data_text
from fairchem_kit.report.page.runs import Run
from fairchem_kit.training.resume import changed_settings
from fairchem_kit.words import counted


def cautions(arms: Arms) -> list[str]:
    """Warnings about different lengths or hardware, and runs that are not repetitions of their
    arm's first run."""
    checks = (_changed, _lengths, _hardware, _unlike, _shorter, _by_path)
    return [note for check in checks for note in check(arms)]


def _lengths(arms: Arms) -> list[str]:
    lengths_of = {}
    for arm, runs in arms.items():
        steps = max(run.steps for run in runs)
        planned = next((run.planned_epochs for run in runs if run.planned_epochs), None)
        epochs = next((run.epochs for run in runs if run.steps == steps and run.epochs), None)
        text = counted(steps, "step")
        if epochs is not None:
            text += f", {epochs:.3g}" + (f" of {planned:g} epochs" if planned else " epochs")
        lengths_of[arm] = (steps, planned, text)
    lengths = {(steps, planned) for steps, planned, _ in lengths_of.values()}
    if len(lengths) < 2:
        return []
    listed = "; ".join(f"{arm}: {text}" for arm, (_, _, text) in lengths_of.items())
    return [
        f"The arms have different lengths ({listed}). Their best errors are after different "
        "amounts of training, and at a common step they may be at different points of their "
        "learning-rate schedules."
    ]


def _hardware(arms: Arms) -> list[str]:
    devices = {arm: sorted({d for run in runs for d in run.devices}) for arm, runs in arms.items()}
    known = {arm: found for arm, found in devices.items() if found}
    if len({tuple(found) for found in known.values()}) < 2:
        return []
    listed = "; ".join(f"{arm}: {', '.join(found)}" for arm, found in known.items())
    return [f"The arms ran on different hardware ({listed}): times and costs are not comparable."]


def _by_path(arms: Arms) -> list[str]:
    """Validation data known by its path only, in a report of several runs."""
    runs = [run for members in arms.values() for run in members]
    lacking: dict[str, list[Run]] = {}
    for run in runs:
        for split in run.validation_splits:
            if split != MEAN and not any(
                one.get(split, {}).get("hash") for one in run.validated_on
            ):
                lacking.setdefault(split, []).append(run)
    if len(runs) < 2 or not lacking:
        return []
    parts = [
        f"{split} of {'all runs' if found == runs else ', '.join(run.name for run in found)}"
        for split, found in lacking.items()
    ]
    return [
        f"No record of the content of the validation data: {'; '.join(parts)}. Whether they are "
        "the same is known from the path only."
    ]


def _changed(arms: Arms) -> list[str]:
    """Runs that were continued on other validation data."""
    notes = []
    for run in (run for runs in arms.values() for run in runs):
        for split in run.validation_splits:
            records = [one[split] for one in run.validated_on if split in one]
            if len({one["hash"] for one in records if one.get("hash")}) > 1:
                texts = " and later ".join(dict.fromkeys(map(data_text, records)))
                notes.append(
                    f"{run.name} was continued on other data for {split} ({texts}): its curve "
                    "joins numbers that are not comparable."
                )
    return notes


def _unlike(arms: Arms) -> list[str]:
    """Arms whose runs differ in more than the seed: their band mixes different settings."""
    notes = []
    for arm, runs in arms.items():
        for run in runs[1:]:
            if runs[0].config and run.config:
                changes = changed_settings(runs[0].config, run.config)
                if changes:
                    notes.append(
                        f"{run.run_dir.name} is not a repetition of {runs[0].run_dir.name}, "
                        f"although both are in the arm {arm!r}: {'; '.join(changes)}."
                    )
    return notes


def _shorter(arms: Arms) -> list[str]:
    """Runs that end before the others of their arm, whose mean ends there."""
    notes = []
    for runs in arms.values():
        ends = [run.steps for run in runs]
        notes += [
            f"{run.run_dir.name} has {counted(end, 'step')} so far, others of its arm {max(ends)}: "
            "the arm's curves end there, and its row of the table averages runs of different "
            "lengths."
            for run, end in zip(runs, ends)
            if end < max(ends)
        ]
    return notes
