"""The NDeM trainer: fairchem's trainer, a second view in each step, and one more loss.

What NDeM adds to a training step, in full:

1. draw eps for (seed, rank, step) and mark the batch with it              ``_forward``
2. one forward over X and X + eps; the main heads' outputs on X as ever     ``_forward``
3. loss = fairchem's losses + coefficient * L_NDeM (Eq. 18)                 ``_compute_loss``
4. its diagnostics join fairchem's metrics                                  ``_compute_metrics``

Everything else, ``train`` and ``predict`` included, is fairchem's.
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
from fairchem.core.modules.loss import DDPLoss
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch_geometric.data import Batch

from ndem_ocp.method import Forces, NDeMLoss, Noise, Tally, draw_noise, ndem_loss, step_generator
from ndem_ocp.models import NOISY_FORCES, two_view_config, with_second_view
from ndem_ocp.training.config import FORCES, ConfigError, check_config, check_data, read_task
from ndem_ocp.training.schedule import safe_optim, uses_epochs


@registry.register_trainer("ndem")
class NDeMTrainer(OCPTrainer):
    """Trains an energy + force model with NDeM; ``task.ndem`` holds the settings.

    ``task.ndem.coefficient: 0`` is fairchem's plain trainer, bit for bit. In validation,
    prediction and relaxation the model is the plain model at the plain model's cost.
    """

    def load(self, inference_only: bool) -> None:
        self.ndem, auxiliary_head = read_task(self.config)
        check_config(self.config, self.ndem)
        if not inference_only:
            check_data(self.config)
        if self.ndem.active:
            self.config["model"] = two_view_config(self.config["model"], self.ndem, auxiliary_head)
        self._noise: Noise | None = None
        self._ndem_log: dict[str, Tally] = {}
        super().load(inference_only)

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
        mean = DDPLoss("l2mae", reduction="mean").mean
        self._mean_over_ranks = lambda per_atom: mean(per_atom, per_atom, None)

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

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        self._noise = None
        if not (self.ndem.active and self.model.training):
            return super()._forward(batch)
        batch = batch.to(self.device)
        self._noise = draw_noise(
            batch.pos,
            batch.batch,
            batch.natoms.numel(),
            batch.fixed,
            self.ndem,
            step_generator(self.config["cmd"]["seed"] or 0, distutils.get_rank(), self.step),
        )
        with self._with_target(NOISY_FORCES, {"level": "atom", "property": NOISY_FORCES}):
            return super()._forward(with_second_view(batch, self._noise.eps, self._noise.viewed))

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        noisy = out.pop(NOISY_FORCES, None)
        self._ndem_log = {}
        loss = super()._compute_loss(out, batch)
        if noisy is None:
            return loss
        auxiliary = self._ndem_loss(out[FORCES], noisy, batch)
        weighted = self.ndem.coefficient * auxiliary.loss
        total = loss + weighted  # Eq. 18
        value, share = torch.stack([auxiliary.loss, weighted / total]).detach().tolist()
        self._ndem_log = {
            "ndem_loss": Tally(value, 1),
            "ndem_share_of_loss": Tally(share, 1),
            **auxiliary.log,
        }
        return total

    def _ndem_loss(self, clean: Tensor, noisy: Tensor, batch: Batch) -> NDeMLoss:
        """Eq. 17 for this batch; ``clean`` and ``noisy`` are (N, 3), normalised."""
        normalizer = self.normalizers.get(FORCES)
        label = batch[FORCES]
        if self.output_targets[FORCES]["train_on_free_atoms"]:
            counted = batch.fixed == 0
        else:
            counted = torch.ones_like(batch.fixed, dtype=torch.bool)
        return ndem_loss(
            Forces(clean, noisy, label if normalizer is None else normalizer.norm(label)),
            self._noise,
            counted,
            self.ndem,
            force_rms=1.0 if normalizer is None else self._force_rms(normalizer),
            curvature=self._unwrapped_model.curvature,
            mean=self._mean_over_ranks,
        )

    def _force_rms(self, normalizer: torch.nn.Module) -> float:
        """rms_F of Eq. 10 in energy unit per Angstrom, read once: it is a constant of the run."""
        if not hasattr(self, "_force_rms_value"):
            self._force_rms_value = float(normalizer.rmsd)
        return self._force_rms_value

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        for name, tally in self._ndem_log.items():
            if tally.weight:
                stat = {"total": tally.total, "numel": tally.weight}
                metrics = evaluator.update(name, stat, metrics)
        return metrics

    @contextlib.contextmanager
    def _with_target(self, name: str, target: dict[str, Any]) -> Iterator[None]:
        """Let fairchem's ``_forward`` return one more output, which metrics and predictions
        (they read the same table) must not see."""
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
