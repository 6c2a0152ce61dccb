"""A trainer that can be killed at any moment and goes on as if nothing had happened.

Around fairchem's own loop, through its hook points:

``save``             everything that the next step depends on, of all ranks, in one atomic file
``load_checkpoint``  the same back; what is no longer exact is said
``train``            go on from the newest good checkpoint of the run
``_backward``        before it, the ranks vote: is every loss finite, has anybody been asked to stop
``validate``         leaves at once when asked to stop; the resumed run validates again

A checkpoint of fairchem's loop is written before the step's validation and schedule. What is left
of the step (its "tail") is noted in the file and done first by the run that resumes from it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch_geometric.data import Batch

from ndem_ocp.checkpoints import (
    CheckpointError,
    CheckpointStore,
    UnsafeError,
    read_checkpoint,
)
from ndem_ocp.data.reader import limits_from_model, loader_options
from ndem_ocp.report.failsafe_logger import FailsafeLogger, logger_or_none
from ndem_ocp.report.history import HistoryLogger
from ndem_ocp.training.bad_steps import BadSteps, skip_infinite_gradients
from ndem_ocp.training.early_stopping import EarlyStopping
from ndem_ocp.training.position import Position
from ndem_ocp.training.restore import (
    check_names,
    ema_by_name,
    keep_configured,
    optimizer_names,
    restore_schedule,
    trained_names,
)
from ndem_ocp.training.resume import RunSettings, changed_settings
from ndem_ocp.training.rng import rng_state, set_rng_state
from ndem_ocp.training.step_loader import StepLoader
from ndem_ocp.training.stopping import Stopped, request_stop, stop_requested

READER_FORMATS = ("ndem_lmdb", "ndem_ocp.LmdbReader", "ndem_ocp.data.reader.dataset.LmdbReader")
FORMAT = 1  # of what this trainer adds to fairchem's checkpoint


class _EndedEarly(BaseException):
    """Leaves fairchem's loop; not an ``Exception``, which an error handler might swallow."""


