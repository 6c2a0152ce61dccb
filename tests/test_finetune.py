"""Fine-tuning: published layouts, normalizers kept or replaced, parameters frozen by name."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import ndem_ocp
import published_files
from conftest import TINY_BACKBONE, tiny_config
from fairchem_kit.training.config import ConfigError
from fairchem_kit.training.freeze import freeze
from helpers import state_of
from ndem_ocp.export import export_checkpoint
from ndem_ocp.models.equiformer_names import to_upstream
from ndem_ocp.pretrained import PretrainedError
from ndem_ocp.testing import steps, trainer_of
from ndem_ocp.testing.runs import PLAIN_TRAINER
from test_calculator import slab

AUXILIARY = "output_heads.noisy_forces."


@pytest.fixture(scope="module", params=["single class", "hydra"])
def published(request, demo_data, tmp_path_factory):
    """(path, content) of a file in each layout, for the network of ``tiny_config``."""
    path = tmp_path_factory.mktemp("published") / "eq2_31M_ec4_allmd.pt"
    model = to_upstream(tiny_config(demo_data)["model"])
    if request.param == "hydra":
        return path, published_files.hydra(path, model)
    return path, published_files.single_class(path, model["backbone"])


def in_hydra(name: str) -> str:
    """A single-class weight's name in a hydra model; a hydra name as it is."""
    if name.startswith(("backbone.", "output_heads.")):
        return name
    blocks = {"energy_block": "energy", "force_block": "forces"}
    head = blocks.get(name.split(".")[0])
    return f"output_heads.{head}.{name}" if head else f"backbone.{name}"


def starting_from(path, **more):
    return lambda config: config["task"].update(init_from={"checkpoint": str(path), **more})


# --- from a published file -----------------------------------------------------------------------


def test_a_run_starts_from_a_published_layout(published, new_trainer, caplog):
    """Average, heads and normalizers come from the file; the auxiliary head starts fresh."""
    path, content = published
    trainer = new_trainer(edit=starting_from(path, normalizers="checkpoint"))
    fresh = {n: v.clone() for n, v in state_of(trainer).items() if n.startswith(AUXILIARY)}
    with caplog.at_level(logging.INFO):
        trainer.before_training()
    state = state_of(trainer)
    for name, value in published_files.averages(content).items():
        assert torch.equal(state[in_hydra(name)], value), name
    assert fresh
    assert all(torch.equal(state[name], value) for name, value in fresh.items())
    for name, (mean, rmsd) in (
        ("energy", published_files.ENERGY),
        ("forces", published_files.FORCES),
    ):
        assert trainer.normalizers[name].mean.item() == pytest.approx(mean)
        assert trainer.normalizers[name].rmsd.item() == pytest.approx(rmsd)
        written = trainer.config["dataset"]["transforms"]["normalizer"][name]
        assert written["rmsd"] == pytest.approx(rmsd)
    for words in (
        f"Pre-trained weights from {path} (kind: fairchem)",
        "mapped into backbone: ",
        "mapped into output_heads.energy: ",
        "mapped into output_heads.forces: ",
        "head noisy_forces is not in the checkpoint: ",
        "The auxiliary head starts from random weights",
        "Weights: the moving average.",
        "The file is at step 1000000; this run starts at step 0",
    ):
        assert words in caplog.text
    assert "The normalizer of" not in caplog.text  # they agree
    losses = steps(trainer, 2)
    assert all(loss == loss and loss < 1e6 for loss in losses)
    assert trainer.step <= 3


def test_the_runs_own_normalizers_are_kept_unless_asked(published, new_trainer, caplog):
    path, _ = published
    trainer = new_trainer(edit=starting_from(path))
    with caplog.at_level(logging.WARNING):
        trainer.before_training()
    assert trainer.normalizers["forces"].rmsd.item() == pytest.approx(0.739)
    assert "The normalizer of forces differs from the checkpoint's" in caplog.text
    assert "task.init_from.normalizers: checkpoint" in caplog.text


