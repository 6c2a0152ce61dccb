"""The NDeM trainer: fairchem's trainer, a second view in each step, and one more loss.

What NDeM adds to a training step, in full:

1. draw eps for (seed, rank, step) and mark the batch with it              ``_forward``
2. one forward over X and X + eps; the main heads' outputs on X as ever     ``_forward``
3. loss = fairchem's losses + coefficient * L_NDeM (Eq. 18)                 ``_compute_loss``
4. its diagnostics join fairchem's metrics                                  ``_compute_metrics``

What an objective shows the model and how its loss is made is in ``objectives.py``, one class for
each. Checkpoints, resuming and steps that are not finite are in ``survival.py``, several validation
splits in ``validation_splits.py``, what a step costs in ``step_costs.py``, what relaxations need in
``relaxations.py``. Everything else, ``train`` and ``predict`` included, is fairchem's.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.modules.loss import MSELoss
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch_geometric.data import Batch

from ndem_ocp.commands.uncaught import say_it_in_a_sentence
from ndem_ocp.method import (
    Noise,
    Tally,
    draw_noise,
    step_generator,
    typical_scale,
    with_no_change,
)
from ndem_ocp.models import NOISY_FORCES
from ndem_ocp.pretrained import init_from, take_normalizers
from ndem_ocp.second_views.source import ViewSource
from ndem_ocp.training.config import (
    FORCES,
    SECOND_VIEWS_OF,
    ConfigError,
    check_auxiliary_head,
    check_config,
    check_data,
    read_task,
    trains,
)
from ndem_ocp.training.distributed import auxiliary_parameters, rewrap
from ndem_ocp.training.freeze import freeze, leave_out_frozen
from ndem_ocp.training.losses import SquaredL2Loss
from ndem_ocp.training.no_free_atoms import NoFreeAtoms, mean_over_ranks, sum_over_ranks
from ndem_ocp.training.normalizers import resolve_normalizers
from ndem_ocp.training.objectives import Step, hide_atoms, objective_of, step_of
from ndem_ocp.training.precision import read_precision, set_precision
from ndem_ocp.training.relaxations import Relaxations
from ndem_ocp.training.schedule import safe_optim, uses_epochs
from ndem_ocp.training.step_costs import StepCosts
from ndem_ocp.training.units import add_unit_metrics, unit_metrics
from ndem_ocp.training.validation_splits import ValidationSplits

NAME = "ndem_ocp.NDeMTrainer"  # as configurations, logs and checkpoints have it


@registry.register_trainer("ndem")
class NDeMTrainer(NoFreeAtoms, Relaxations, StepCosts, ValidationSplits):
    """Trains an energy + force model with NDeM; ``task.ndem`` holds the settings.

    ``task.ndem.coefficient: 0`` is fairchem's plain trainer, bit for bit, and so are all steps
    before ``task.ndem.start``. In validation, prediction and relaxation the model is the plain
    model at the plain model's cost.
    """

    def __init__(self, *args: Any, name: str = "ocp", **kwargs: Any) -> None:
        say_it_in_a_sentence()
        self._evaluator = name  # fairchem's name of a task, by which its evaluator is chosen
        super().__init__(*args, name=NAME, **kwargs)

    def load(self, inference_only: bool) -> None:
        self.name = self._evaluator  # what fairchem has written into the configuration is NAME
        self.ndem, auxiliary_head, second_views = read_task(self.config)
        check_config(self.config, self.ndem)
        read_precision(self.config["task"])
        if not inference_only:
            check_data(self.config, self.ndem)
            if trains():
                take_normalizers(self.config)
            resolve_normalizers(self.config)
        self._unit_metrics = unit_metrics(self.config.get("outputs") or {})
        self.objective = objective_of(self.ndem)
        self.views: ViewSource | None = None
        if self.ndem.active and second_views is not None and not inference_only and trains():
            self.views = ViewSource(second_views, self.config["dataset"]["src"], self.ndem)
            self.config["task"]["ndem"][SECOND_VIEWS_OF] = self.views.provenance()
        if self.ndem.active:
            model = self.objective.model_config(self.config["model"], auxiliary_head)
            check_auxiliary_head(model)
            self.config["model"] = model
        self._noise: Noise | None = None
        self._ndem_log: dict[str, Tally] = {}
        super().load(inference_only)

    def load_model(self) -> None:
        super().load_model()
        self._frozen = freeze(self._unwrapped_model, self.config["task"].get("freeze"))
        self._waiting: list[torch.nn.Parameter] = []  # auxiliary ones that DDP does not know yet
        if self.ndem.active and self.ndem.start > 0:
            modules = self.objective.auxiliary_modules
            auxiliary = auxiliary_parameters(self._unwrapped_model, modules)
            self._waiting = [parameter for parameter in auxiliary if parameter.requires_grad]
        if self._waiting or self._frozen:
            self.model = rewrap(self.model, leave_out=self._waiting)

    def load_optimizer(self) -> None:
        super().load_optimizer()
        if self._frozen:
            leave_out_frozen(self.optimizer)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False
    ) -> None:
        try:
            super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        except (RuntimeError, ValueError) as error:
            if NOISY_FORCES in str(error) or "parameter group" in str(error):
                raise ConfigError(
                    f"{checkpoint_path} and this configuration differ in the auxiliary head: one "
                    "of them is plain, or has another head. Use the task.ndem that the checkpoint "
                    "was trained with; in validation and prediction its head costs nothing."
                ) from error
            raise

    def load_loss(self) -> None:
        super().load_loss()
        # fairchem's mean over all atoms of all ranks, so that L_NDeM is reduced as L_F is.
        self._mean_over_ranks = mean_over_ranks()

    def load_extras(self) -> None:
        given = self.config
        steps = len(self.train_loader) if self.train_loader is not None else None
        # fairchem rewrites this section in place; the run's own configuration stays as written.
        self.config = {**given, "optim": safe_optim(given["optim"], steps)}
        try:
            if uses_epochs(given["optim"]):
                EquiformerV2ForcesTrainer.load_extras(self)
            else:
                super().load_extras()
        finally:
            self.config = given

    def before_training(self) -> None:
        if self.step == 0:  # a run that is resumed has its weights already
            normalizer = self.normalizers.get(FORCES)
            force_rms = 1.0 if normalizer is None else self._force_rms(normalizer)
            init_from(
                self._unwrapped_model,
                self.config["task"].get("init_from"),
                noise_gain=self.objective.sign * typical_scale(self.ndem, force_rms),
                ema=self.ema,
                config=self.config,
                normalizers=self.normalizers,
            )
        precision, tolerance = read_precision(self.config["task"])
        if precision != "highest":
            set_precision(precision, tolerance, self._some_forces)

    @torch.no_grad()
    def _some_forces(self) -> Tensor:
        """Forces of the first structures of the training set, without a trace in the run."""
        few = range(min(4, len(self.train_dataset)))
        batch = self.collater([self.train_dataset[index] for index in few]).to(self.device)
        training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # frames of edges
            forces = OCPTrainer._forward(self, batch)[FORCES]
        self.model.train(training)
        return forces

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        self._noise = None
        self._coefficient = self._coefficient_now() if self.model.training else 0.0
        if self._coefficient == 0:
            return super()._forward(batch)
        if self._waiting:
            self.model, self._waiting = rewrap(self.model), []
        noise = self._draw(batch)  # from the batch on the CPU
        batch = batch.to(self.device)
        self._noise = noise.to(self.device)
        view = self.objective.view(batch, self._noise)
        if not self.objective.auxiliary_modules:
            return super()._forward(view)
        self.measure_second_view(batch, view)
        with self._with_target(NOISY_FORCES, {"level": "atom", "property": NOISY_FORCES}):
            return super()._forward(view)

    def _draw(self, batch: Batch) -> Noise:
        """The noise of this step, from (seed, rank, step) alone."""
        seed = self.config["cmd"]["seed"] or 0
        generator = step_generator(seed, distutils.get_rank(), self.step)
        progress = self.step / self._total_steps()
        if self.views is not None:
            return self.views.draw(batch, generator, progress)
        noise = draw_noise(
            batch.pos,
            batch.batch,
            batch.natoms.numel(),
            batch.get("fixed"),
            self.ndem,
            generator,
            progress,
        )
        return with_no_change(noise, batch.natoms.numel()) if self.ndem.instead else noise

    def _coefficient_now(self) -> float:
        """lambda_NDeM of this step: a function of the step and of the length of training."""
        if not self.ndem.active:
            return 0.0
        return self.ndem.coefficient_at(self.step, self._total_steps())

    def _total_steps(self) -> int:
        return int(self.config["optim"]["max_epochs"] * len(self.train_loader))

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        auxiliary = out.pop(NOISY_FORCES, None)
        self._ndem_log = {}
        if self.ndem.ramp > 0 and self.model.training:
            self._ndem_log["ndem_coefficient"] = Tally(self._coefficient, 1)
        if self._noise is None:
            return super()._compute_loss(out, batch)
        step = self._step_of(batch)
        shown = self.objective.labelled(batch, self._noise)
        loss = super()._compute_loss(self.objective.main_outputs(out, step), shown)
        ndem = self.objective.loss(out, auxiliary, step)
        if auxiliary is None:
            self._ndem_log = sum_over_ranks(self._ndem_log | ndem.log, self.device)
            return loss
        weighted = self._coefficient * ndem.loss
        total = loss + weighted  # Eq. 18
        value, weighted, whole = torch.stack([ndem.loss, weighted, total]).detach().tolist()
        self._ndem_log |= {
            "ndem_loss": Tally(value, 1),
            "ndem_share_of_loss": Tally(weighted, whole),
            **ndem.log,
        }
        self._ndem_log = sum_over_ranks(self._ndem_log, self.device)
        return total

    def _step_of(self, batch: Batch) -> Step:
        normalizer = self.normalizers.get(FORCES)
        return step_of(
            batch,
            self._noise,
            self.output_targets.get(FORCES),
            normalizer,
            force_rms=1.0 if normalizer is None else self._force_rms(normalizer),
            curvature=getattr(self._unwrapped_model, "curvature", None),
            mean=self._mean_over_ranks,
            weight=self._coefficient,
            progress=self.step / self._total_steps(),
            normalised=self._normalised_label,
            squared=self._squared_losses(),
        )

    def _normalised_label(self, name: str, batch: Batch) -> Tensor:
        """The label of an output as fairchem's loss compares it: referenced and normalised."""
        label = batch[name]
        if self.output_targets[name]["level"] != "atom":
            label = label.view(batch.natoms.numel(), -1)
        if name in self.elementrefs:
            label = self.elementrefs[name].dereference(label, batch)
        return self.normalizers[name].norm(label) if name in self.normalizers else label

    def _squared_losses(self) -> frozenset[str]:
        """Outputs whose loss is the square of a residual and not its norm."""
        return frozenset(
            name
            for name, loss in self.loss_functions
            if isinstance(loss["fn"].loss_fn, (MSELoss, SquaredL2Loss))
        )

    def _force_rms(self, normalizer: torch.nn.Module) -> float:
        """rms_F of Eq. 10 in energy unit per Angstrom, read once: it is a constant of the run."""
        if not hasattr(self, "_force_rms_value"):
            self._force_rms_value = float(normalizer.rmsd)
        return self._force_rms_value

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        metrics = self._main_metrics(out, batch, evaluator, metrics)
        add_unit_metrics(metrics, self._unit_metrics)
        for name, tally in self._ndem_log.items():
            if tally.weight:
                stat = {"total": tally.total, "numel": tally.weight}
                metrics = evaluator.update(name, stat, metrics)
        return metrics

    def _main_metrics(self, out, batch, evaluator, metrics):
        """fairchem's metrics, over the atoms whose main force predicts the label."""
        hidden = None if self._noise is None else self.objective.hidden(self._noise)
        if self._noise is not None:
            batch = self.objective.labelled(batch, self._noise)
        if hidden is None:
            return super()._compute_metrics(out, batch, evaluator, metrics)
        target = self.output_targets[FORCES]
        seen = hide_atoms(batch, hidden, target["eval_on_free_atoms"])
        with self._with_target(FORCES, {**target, "eval_on_free_atoms": True}):
            return super()._compute_metrics(out, seen, evaluator, metrics)

    @contextlib.contextmanager
    def _with_target(self, name: str, target: dict[str, Any]) -> Iterator[None]:
        """Change the table that fairchem's forward, metrics and predictions read, for one call:
        only ``_forward`` may see the auxiliary output."""
        targets = self.output_targets
        self.output_targets = {**targets, name: target}
        try:
            yield
        finally:
            self.output_targets = targets

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        # fairchem sends the time as float32, whose steps are 128 s wide: runs that start close
        # together would share a directory. Milliseconds in an integer keep them apart.
        now = torch.tensor(int(datetime.datetime.now().timestamp() * 1000), device=device)
        distutils.broadcast(now, 0)
        stamp = datetime.datetime.fromtimestamp(now.item() / 1000).strftime("%Y-%m-%d-%H-%M-%S-%f")
        return f"{stamp[:-3]}-{suffix}" if suffix else stamp[:-3]
