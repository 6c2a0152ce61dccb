"""The component that saves and resumes a run; see the docstring of the package."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils

from fairchem_kit.checkpoints import CheckpointError, CheckpointStore, UnsafeError, read_checkpoint
from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.moving_average import averaged_weights
from fairchem_kit.training.resume.content import (
    FinishedStep,
    best_state,
    model_state,
    seed_of,
    training_state,
)
from fairchem_kit.training.resume.position import Position
from fairchem_kit.training.resume.restore import (
    check_names,
    configured,
    ema_by_name,
    optimizer_names,
    restore_schedule,
    trained_names,
)
from fairchem_kit.training.resume.rng import rng_state, set_rng_state
from fairchem_kit.training.resume.settings import RunSettings, changed_settings
from fairchem_kit.training.resume.stopping import request_stop


class Resume(Component):
    """Saves a run, and resumes it from a checkpoint."""

    name = "resume"
    task_keys = ("resume", "keep_checkpoints", "unsafe")

    def read(self) -> None:
        self.settings = RunSettings.from_task(self.config["task"])
        self.store = CheckpointStore(self.config["cmd"]["checkpoint_dir"], self.settings.keep)
        self._loaded: Path | None = None  # the checkpoint from which this run was resumed
        self._tail: dict[str, Any] | None = None  # the unfinished part of that checkpoint's step
        self._rng: dict[str, Any] | None = None  # to be restored once the training loader is built
        self._running_metrics: dict[str, Any] = {}  # of the checkpoint, since a log line

    def prepare(self, inference_only: bool) -> None:
        if not inference_only:
            self.settings.check_path()

    # ------------------------------------------------------------------ saving

    def save(self, metrics: dict[str, Any] | None) -> str | None:
        """See :meth:`fairchem_kit.training.trainer.Trainer.save`."""
        if not self.trainer.in_training:
            return self.write(FinishedStep.now(self.trainer), metrics)
        if not self._checkpoint_is_due():
            request_stop("a checkpoint was requested within a step")
            return None
        return self.write(FinishedStep.now(self.trainer), metrics, self._tail_of_step())

    def save_best(self, metrics: dict[str, Any] | None) -> str | None:
        """Write the checkpoint of the best validation (only rank 0)."""
        if not distutils.is_master():
            return None
        with averaged_weights(self.trainer.ema):
            return str(self.store.save_best(best_state(self.trainer, metrics)))

    def _checkpoint_is_due(self) -> bool:
        """Whether fairchem's loop saves a checkpoint in this step, after the optimizer's step."""
        trainer = self.trainer
        every = self.config["optim"].get("checkpoint_every", self._eval_every())
        every = len(trainer.train_loader) if every == -1 else every
        return trainer.ending.ended == FinishedStep.now(trainer) and trainer.step % every == 0

    def _eval_every(self) -> int:
        return self.config["optim"].get("eval_every", len(self.trainer.train_loader))

    def _tail_of_step(self) -> dict[str, Any] | None:
        """What remains of the step after fairchem's loop has saved, as in OCPTrainer.train."""
        if self.config["optim"].get("checkpoint_every") == -1:
            return None  # saved at the end of an epoch, when the step is complete
        return {"evaluate": self.trainer.step % self._eval_every() == 0}

    def write(
        self,
        at: FinishedStep,
        metrics: dict[str, Any] | None = None,
        tail: dict[str, Any] | None = None,
    ) -> str | None:
        """Write the run's checkpoint; every rank must call this.

        Args:
            at: the finished step. metrics: those of its validation. tail: its unfinished part.
        """
        trainer = self.trainer
        generators = distutils.gather_objects(rng_state(trainer.device))
        if not distutils.is_master():
            return None
        state = {
            **model_state(trainer, at, metrics),
            **training_state(trainer, at),
            "rng": generators,
            "tail": tail,
            "running_metrics": self._running_metrics or getattr(trainer, "metrics", {}),
        }
        return str(self.store.save(state))

    # ------------------------------------------------------------------ loading

    def load(
        self,
        fairchem_load: Callable[..., None],
        path: str,
        checkpoint: dict[str, Any] | None,
        inference_only: bool,
    ) -> None:
        """See ``Trainer.load_checkpoint``; ``fairchem_load`` is fairchem's own method."""
        trainer = self.trainer
        if checkpoint is None:
            path, checkpoint = self._read(path)
        state = {**checkpoint, "scheduler": None}  # restored below, with this run's settings
        resumed = not inference_only and "optimizer" in checkpoint
        if resumed:
            here = optimizer_names(trainer._unwrapped_model, trainer.optimizer)
            check_names(checkpoint.get("optimizer_names"), here, str(path))
            schedule = getattr(trainer.scheduler, "scheduler", None)  # "Null" has none
            groups = trainer.optimizer.param_groups
            state["optimizer"] = configured(checkpoint["optimizer"], groups, schedule)
        if state.get("ema") is not None and trainer.ema is not None:
            names = trained_names(trainer._unwrapped_model)
            strict = self.config["task"].get("strict_load", True)
            state["ema"] = ema_by_name(state["ema"], names, trainer.ema.shadow_params, strict)
        fairchem_load(path, state, inference_only)
        if resumed:
            self._restore_run(Path(path), checkpoint)

    def _read(self, path: str) -> tuple[str, dict[str, Any]]:
        device = torch.device("cpu") if self.trainer.cpu else self.trainer.device
        try:
            return path, read_checkpoint(path, device, self.settings.unsafe)
        except UnsafeError:
            raise
        except CheckpointError as error:
            if not self.store.owns(path):
                raise
            logging.warning(str(error))
        found = self.store.read_newest(device, self.settings.unsafe)
        if found is None:
            raise CheckpointError(
                f"{path} is damaged and {self.store.directory} has no other checkpoint. Move it "
                "away to start the run from the beginning, or give another one with --checkpoint."
            )
        return str(found[0]), found[1]

    def _restore_run(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Restore what fairchem does not: step, schedule, generators, the tail of the step."""
        self._loaded = path
        trainer = self.trainer
        if trainer.train_loader is None:
            return
        here = Position.of(trainer.step, trainer.train_loader, seed_of(trainer))
        saved = Position(**checkpoint["position"]) if "position" in checkpoint else None
        notes = changed_settings(checkpoint.get("config"), self.config)
        if saved is None:
            notes.append("it has no state of the random number generators")
        else:
            notes = saved.differences(here) + notes + self._set_step(saved, here)
        self._tail = checkpoint.get("tail")
        for component in trainer.components:
            component.restore(checkpoint)
        if trainer.scheduler.scheduler_type != "Null":
            notes += self._restore_schedule(checkpoint)
        states = checkpoint.get("rng")
        same_ranks = saved is not None and saved.world_size == here.world_size
        self._rng = states[distutils.get_rank()] if states and same_ranks else None
        self._running_metrics = checkpoint.get("running_metrics") or {}
        if distutils.is_master():
            exactly = f"not exactly: {'; '.join(notes)}." if notes else "exactly."
            logging.info(f"Continuing from step {trainer.step} of {path}, {exactly}")

    def _set_step(self, saved: Position, here: Position) -> list[str]:
        """Set the trainer's step from a saved one, in this run's steps; returns what differs."""
        trainer, notes = self.trainer, []
        trainer.step, twice = saved.step_in(here)
        if trainer.step != saved.step:
            notes.append(f"its step {saved.step} is step {trainer.step} here")
            trainer.epoch = trainer.step / len(trainer.train_loader)
        if twice:
            notes.append(f"{twice} samples of this epoch are seen a second time")
        return notes

    def _restore_schedule(self, checkpoint: dict[str, Any]) -> list[str]:
        saved = checkpoint.get("scheduler") or {}
        schedule = self.trainer.scheduler.scheduler
        if self._tail is None and saved.get("last_epoch") == checkpoint.get("step", 0) - 1:
            self._tail = {"evaluate": False}  # written by fairchem's own trainer, within a step
        # 1 if the tail still has to advance the schedule for the last training step
        lag = 0 if self._tail is None else 1
        if self.trainer.scheduler.scheduler_type == "ReduceLROnPlateau":
            last_epoch = saved.get("last_epoch", schedule.last_epoch)
        else:
            last_epoch = self.trainer.step - lag
        if restore_schedule(schedule, saved or None, last_epoch):
            return []
        return ["the learning rate follows this configuration's schedule"]

    # ------------------------------------------------------------------ starting

    def from_newest(self) -> None:
        """Load the newest good checkpoint of this run, if it is newer than the one loaded."""
        trainer = self.trainer
        if trainer.is_debug or not self.settings.newest_wins(self._loaded):
            return
        found: list[Any] = [None, None]
        if distutils.is_master():
            newest = self.store.newest()
            if newest is not None and not (self._loaded and newest.samefile(self._loaded)):
                found = [str(newest), self.store.step_of(newest, self.settings.unsafe)]
            elif self._loaded is None and self.settings.path is not None:
                found = [str(self.settings.path), None]
        distutils.broadcast_object_list(found, src=0, device=trainer.device)
        path, step = found
        if path is None or (self._loaded is not None and step is not None and step <= trainer.step):
            return
        if self._loaded is not None and distutils.is_master():
            logging.warning(
                f"This run has a newer checkpoint ({path}, step {step}) than {self._loaded} (step "
                f"{trainer.step}): continuing with the newer. task.resume=named keeps the other."
            )
        trainer.load_checkpoint(path)

    def finish_step(self, disable_eval_tqdm: bool) -> None:
        """Do the unfinished part of the step in which the checkpoint was saved."""
        trainer = self.trainer
        if self._rng is not None:
            set_rng_state(self._rng, trainer.device)
        tail, self._tail = self._tail, None
        if hasattr(trainer.logger, "resumed"):
            trainer.logger.resumed(trainer.step, evaluates=bool(tail and tail["evaluate"]))
        if tail is not None:
            trainer.ending.ended = FinishedStep.now(trainer)
            plateau = trainer.scheduler.scheduler_type == "ReduceLROnPlateau"
            metrics = self._evaluate(disable_eval_tqdm) if tail["evaluate"] else None
            if not plateau:
                trainer.scheduler.step()
            elif metrics is not None:
                trainer.scheduler.step(metrics=metrics[trainer.primary_metric_name()]["metric"])
            # The step is complete now; between_steps() saves it if it was the last one.
        if self._rng is not None and trainer.step % len(trainer.train_loader):
            self._rng = rng_state(trainer.device)  # set again when the loader has drawn its seed
        else:
            self._rng = None

    def _evaluate(self, disable_eval_tqdm: bool) -> dict[str, Any] | None:
        """The evaluation in OCPTrainer.train, after a step with a checkpoint."""
        trainer, metrics = self.trainer, None
        if trainer.val_loader is not None:
            metrics = trainer.validate(split="val", disable_tqdm=disable_eval_tqdm)
            best_of = trainer.primary_metric_name()
            trainer.update_best(best_of, metrics, disable_eval_tqdm=disable_eval_tqdm)
        if self.config["task"].get("eval_relaxations") and "relax_dataset" in self.config["task"]:
            trainer.run_relaxations()
        return metrics

    def loader_ready(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng, self.trainer.device)
            self._rng = None

    def before_metrics(self, call: Call) -> None:
        if self.trainer.model.training and self._running_metrics:
            call.metrics, self._running_metrics = self._running_metrics, {}