def test_predictions_do_not_change_at_the_start(published, new_trainer):
    """With the file's normalizers step 0 predicts what the file predicts."""
    path, _ = published
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(path, device="cpu")
    assert atoms.calc.weights == "ema"
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    trainer = new_trainer(edit=starting_from(path, normalizers="checkpoint"))
    trainer.before_training()
    started = trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
    atoms.calc = ndem_ocp.calculator(started, device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-4)
    assert abs(atoms.get_forces() - forces).max() < 1e-4 * abs(forces).max()


def test_a_published_layout_is_exported(published, tmp_path):
    path, content = published
    report = export_checkpoint(path, tmp_path / "plain.pt")
    assert report.dropped == {}
    found = torch.load(tmp_path / "plain.pt", weights_only=True)
    averages = published_files.averages(content)
    assert all(torch.equal(found["state_dict"][name], value) for name, value in averages.items())
    atoms = slab()
    atoms.calc = ndem_ocp.calculator(path, device="cpu")
    forces = atoms.get_forces()
    atoms.calc = ndem_ocp.calculator(tmp_path / "plain.pt", device="cpu")
    assert abs(atoms.get_forces() - forces).max() < 1e-4 * abs(forces).max()


def test_another_size_is_refused_with_both_values(published, new_trainer):
    def edit(config):
        starting_from(published[0])(config)
        config["model"]["backbone"]["max_radius"] = TINY_BACKBONE["max_radius"] + 1

    with pytest.raises(PretrainedError, match=r"max_radius: 4.0 in the checkpoint, 5.0 in this"):
        new_trainer(edit=edit).before_training()


def test_normalizers_that_cannot_be_taken(published, new_trainer, tmp_path):
    path, content = published
    changed = {**content, "normalizers": {}}
    torch.save(changed, tmp_path / "none.pt")
    with pytest.raises(PretrainedError, match="no normalizer of energy, forces"):
        new_trainer(edit=starting_from(tmp_path / "none.pt", normalizers="checkpoint"))
    changed = {**content, "elementrefs": {"energy": {"element_references": torch.zeros(119)}}}
    torch.save(changed, tmp_path / "references.pt")
    with pytest.raises(PretrainedError, match="minus element references"):
        new_trainer(edit=starting_from(tmp_path / "references.pt", normalizers="checkpoint"))
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": {}}, tmp_path / "pl.pt")
    with pytest.raises(PretrainedError, match="needs a checkpoint of fairchem"):
        new_trainer(edit=starting_from(tmp_path / "pl.pt", normalizers="checkpoint"))
    with pytest.raises(PretrainedError, match="Did you mean 'checkpoint'"):
        new_trainer(edit=starting_from(path, normalizers="chekpoint"))


# --- freezing ------------------------------------------------------------------------------------


def freezing(patterns, **optim):
    def edit(config):
        config["task"]["freeze"] = patterns
        config["optim"].update(optim)

    return edit


def names_of(trainer) -> set[str]:
    """Parameters that the optimizer knows."""
    known = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    return {name for name, p in trainer._unwrapped_model.named_parameters() if id(p) in known}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_frozen_parameters_stay(new_trainer, caplog, weight_decay, start):
    """Not moved by gradient, weight decay or average; fairchem would keep them at decay 0."""
    edit = freezing("backbone", optimizer_params={"weight_decay": weight_decay})
    with caplog.at_level(logging.INFO):
        trainer = new_trainer(edit=edit, start=start)
    parameters = dict(trainer._unwrapped_model.named_parameters())
    frozen = {name for name in parameters if name.startswith("backbone.")}
    assert names_of(trainer) == set(parameters) - frozen
    assert len(trainer.ema.shadow_params) == len(parameters) - len(frozen)
    count = sum(parameters[name].numel() for name in frozen)
    said = f"task.freeze: {len(frozen)} of {len(parameters)} tensors frozen, {count:,} of"
    assert said in caplog.text
    before = {name: value.detach().clone() for name, value in parameters.items()}
    steps(trainer, 3)
    changed = {n for n, value in parameters.items() if not torch.equal(value, before[n])}
    assert not changed & frozen
    for head in ("energy", "forces", "noisy_forces"):
        assert [name for name in changed if name.startswith(f"output_heads.{head}.")]


