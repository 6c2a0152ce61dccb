"""Keys of a configuration that fairchem 1.10 or this package reads, and where each is read.

Files are relative to fairchem/core; ``new_trainer_context`` and ``update_config`` are in
common/utils.py. Arguments of constructors are not listed; they come from the signatures.
"""

from __future__ import annotations

_OLD = "it belongs to fairchem's layout before loss_functions; "

# new_trainer_context and build_config (common/utils.py), _cli.py, tasks/task.py (checkpoint,
# hide_eval_progressbar), common/distutils.py (timeout, ranks), setup_imports.
TOP = (
    *("trainer", "task", "model", "outputs", "dataset", "optim", "logger", "slurm"),
    *("loss_functions", "evaluation_metrics", "includes", "hide_eval_progressbar"),
    *("mode", "identifier", "timestamp_id", "seed", "is_debug", "run_dir", "print_every", "amp"),
    *("checkpoint", "cpu", "submit", "summit", "world_size", "distributed_backend", "gp_gpus"),
    *("local_rank", "rank", "init_method", "timeout", "use_cuda_visibile_devices"),
    *("skip_experimental_imports", "cmd", "gpus", "commit", "version", "noddp"),
)
DATASETS = ("train", "val", "test", "relax")  # BaseTrainer.__init__

TASK = (
    # only fairchem's; for this package see ``task_keys`` of the components
    "strict_load",  # trainers/base_trainer.py, load_checkpoint
    *("eval_relaxations", "relax_dataset"),  # trainers/ocp_trainer.py, train
    "prediction_dtype",  # predict
    # run_relaxations
    *("relax_opt", "relaxation_steps", "relaxation_fmax", "relax_cell", "relax_volume"),
    *("num_relaxation_batches", "save_full_traj", "write_pos", "set_deterministic_scatter"),
)
OLD_TASK = {
    "dataset": _OLD + "use dataset.train.format",
    "description": "it is only a comment",
    "type": _OLD + "use outputs and loss_functions",
    "metric": _OLD + "use evaluation_metrics",
    "labels": _OLD + "use outputs",
    "grad_input": _OLD + "use outputs",
    "primary_metric": _OLD + "use evaluation_metrics.primary_metric",
    "train_on_free_atoms": _OLD + "use outputs.forces.train_on_free_atoms",
    "eval_on_free_atoms": _OLD + "use outputs.forces.eval_on_free_atoms",
    "relaxation_dir": "task.relax_opt.traj_dir counts",
    "strict": "task.strict_load counts",
}

# load_optimizer, load_extras, get_sampler, get_dataloader, load_datasets, load
# (trainers/base_trainer.py); train (trainers/ocp_trainer.py); get_checkpoint_format.
OPTIM = (
    *("batch_size", "eval_batch_size", "num_workers", "load_balancing", "load_balancing_on_error"),
    *("lr_initial", "optimizer", "optimizer_params", "weight_decay", "clip_grad_norm", "ema_decay"),
    *("max_epochs", "eval_every", "checkpoint_every", "scheduler", "scheduler_params"),
    *("checkpoint_format", "load_datasets_and_model_then_exit"),
)
STEP_SCHEDULE = ("warmup_steps", "warmup_factor", "lr_milestones", "lr_gamma")  # warmup_lr_lambda
# models/equiformer_v2/trainers/lr_scheduler.py; epochs and lr are written by forces_trainer.py.
EPOCH_SCHEDULE = {
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}
WRITTEN_BY_THE_TRAINER = ("lambda_type", "epochs", "lr")
OLD_OPTIM = {
    **dict.fromkeys(
        ("energy_coefficient", "force_coefficient", "stress_coefficient"),
        _OLD + "use loss_functions",
    ),
    **dict.fromkeys(
        ("loss_energy", "loss_force", "loss_forces", "loss_stress"),
        _OLD + "use loss_functions",
    ),
    "grad_accumulation_steps": "fairchem 1.10 does not accumulate gradients, so a batch is "
    "batch_size times the number of ranks",
    **dict.fromkeys(
        ("use_denoising_pos", "denoising_pos_params", "denoising_pos_coefficient"),
        "it is for fairchem's DeNS trainer; use task.ndem.objective: dens",
    ),
    "energy_grad_loss": _OLD + "use loss_functions",
    "debug_batches": "it was removed before fairchem 1.10",
}

