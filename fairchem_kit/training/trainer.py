"""fairchem's trainer with components: each of its hook points is overridden once.

``train``, ``validate`` and ``predict`` are fairchem's own and not copied. component.py lists the
moments at which components are called; resume/ has everything about resuming.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_kit.commands.uncaught import say_it_in_a_sentence
from fairchem_kit.data.reader import loader_options
from fairchem_kit.history.failsafe import FailsafeLogger, logger_or_none
from fairchem_kit.history.logger import HistoryLogger
from fairchem_kit.training import no_free_atoms, relaxations, schedule
from fairchem_kit.training.amp import MixedPrecision
from fairchem_kit.training.bad_steps import BadSteps
from fairchem_kit.training.checks.build_errors import said_of
from fairchem_kit.training.checks.kinds import kind_problems
from fairchem_kit.training.checks.messages import raise_if_any
from fairchem_kit.training.checks.metrics import unreadable_losses
from fairchem_kit.training.component import Call, Component
from fairchem_kit.training.config import ConfigError, Keys
from fairchem_kit.training.deterministic import Deterministic
from fairchem_kit.training.early_stopping import EarlyStopping
from fairchem_kit.training.freeze import Freeze
from fairchem_kit.training.host_time import switch_only_if_needed, use_fused
from fairchem_kit.training.moving_average import MovingAverage
from fairchem_kit.training.normalizers import Normalizers
from fairchem_kit.training.one_job import only_job
from fairchem_kit.training.precision import Precision
from fairchem_kit.training.record_limits import RecordLimits
from fairchem_kit.training.resume import Ending, Resume
from fairchem_kit.training.resume.ending import EndedEarly
from fairchem_kit.training.step_costs import Costs
from fairchem_kit.training.step_loader import StepLoader
from fairchem_kit.training.units import UnitMetrics
from fairchem_kit.training.validation_splits import ValidationSplits

# Components of every trainer, in the order in which they are called (component.py).
TRAINING: tuple[type[Component], ...] = (
    UnitMetrics,
    Freeze,
    Precision,
    MixedPrecision,
    Deterministic,
    RecordLimits,
    no_free_atoms.NoFreeAtoms,
    relaxations.Relaxations,
    Costs,
    ValidationSplits,
    EarlyStopping,
    Resume,
    Ending,
    BadSteps,
)


class Trainer(OCPTrainer):
    """fairchem's energy + force trainer, resumable to the bit.

    Attributes:
        kinds: classes of its components, in the order in which they are called.
        full_name: name of this trainer in configurations, logs and checkpoints.
        in_training: whether :meth:`train` is running.
    """

    kinds: tuple[type[Component], ...] = (Keys, Normalizers, *TRAINING)
    full_name = "fairchem_kit.training.Trainer"

    resume: Resume
    ending: Ending
    bad_steps: BadSteps
    costs: Costs

    def __init__(self, *args: Any, name: str = "ocp", **kwargs: Any) -> None:
        say_it_in_a_sentence()
        self._evaluator = name  # name by which fairchem chooses its evaluator
        given = {**kwargs, "optim": kwargs.get("optimizer", {})}
        raise_if_any(kind_problems(given))
        problem = unreadable_losses(kwargs.get("loss_functions", {}), kwargs.get("task"))
        if problem is not None and "loss_functions" in kwargs:
            raise ConfigError(problem)
        super().__init__(*args, name=self.full_name, **kwargs)

    # ------------------------------------------------------------------ setting up

    def load(self, inference_only: bool) -> None:
        self.name = self._evaluator  # as it is in the configuration
        self.in_training = False
        self.components = [kind(self) for kind in self.kinds]
        for component in self.components:
            if component.name:
                setattr(self, component.name, component)
        for component in self.components:
            component.read()
        for component in self.components:
            component.prepare(inference_only)
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

    def load_model(self) -> None:
        with said_of("model"):
            super().load_model()
        switch_only_if_needed(self.model)
        for component in reversed(self.components):
            component.after_model()

    def load_datasets(self) -> None:
        for component in self.components:
            component.before_datasets()
        super().load_datasets()
        if self.train_loader is not None:
            self.train_loader.hooks = self
        for component in reversed(self.components):
            component.after_datasets()

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> StepLoader:
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
        use_fused(self.optimizer)
        for component in reversed(self.components):
            component.after_optimizer()

    def load_extras(self) -> None:
        steps = len(self.train_loader) if self.train_loader is not None else None
        call = Call(self, None)
        # a copy, because fairchem changes this section in place
        optim = schedule.safe_optim(self.config["optim"], steps)
        call.trainer.config = {**self.config, "optim": optim}
        if schedule.uses_epochs(optim):
            EquiformerV2ForcesTrainer.load_extras(call.trainer)
        else:
            OCPTrainer.load_extras(call.trainer)
        for made in ("scheduler", "clip_grad_norm", "ema_decay", "ema"):
            setattr(self, made, getattr(call.trainer, made))
        if self.ema is not None:
            self.ema = MovingAverage(self.model.parameters(), self.ema_decay)

    # ------------------------------------------------------------------ checkpoints: resume/

    def save(
        self,
        metrics: dict[str, Any] | None = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint; every rank must call this.

        fairchem calls it in the middle of a step. If it is called by other code during training,
        such as a signal handler on one rank, it only requests a stop (resume/stopping.py).

        Raises:
            CheckpointError: if the file could not be written.
        """
        if self.is_debug:
            return None
        return self.resume.save(metrics) if training_state else self.resume.save_best(metrics)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        """Load a checkpoint; for training, including everything needed to continue from it.

        Raises:
            CheckpointError: if the file is missing or damaged, and so is every other one of the
                run.
            ConfigError: if it is from another model.
        """
        load = super().load_checkpoint
        try:
            if hasattr(self, "resume"):
                self.resume.load(load, checkpoint_path, checkpoint, inference_only)
            else:
                load(checkpoint_path, checkpoint, inference_only)
        except (RuntimeError, ValueError) as error:
            for component in self.components:
                better = component.explain(error, str(checkpoint_path))
                if better is not None:
                    raise better from error
            raise

    # ------------------------------------------------------------------ training

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """fairchem's ``train``, resumed from the newest good checkpoint of this run, if any.

        Raises:
            Stopped: on every rank, if a stop was requested, after the step has been saved.
            BadStepsError: after ``task.max_bad_steps`` steps in a row that were not finite.
            CheckpointError: on every rank, if another job is training into this run.
        """
        with only_job(Path(self.config["cmd"]["checkpoint_dir"]), self.device):
            self._train(disable_eval_tqdm)

    def _train(self, disable_eval_tqdm: bool) -> None:
        self.resume.from_newest()
        self.in_training = True
        try:
            self.resume.finish_step(disable_eval_tqdm)
            if self.reason_to_end() is None:
                self.before_training()
                super().train(disable_eval_tqdm)
            self.between_steps(last=True)
        except EndedEarly:
            pass
        finally:
            self.in_training = False

    def before_training(self) -> None:
        for component in self.components:
            component.before_training()

    def reason_to_end(self) -> str | None:
        """Why the run should end after this step; None if it should continue."""
        reasons = (component.finished() for component in self.components)
        return next((reason for reason in reasons if reason is not None), None)

    # --- called by StepLoader

    def before_epoch(self) -> None:
        self.between_steps()

    def loader_ready(self) -> None:
        for component in self.components:
            component.loader_ready()

    def between_steps(self, last: bool = False) -> None:
        for component in self.components:
            component.between_steps(last)

    # ------------------------------------------------------------------ one step

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        call = Call(self, batch)
        for component in self.components:
            component.before_forward(call)
        return OCPTrainer._forward(call.trainer, call.batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        call = Call(self, batch, out)
        for component in self.components:
            component.before_loss(call)
        loss = OCPTrainer._compute_loss(call.trainer, call.out, call.batch)
        for component in reversed(self.components):
            loss = component.after_loss(loss)
        return loss

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        call = Call(self, batch, out, evaluator, metrics)
        for component in self.components:
            component.before_metrics(call)
        metrics = OCPTrainer._compute_metrics(
            call.trainer, call.out, call.batch, call.evaluator, call.metrics
        )
        for component in reversed(self.components):
            component.after_metrics(metrics, evaluator)
        return metrics

    def _backward(self, loss: Tensor) -> None:
        """fairchem's backward and optimizer step, unless the ranks agree to skip them."""
        votes = torch.tensor([int(c.vote(loss)) for c in self.components], device=self.device)
        counts = distutils.all_reduce(votes).tolist()
        answers = [c.voted(ranks) for c, ranks in zip(self.components, counts)]
        taken = all(answers)
        if taken:
            super()._backward(loss)
        for component in reversed(self.components):
            component.after_backward(taken)

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False):
        for component in self.components:
            component.before_validation()
        try:
            metrics = super().validate(split, disable_tqdm)
            for component in reversed(self.components):
                component.after_validation(split, metrics, disable_tqdm)
            return metrics
        finally:
            for component in self.components:
                component.validation_ended()

    def _aggregate_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        return no_free_atoms.aggregate(metrics, super()._aggregate_metrics, self.device)

    def update_best(self, primary_metric, val_metrics, disable_eval_tqdm=True) -> None:
        before = self.best_val_metric
        super().update_best(primary_metric, val_metrics, disable_eval_tqdm)
        for component in self.components:
            component.best_updated(better=self.best_val_metric != before)

    @torch.no_grad()
    def run_relaxations(self) -> None:
        relaxations.run(self)

    # ------------------------------------------------------------------ names

    def primary_metric_name(self) -> str:
        """Name of the metric by which the best checkpoint is chosen."""
        return self.evaluation_metrics.get(
            "primary_metric", self.evaluator.task_primary_metric.get(self.name)
        )

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        # fairchem broadcasts the time as float32, with a resolution of 128 s, so that runs started
        # shortly after each other would share a directory. Here it is an integer in milliseconds.
        now = torch.tensor(int(datetime.datetime.now().timestamp() * 1000), device=device)
        distutils.broadcast(now, 0)
        stamp = datetime.datetime.fromtimestamp(now.item() / 1000).strftime("%Y-%m-%d-%H-%M-%S-%f")
        return f"{stamp[:-3]}-{suffix}" if suffix else stamp[:-3]