def test_patterns(new_trainer):
    model = new_trainer()._unwrapped_model
    names = [name for name, _ in model.named_parameters()]

    def frozen(patterns):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        freeze(model, patterns)
        return {name for name, value in model.named_parameters() if not value.requires_grad}

    assert frozen(None) == frozen([]) == set()
    assert frozen("backbone.sphere_embedding") == {"backbone.sphere_embedding.weight"}
    assert frozen("backbone.blocks.[0-5].ffn*") == {n for n in names if "blocks.0.ffn" in n}
    both = frozen(["backbone.norm", "output_heads.energy"])
    assert both == {n for n in names if n.startswith(("backbone.norm.", "output_heads.energy."))}
    assert frozen("*bias") == {n for n in names if n.endswith("bias")}


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("backbon", "'backbon' matches no parameter. Did you mean 'backbone'"),
        (["backbone", "decoder.*"], r"'decoder.\*' matches no parameter. Modules of this model"),
        ("*", "freezes every parameter"),
        (3, "a pattern such as backbone, or a list"),
        ([""], "a pattern such as backbone, or a list"),
    ],
)
def test_patterns_that_are_refused(new_trainer, patterns, words):
    with pytest.raises(ConfigError, match=words):
        new_trainer(edit=freezing(patterns))


def test_a_frozen_run_continues_from_its_checkpoint(new_trainer):
    edit = freezing(["backbone", "output_heads.noisy_forces"])
    first = new_trainer(edit=edit)
    steps(first, 3)
    path = first.save()
    again = new_trainer(edit=edit)
    again.load_checkpoint(path)
    assert again.step == first.step
    assert all(torch.equal(v, state_of(first)[n]) for n, v in state_of(again).items())
    with pytest.raises(ConfigError, match="its optimizer has other parameters"):
        new_trainer().load_checkpoint(path)
    # and the average of such a run is found by name
    assert ndem_ocp.calculator(path, device="cpu").weights == "ema"


def test_without_patterns_nothing_changes(demo_data, tmp_path):
    """The optimizer of a run without task.freeze is fairchem's, parameter by parameter."""
    config = tiny_config(demo_data, coefficient=0)
    config["optim"]["optimizer_params"] = {"weight_decay": 0.0}
    ours = trainer_of(config, tmp_path / "ours")
    config["task"].pop("ndem")
    plain = trainer_of(config, tmp_path / "plain", PLAIN_TRAINER)
    counts = [[len(g["params"]) for g in t.optimizer.param_groups] for t in (ours, plain)]
    assert counts[0] == counts[1]


def managed(trainer) -> int:
    """Tensors whose gradients DDP waits for."""
    return trainer.model._get_ddp_logging_data()["num_parameter_tensors"]


def test_ddp_does_not_wait_for_frozen_parameters(demo_data, tmp_path):
    """One rank over gloo: DDP manages the trained parameters, and a step goes through."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        config = tiny_config(demo_data, start=0.1)
        config["task"]["freeze"] = ["backbone.blocks", "output_heads.energy"]
        trainer = trainer_of(config, tmp_path)
        assert isinstance(trainer.model, DistributedDataParallel)
        trained = [n for n, p in trainer._unwrapped_model.named_parameters() if p.requires_grad]
        auxiliary = [name for name in trained if name.startswith(AUXILIARY)]
        assert auxiliary
        assert managed(trainer) == len(trained) - len(auxiliary)
        steps(trainer, 3)  # start is at step 1: DDP is built anew with the auxiliary head
        assert managed(trainer) == len(trained)
    finally:
        dist.destroy_process_group()