# datasets/base_dataset.py (BaseDataset, create_dataset), load_datasets (splits, settings).
DATASET = (
    *("format", "src", "metadata_path", "lin_ref", "key_mapping", "transforms"),
    *("max_atoms", "subset_to", "first_n", "sample_n", "no_shuffle", "seed"),
    *("splits", "use_train_settings"),
    *("train_split_settings", "val_split_settings", "test_split_settings"),
)
_ASE = ("a2g_args", "keep_in_memory", "atoms_transform_args", "include_relaxed_energy")
# By class name of fairchem's readers; subclasses also have the keys of their bases. Other readers
# declare their own in a class attribute ``known_keys``.
READERS = {
    # datasets/lmdb_dataset.py
    "LmdbDataset": ("shard", "total_shards", "train_on_oc20_total_energies"),
    # datasets/oc22_lmdb_dataset.py
    "OC22LmdbDataset": ("data2train", "train_on_oc20_total_energies", "oc20_ref"),
    "AseAtomsDataset": _ASE,  # datasets/ase_datasets.py, this and the next
    "AseReadDataset": ("ase_read_args", "pattern"),
    "AseReadMultiStructureDataset": ("ase_read_args", "pattern", "index_file", "use_tqdm"),
    "AseDBDataset": ("connect_args", "select_args"),
}
OLD_DATASET = {
    **dict.fromkeys(
        ("normalize_labels", "target_mean", "target_std", "grad_target_mean", "grad_target_std"),
        _OLD + "dataset.train.transforms.normalizer counts",
    ),
    "oc20_ref": "it is only for format: oc22_lmdb",
    "total_energy": "it is only for format: oc22_lmdb",
}
# modules/normalization: _load_utils.py (fit, file), create_normalizer, fit_normalizers,
# create_element_references, fit_linear_references.
NORMALIZER = ("mean", "rmsd", "stdev", "file", "state_dict", "tensor")
_FIT = ("targets", "batch_size", "num_batches", "num_workers", "shuffle", "seed", "fitted")
FIT_NORMALIZER = (*_FIT, "override_values", "rmsd_correction")
REFERENCES = ("file", "state_dict")
FIT_REFERENCES = (*_FIT, "max_num_elements", "log_metrics", "use_numpy", "driver")

# load_task, _forward, _compute_loss, _compute_metrics, predict; unit, report_unit:
# fairchem_kit/training/units.py; parent is written by load_task.
OUTPUT = (
    *("property", "level", "train_on_free_atoms", "eval_on_free_atoms", "decomposition"),
    *("irrep_dim", "prediction_dtype", "parent", "unit", "report_unit"),
)
OLD_OUTPUT = {"shape": "fairchem 1.10 takes the shape from the model", "type": "it is not used"}
LOSS = ("fn", "coefficient", "reduction")  # load_loss
EVALUATION = ("metrics", "primary_metric")  # load_task, train
# outputs that a metric needs by name (modules/evaluator.py); other metrics need their own output
METRIC_NEEDS = {
    "energy_forces_within_threshold": ("energy", "forces"),
    "energy_within_threshold": ("energy",),
    "average_distance_within_threshold": ("positions",),
    **{f"forces{axis}_{kind}": ("forces",) for axis in "xyz" for kind in ("mae", "mse")},
}

# load_logger, load_model (watch), _backward (log_weight_table); the loggers of common/logger.py.
LOGGER = ("name", "watch", "log_weight_table", "project", "entity", "group")
HISTORY_LOGGER = ("inner",)  # fairchem_kit/history/logger.py