class SurvivingTrainer(OCPTrainer):
    """fairchem's trainer with exact resume, a vote in every step, and stops between steps."""

    # ------------------------------------------------------------------ setting up

    def load(self, inference_only: bool) -> None:
        self.run = RunSettings.from_task(self.config["task"])
        if not inference_only:
            self.run.check_path()
        self.early = EarlyStopping.from_task(self.config["task"])
        self.store = CheckpointStore(self.config["cmd"]["checkpoint_dir"], self.run.keep)
        self.bad_steps = BadSteps(self.run.max_bad_steps, Path(self.config["cmd"]["logs_dir"]))
        self._training = False
        self._loaded: Path | None = None  # the checkpoint that this run has its state from
        self._tail: dict[str, Any] | None = None  # what is left of that checkpoint's step
        self._rng: dict[str, Any] | None = None  # to set once the training loader is made
        self._running_metrics: dict[str, Any] = {}  # means since the last print, of the checkpoint
        self._ended: tuple[int, float] | None = None  # step and epoch whose tail is running
        self._stop: str | None = None
        self._validating = False
        self._before_validation: dict[str, Any] | None = None
        super().load(inference_only)

    def load_logger(self) -> None:
        given = self.config["logger"]
        name = given.get("name") if isinstance(given, dict) else given
        kind = registry.mapping["logger_name_mapping"].get(name)
        silent = self.is_debug or not distutils.is_master()
        if silent or kind is None or issubclass(kind, HistoryLogger):
            super().load_logger()
            if self.logger is not None and not isinstance(self.logger, HistoryLogger):
                self.logger = FailsafeLogger(self.logger)
        else:
            self.logger = logger_or_none(kind, self.config)

    def load_datasets(self) -> None:
        self._complete_datasets()
        super().load_datasets()
        if self.train_loader is not None:
            self.train_loader.hooks = self

    def _complete_datasets(self) -> None:
        """Tell our reader what this model can take, and where to note the records it skips."""
        limits = limits_from_model(self.config["model"])
        log = str(Path(self.config["cmd"]["logs_dir"]) / "bad_records.jsonl")
        for name in ("dataset", "val_dataset", "test_dataset", "relax_dataset"):
            section = self.config.get(name)
            if section and section.get("format") in READER_FORMATS:
                self.config[name] = {**limits, "bad_records_log": log, **section}

    def get_dataloader(self, dataset, sampler, workers=None):
        workers = self.config["optim"].get("num_workers", 0) if workers is None else workers
        return StepLoader(
            dataset,
            collate_fn=self.collater,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            batch_sampler=sampler,
            **loader_options(workers),
        )

    def load_optimizer(self) -> None:
        super().load_optimizer()
        skip_infinite_gradients(self.optimizer, lambda: self.bad_steps.gradient(self.step))

    # ------------------------------------------------------------------ saving

    def save(
        self,
        metrics: dict[str, Any] | None = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint; every rank must call this.

        fairchem calls it in the middle of a step. Called from elsewhere while training, by a
        signal handler say, on one rank, it only asks the run to stop: see ``stopping``.

        Raises:
            CheckpointError: if the file could not be written.
        """
        if self.is_debug:
            return None
        if not training_state:
            return self._save_best(metrics)
        if not self._training:
            return self._write(metrics, None)
        if not self._checkpoint_is_due():
            request_stop("a checkpoint was asked for within a step")
            return None
        return self._write(metrics, self._tail_of_step())

    def _checkpoint_is_due(self) -> bool:
        """Whether it is fairchem's loop that saves now, after the optimizer's step."""
        every = self.config["optim"].get("checkpoint_every", self._eval_every())
        every = len(self.train_loader) if every == -1 else every
        return self._ended == (self.step, self.epoch) and self.step % every == 0

    def _eval_every(self) -> int:
        return self.config["optim"].get("eval_every", len(self.train_loader))

    def _write(self, metrics: dict[str, Any] | None, tail: dict[str, Any] | None) -> str | None:
        generators = distutils.gather_objects(rng_state(self.device))
        if not distutils.is_master():
            return None
        schedule = self.scheduler
        state = {
            **self._state_of_model(metrics),
            "epoch": self.epoch,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_names": optimizer_names(self._unwrapped_model, self.optimizer),
            "scheduler": (
                None if schedule.scheduler_type == "Null" else schedule.scheduler.state_dict()
            ),
            "ema": self._ema_state(),
            "best_val_metric": self.best_val_metric,
            "primary_metric": self._primary_metric(),
            "ndem_checkpoint": FORMAT,
            "position": Position.of(self.step, self.train_loader, self._seed()).as_dict(),
            "rng": generators,
            "tail": tail,
            "running_metrics": self._running_metrics or getattr(self, "metrics", {}),
            "validations_since_best": self.early.since,
        }
        return str(self.store.save(state))

    def _save_best(self, metrics: dict[str, Any] | None) -> str | None:
        if not distutils.is_master():
            return None
        if self.ema is None:
            return str(self.store.save_best(self._state_of_model(metrics)))
        self.ema.store()
        self.ema.copy_to()
        try:
            # The weights are the moving average; as "ema" the same tensors take no more room.
            state = {**self._state_of_model(metrics), "ema": self._ema_state(), "weights": "ema"}
            trained = [p.detach() for p in self._unwrapped_model.parameters() if p.requires_grad]
            state["ema"]["shadow_params"] = trained
            return str(self.store.save_best(state))
        finally:
            self.ema.restore()

    def _state_of_model(self, metrics: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "state_dict": self.model.state_dict(),
            "normalizers": {key: value.state_dict() for key, value in self.normalizers.items()},
            "elementrefs": {key: value.state_dict() for key, value in self.elementrefs.items()},
            "config": self.config,
            "val_metrics": metrics,
            "amp": self.scaler.state_dict() if self.scaler else None,
            "epoch": self.epoch,
            "step": self.step,
        }

    def _ema_state(self) -> dict[str, Any] | None:
        if self.ema is None:
            return None
        # fairchem's copy of the weights during validation is no state of the run.
        names = trained_names(self._unwrapped_model)
        return {**self.ema.state_dict(), "collected_params": [], "names": names}

    def _tail_of_step(self) -> dict[str, Any] | None:
        """What fairchem's loop does after it has saved, as in OCPTrainer.train."""
        if self.config["optim"].get("checkpoint_every") == -1:
            return None  # saved at the end of an epoch, when the step is over
        return {"evaluate": self.step % self._eval_every() == 0}

    # ------------------------------------------------------------------ loading

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """Load a checkpoint; in a run that trains, everything it takes to go on from there.

        Raises:
            CheckpointError: if the file is missing or damaged and no other of this run is good.
            ConfigError: if it is of another model.
        """
        if checkpoint is None:
            checkpoint_path, checkpoint = self._read(checkpoint_path)
        groups = None
        if not inference_only and "optimizer" in checkpoint:
            here = optimizer_names(self._unwrapped_model, self.optimizer)
            check_names(checkpoint.get("optimizer_names"), here, str(checkpoint_path))
            groups = [dict(group) for group in self.optimizer.param_groups]
        state = {**checkpoint, "scheduler": None}  # put back below, on this run's curve
        if state.get("ema") is not None and self.ema is not None:
            names = trained_names(self._unwrapped_model)
            strict = self.config["task"].get("strict_load", True)
            state["ema"] = ema_by_name(state["ema"], names, self.ema.shadow_params, strict)
        super().load_checkpoint(checkpoint_path, state, inference_only)
        if groups is not None:
            schedule = getattr(self.scheduler, "scheduler", None)  # "Null" has none
            keep_configured(self.optimizer, groups, schedule)
            self._go_on(Path(checkpoint_path), checkpoint)

    def _read(self, path: str) -> tuple[str, dict[str, Any]]:
        device = torch.device("cpu") if self.cpu else self.device
        try:
            return path, read_checkpoint(path, device, self.run.unsafe)
        except UnsafeError:
            raise
        except CheckpointError as error:
            if not self.store.owns(path):
                raise
            logging.warning(str(error))
        found = self.store.read_newest(device, self.run.unsafe)
        if found is None:
            raise CheckpointError(
                f"{path} is damaged and {self.store.directory} holds no other checkpoint. Move it "
                "away to start the run again, or name another one with --checkpoint."
            )
        return str(found[0]), found[1]

    def _go_on(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Step, schedule, generators and the rest of the step, from a checkpoint just loaded."""
        self._loaded = path
        if self.train_loader is None:
            return
        here = Position.of(self.step, self.train_loader, self._seed())
        saved = Position(**checkpoint["position"]) if "position" in checkpoint else None
        notes = changed_settings(checkpoint.get("config"), self.config)
        if saved is None:
            notes.append("it has no state of the random number generators")
        else:
            notes = saved.differences(here) + notes
            self.step, twice = saved.step_in(here)
            if self.step != saved.step:
                notes.append(f"its step {saved.step} is step {self.step} here")
            if twice:
                notes.append(f"{twice} samples of this epoch are seen a second time")
            if self.step != saved.step:
                self.epoch = self.step / len(self.train_loader)
        self._tail = checkpoint.get("tail")
        self.early.since = int(checkpoint.get("validations_since_best") or 0)
        if self.scheduler.scheduler_type != "Null":
            notes += self._restore_schedule(checkpoint)
        states = checkpoint.get("rng")
        same_ranks = saved is not None and saved.world_size == here.world_size
        self._rng = states[distutils.get_rank()] if states and same_ranks else None
        self._running_metrics = checkpoint.get("running_metrics") or {}
        if distutils.is_master():
            exactly = f"not exactly: {'; '.join(notes)}." if notes else "exactly."
            logging.info(f"Going on from step {self.step} of {path}, {exactly}")

    def _restore_schedule(self, checkpoint: dict[str, Any]) -> list[str]:
        saved = checkpoint.get("scheduler") or {}
        schedule = self.scheduler.scheduler
        if self._tail is None and saved.get("last_epoch") == checkpoint.get("step", 0) - 1:
            self._tail = {"evaluate": False}  # a file of fairchem's trainer: saved within a step
        lag = 0 if self._tail is None else 1
        if self.scheduler.scheduler_type == "ReduceLROnPlateau":
            last_epoch = saved.get("last_epoch", schedule.last_epoch)
        else:
            last_epoch = self.step - lag
        if restore_schedule(schedule, saved or None, last_epoch):
            return []
        return ["the learning rate follows this configuration's schedule"]

    # ------------------------------------------------------------------ training

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """fairchem's ``train``, from the newest good checkpoint of this run if there is one.

        Raises:
            Stopped: on every rank, after a step whose state has been saved, when asked to stop.
            BadStepsError: after ``task.max_bad_steps`` steps in a row that were not finite.
        """
        self._resume()
        self._training = True
        try:
            self._finish_restored_step(disable_eval_tqdm)
            if not self.early.exhausted:
                self.before_training()
                super().train(disable_eval_tqdm)
            self.between_steps(last=True)
        except _EndedEarly:
            pass
        finally:
            self._training = False

    def before_training(self) -> None:
        """A hook between resuming and the first step."""

    def _resume(self) -> None:
        """The newest good checkpoint of this run, if it is newer than what has been loaded."""
        if self.is_debug or not self.run.newest_wins(self._loaded):
            return
        found: list[Any] = [None, None]
        if distutils.is_master():
            newest = self.store.newest()
            if newest is not None and not (self._loaded and newest.samefile(self._loaded)):
                found = [str(newest), self.store.step_of(newest, self.run.unsafe)]
            elif self._loaded is None and self.run.path is not None:
                found = [str(self.run.path), None]
        distutils.broadcast_object_list(found, src=0, device=self.device)
        path, step = found
        if path is None or (self._loaded is not None and step is not None and step <= self.step):
            return
        if self._loaded is not None and distutils.is_master():
            logging.warning(
                f"This run has a newer checkpoint ({path}, step {step}) than {self._loaded} (step "
                f"{self.step}): going on from the newer one. task.resume=named keeps the other."
            )
        self.load_checkpoint(path)

    def _finish_restored_step(self, disable_eval_tqdm: bool) -> None:
        """Do what was left of the step that the checkpoint was saved in, as the run would have."""
        if self._rng is not None:
            set_rng_state(self._rng, self.device)
        tail, self._tail = self._tail, None
        if hasattr(self.logger, "resumed"):
            self.logger.resumed(self.step, evaluates=bool(tail and tail["evaluate"]))
        if tail is not None:
            self._ended = (self.step, self.epoch)
            plateau = self.scheduler.scheduler_type == "ReduceLROnPlateau"
            metrics = self._evaluate(disable_eval_tqdm) if tail["evaluate"] else None
            if not plateau:
                self.scheduler.step()
            elif metrics is not None:
                self.scheduler.step(metrics=metrics[self._primary_metric()]["metric"])
            # The step is over now; between_steps() saves it if it was the last one.
        if self._rng is not None and self.step % len(self.train_loader):
            self._rng = rng_state(self.device)  # once more when the loader has drawn its seed
        else:
            self._rng = None

    def _evaluate(self, disable_eval_tqdm: bool) -> dict[str, Any] | None:
        """The evaluation of OCPTrainer.train, of a step that ended in a checkpoint."""
        metrics = None
        if self.val_loader is not None:
            metrics = self.validate(split="val", disable_tqdm=disable_eval_tqdm)
            self.update_best(self._primary_metric(), metrics, disable_eval_tqdm=disable_eval_tqdm)
        if self.config["task"].get("eval_relaxations") and "relax_dataset" in self.config["task"]:
            self.run_relaxations()
        return metrics

    def before_epoch(self) -> None:
        self.between_steps()

    def loader_ready(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng, self.device)
            self._rng = None

    def between_steps(self, last: bool = False) -> None:
        """The end of a step: nothing of it is left to do. Saves and leaves when asked to stop."""
        if self._ended is None:
            return
        now, (self.step, self.epoch) = (self.step, self.epoch), self._ended
        self._ended = None
        if self._stop is not None:
            self._leave(None)
        early = self.early.exhausted
        if (last or early) and not self.is_debug:
            self._write(None, None)  # also of a run shorter than checkpoint_every
        if early and not last:
            self._end_early()
        self.step, self.epoch = now

    def _end_early(self) -> None:
        if distutils.is_master():
            logging.info(
                f"No better validation in the last {self.early.since}: ending after step "
                f"{self.step} (task.early_stopping)."
            )
        raise _EndedEarly

    def _leave(self, tail: dict[str, Any] | None) -> None:
        reason = self._stop or "stop"
        if not self.is_debug:
            self._write(None, tail)
        if self.logger is not None:
            self.logger.mark_preempting()
        if distutils.is_master():
            logging.info(f"Stopping after step {self.step}, which is saved: {reason}.")
        raise Stopped(reason, self.step)

    # ------------------------------------------------------------------ one step

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        if self._validating:
            self._leave_evaluation_if_asked()
        return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        if self.model.training:
            self.bad_steps.look_at(batch, out)
        return super()._compute_loss(out, batch)

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        if self.model.training and self._running_metrics:
            metrics, self._running_metrics = self._running_metrics, {}
        return super()._compute_metrics(out, batch, evaluator, metrics)

    def _backward(self, loss: Tensor) -> None:
        """fairchem's, unless a rank's loss is not finite: then no rank takes the step."""
        good = bool(torch.isfinite(loss.detach())) and self.bad_steps.outputs_are_finite()
        bad_ranks, self._stop = self._vote(not good)
        self._ended = (self.step, self.epoch)
        if bad_ranks:
            self.metrics = {}  # the means since the last print hold the bad values
            self.bad_steps.skip(self.step, not good, self.store.directory, self.logger)
            return
        scale = self.scaler.get_scale() if self.scaler else 0.0
        super()._backward(loss)
        # AMP's scaler leaves steps out too, while it looks for its scale; below 1 it finds none.
        if self.scaler and self.scaler.get_scale() < min(scale, 1.0):
            self.bad_steps.gradient(self.step)
        self.bad_steps.passed(self.store.directory, self.logger)

    def _vote(self, bad: bool) -> tuple[int, str | None]:
        """How many ranks have something that is not finite, and whether any was asked to stop."""
        reason = stop_requested()
        votes = torch.tensor([int(bad), int(reason is not None)], device=self.device)
        bad_ranks, asked = distutils.all_reduce(votes).tolist()
        return bad_ranks, (reason or "asked for on another rank") if asked else None

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False):
        if not self._training:
            return super().validate(split, disable_tqdm)
        self._before_validation = rng_state(self.device)
        self._validating = True
        try:
            return super().validate(split, disable_tqdm)
        finally:
            self._validating = False

    def _leave_evaluation_if_asked(self) -> None:
        """A validation can last longer than a scheduler waits: go back to where it began."""
        _, self._stop = self._vote(False)
        if self._stop is None or self._before_validation is None or self._ended is None:
            return
        if self.ema:
            self.ema.restore()
        set_rng_state(self._before_validation, self.device)
        self.step, self.epoch = self._ended
        self._leave({"evaluate": True})

    def update_best(self, primary_metric, val_metrics, disable_eval_tqdm=True) -> None:
        before = self.best_val_metric
        super().update_best(primary_metric, val_metrics, disable_eval_tqdm)
        self.early.judged(better=self.best_val_metric != before)

    # ------------------------------------------------------------------ small things

    def _primary_metric(self) -> str:
        return self.evaluation_metrics.get(
            "primary_metric", self.evaluator.task_primary_metric.get(self.name)
        )

    def _seed(self) -> int | None:
        return self.config["cmd"]["seed"]
