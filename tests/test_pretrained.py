"""Starting from TorchMD-NET, DP-TorchMD-NET, Frad and SliDe checkpoints, of layouts built here."""

from __future__ import annotations

import argparse
import collections
import re
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from fairchem.core.common.registry import registry
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch_geometric.data import Batch, Data

import pretrained_files as files
from ndem_ocp.pretrained import LoadReport, PretrainedError, init_from, load_pretrained

pytest.importorskip("torchmdnet", reason="torchmd-net is not installed (extra: molecules)")

LAYOUTS = {
    "torchmd": files.torchmd_layout,
    "dp": files.dp_layout,
    "frad": files.frad_layout,
}
FORCES = "energy_and_forces"
GAIN = -1 / 0.05  # NDeM with sigma_max 0.05 A


def new_model(auxiliary="ndem_torchmd_vector_head", **backbone):
    """The model of configs/md17, tiny."""
    return registry.get_model_class("ndem_ocp.TwoViewHydra")(
        otf_graph=True,
        pass_through_head_outputs=True,
        backbone={
            "model": "torchmd_et_backbone",
            "hidden_channels": files.HIDDEN,
            "num_layers": files.LAYERS,
            "num_heads": files.HEADS,
            "num_rbf": files.RBF,
            "max_z": files.MAX_Z,
            "cutoff": files.CUTOFF,
            "use_pbc": True,
            **backbone,
        },
        heads={
            FORCES: {
                "module": "ndem_energy_gradient_head",
                "energy": {"module": "torchmd_scalar_head"},
            },
        },
        auxiliary_head={"module": auxiliary},
    )


@pytest.fixture
def saved(tmp_path):
    """``saved(content)``: path of a checkpoint with this content."""

    def save(content, name="pretrained.ckpt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def representation(content):
    """Backbone weights of a built checkpoint, by torchmd-net's name."""
    start = "model.representation_model."
    return {
        name.removeprefix(start): value
        for name, value in content["state_dict"].items()
        if name.startswith(start)
    }


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_weight_of_the_backbone_is_the_checkpoints(kind, saved):
    content = LAYOUTS[kind]()
    model = new_model()
    before = copy_of(model)
    report = load_pretrained(model, saved(content))
    theirs = representation(content)
    ours = model.backbone.representation_model.state_dict()
    assert ours
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert report.kind == kind
    assert report.missing == {}
    assert report.problems == report.impossible == []
    heads = {name: value for name, value in before.items() if name.startswith("output_heads.")}
    assert_unchanged(model.output_heads, {k.removeprefix("output_heads."): heads[k] for k in heads})


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_weight_of_the_file_is_accounted_for_with_a_reason(kind, saved):
    content = LAYOUTS[kind]()
    report = load_pretrained(new_model(), saved(content))
    names = {name.removeprefix("model.") for name in content["state_dict"]}
    assert set(report.loaded.values()) | set(report.ignored) == names
    assert "unknown" not in report.ignored.values()


def test_energies_and_forces_are_those_of_the_torchmd_net_model(saved):
    theirs = files.torchmd_net()
    content = files.lightning(
        files.old_names(theirs.state_dict()),
        {**files.HYPER, "energy_weight": 1.0, "denoising_only": False, "derivative": True},
    )
    ours = new_model()
    load_pretrained(ours, saved(content), heads=FORCES)
    numbers = torch.tensor([6, 8, 1, 1, 7, 6])
    positions = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    systems = [
        Data(
            pos=pos,
            atomic_numbers=z,
            natoms=len(z),
            cell=torch.zeros(1, 3, 3),
            pbc=torch.zeros(1, 3, dtype=torch.bool),
        )
        for pos, z in ((positions[:3], numbers[:3]), (positions[3:], numbers[3:]))
    ]
    batch = Batch.from_data_list(systems)
    out = ours.eval()(batch)
    energy, forces = theirs.eval()(numbers, positions, torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(out["energy"], energy.view(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["forces"], forces, rtol=1e-4, atol=1e-5)


def test_the_output_head_comes_with_its_normalization_in_the_report(saved):
    content = files.torchmd_layout()
    model = new_model()
    report = load_pretrained(model, saved(content), heads=FORCES)
    weight = "output_network.0.update_net.layers.2.weight"
    loaded = model.output_heads[FORCES].energy.output_model.state_dict()[weight]
    assert torch.equal(loaded, content["state_dict"][f"model.output_model.{weight}"])
    assert "mean -406.7 and std 2.5" in str(report)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (files.dp_layout, "never trained"),
        (lambda: files.dp_layout(whitened=True), "whitened vectors"),
        (lambda: files.torchmd_layout(reduce_op="mean"), "takes the mean over atoms"),
        (lambda: with_hyper(files.torchmd_layout(), output_model="DipoleMoment"), "DipoleMoment"),
        (lambda: with_weight(files.torchmd_layout(), "prior_model.initial_atomref"), "prior"),
    ],
)
def test_an_output_head_of_other_meaning_is_refused(layout, message, saved):
    model = new_model()
    before = copy_of(model)
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(model, saved(layout()), heads=FORCES)
    assert_unchanged(model, before)


def with_hyper(content, **changed):
    content["hyper_parameters"].update(changed)
    return content


def with_weight(content, name):
    content["state_dict"][f"model.{name}"] = torch.ones(3)
    return content


def test_an_unknown_head_is_named_with_those_there_are(saved):
    with pytest.raises(PretrainedError, match=f"'energy' is not a head .*{FORCES}"):
        load_pretrained(new_model(), saved(files.torchmd_layout()), heads="energy")


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        ({"cutoff_upper": 5.0}, "cutoff: 5.0"),
        ({"cutoff_lower": 0.5}, "cutoff_lower: 0.5"),
        ({"rbf_type": "gauss"}, "rbf_type: gauss"),
        ({"activation": "ssp"}, "activation: ssp"),
        ({"attn_activation": "tanh"}, "attn_activation: tanh"),
        ({"distance_influence": "keys"}, "distance_influence: keys"),
        ({"num_heads": 4}, "num_heads: 4"),
        ({"neighbor_embedding": False}, "neighbor_embedding: False"),
        ({"vector_cutoff": True}, "vector_cutoff: True"),
        ({"embedding_dimension": 32}, "hidden_channels: 32"),
        ({"num_layers": 3}, "num_layers: 3"),
        ({"max_z": 30}, "max_z: 30"),
    ],
)
def test_other_hyper_parameters_are_refused_with_the_yaml_that_matches(theirs, line, saved):
    model = new_model()
    before = copy_of(model)
    (key,) = theirs
    with pytest.raises(PretrainedError) as refused:
        load_pretrained(model, saved(files.torchmd_layout(**theirs)))
    assert f"- {key}: {theirs[key]} in the checkpoint" in str(refused.value)
    assert f"    {line}\n" in str(refused.value)
    assert_unchanged(model, before)


def test_the_yaml_of_the_refusal_makes_a_model_that_loads(saved):
    path = saved(files.torchmd_layout(cutoff_upper=5.0, activation="ssp"))
    with pytest.raises(PretrainedError) as refused:
        load_pretrained(new_model(), path)
    pairs = re.findall(r"^    (\w+): (\S+)$", str(refused.value).partition("\n\n")[0], re.M)
    load_pretrained(new_model(**{key: yaml.safe_load(value) for key, value in pairs}), path)


def test_files_older_than_the_vector_cutoff_were_trained_without_it(saved):
    with pytest.raises(PretrainedError, match="vector_cutoff: False in the checkpoint, True in"):
        load_pretrained(new_model(vector_cutoff=True), saved(files.frad_layout()))


def test_a_trainable_radial_basis_is_not_a_difference(saved):
    content = files.torchmd_layout(trainable_rbf=True)
    model = new_model()
    load_pretrained(model, saved(content))
    means = model.backbone.representation_model.distance_expansion.means
    assert torch.equal(means, representation(content)["distance_expansion.means"])


def test_without_hyper_parameters_the_radial_functions_still_tell_the_cutoff(saved):
    content = files.torchmd_layout(cutoff_upper=5.0)
    del content["hyper_parameters"]
    with pytest.raises(PretrainedError, match="the radial functions differ"):
        load_pretrained(new_model(), saved(content))
    report = load_pretrained(new_model(cutoff=5.0), saved(content))
    assert "only shapes could be compared" in str(report)


def test_a_bare_state_dict_loads(saved):
    content = files.dp_layout()["state_dict"]
    assert load_pretrained(new_model(), saved(content)).kind == "dp"


def test_frads_network_for_qm9_is_refused(saved):
    path = saved(files.frad_layout(md17=False))
    with pytest.raises(PretrainedError, match="whitens vectors inside every layer"):
        load_pretrained(new_model(), path)
    report = load_pretrained(new_model(), path, strict=False)
    assert report.problems
    assert "representation_model.vec_norms.0.weight" in report.ignored


def test_slide_is_refused_and_a_partial_start_says_what_it_is(saved):
    path = saved(files.slide_layout())
    with pytest.raises(PretrainedError, match="This would be a partial start, not SliDe"):
        load_pretrained(new_model(), path)
    report = load_pretrained(new_model(), path, strict=False)
    assert report.kind == "slide"
    assert all(re.search(r"\.d[kv]_proj\.", name) for name in report.missing)
    assert len(report.missing) == 4 * files.LAYERS
    assert "unknown" not in report.ignored.values()


def test_slides_projections_stay_out_even_where_their_shapes_agree(saved):
    content = files.slide_layout(num_rbf=files.HIDDEN)
    weights = content["state_dict"]
    for name in [name for name in weights if "distance_exp" in name or "distance_proj.w" in name]:
        del weights[name]  # made for another number of radial functions
    model = new_model(num_rbf=files.HIDDEN)
    before = copy_of(model)
    load_pretrained(model, saved(content), strict=False)
    name = "backbone.representation_model.attention_layers.0.dk_proj.weight"
    theirs = weights["model.representation_model.attention_layers.0.dk_proj.weight"]
    assert model.state_dict()[name].shape == theirs.shape
    assert torch.equal(model.state_dict()[name], before[name])


def test_the_noise_head_becomes_the_auxiliary_head_with_ndems_sign_and_scale(saved):
    source = files.vector_head()
    content = files.dp_layout(whitened=False)
    for name, value in files.old_names(source.state_dict()).items():
        content["state_dict"][f"model.output_model_noise.{name}"] = value
    model = new_model()
    report = load_pretrained(model, saved(content), noise_head=True, noise_gain=GAIN)
    scalars, vectors = torch.randn(5, files.HIDDEN), torch.randn(5, 3, files.HIDDEN)
    given = (scalars, vectors, None, None, None)
    theirs = source.pre_reduce(*given)  # noise / std
    ours = model.output_heads["noisy_forces"].head.output_model.pre_reduce(*given)
    # f' = -eps*, for F(X) = 0 and eps* = eps / sigma_max
    torch.testing.assert_close(ours, theirs * files.NOISE_STD * GAIN)
    assert "noise / 0.04 A" in str(report)
    assert "-20 / A * noise" in str(report)


@pytest.mark.parametrize(
    ("layout", "gain", "message"),
    [
        (files.dp_layout, GAIN, "trained on whitened vectors"),
        (files.torchmd_layout, GAIN, "no noise head"),
        (lambda: files.dp_layout(whitened=False), None, "noise_gain is missing"),
        (lambda: without(files.dp_layout(whitened=False), "pos_normalizer"), GAIN, "normalizer"),
    ],
)
def test_a_noise_head_that_cannot_be_used_is_refused(layout, gain, message, saved):
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(new_model(), saved(layout()), noise_head=True, noise_gain=gain)


def without(content, part):
    weights = content["state_dict"]
    content["state_dict"] = {name: weights[name] for name in weights if part not in name}
    return content


def test_a_noise_head_needs_a_separate_auxiliary_head(saved):
    path = saved(files.dp_layout(whitened=False))
    with pytest.raises(PretrainedError, match="head: separate"):
        load_pretrained(new_model("shared"), path, noise_head=True, noise_gain=GAIN)


def test_missing_weights_are_refused_by_default(saved):
    path = saved(without(files.dp_layout(), "attention_layers.1.q_proj"))
    with pytest.raises(PretrainedError, match=r"Only \d+ of the backbone's \d+ weights"):
        load_pretrained(new_model(), path)
    report = load_pretrained(new_model(), path, strict=False)
    assert set(report.missing.values()) == {"not in the checkpoint"}
    assert len(report.missing) == 2


def test_unknown_weights_of_the_network_are_refused(saved):
    path = saved(with_weight(files.dp_layout(), "representation_model.extra.weight"))
    with pytest.raises(PretrainedError, match="weights that this model does not have"):
        load_pretrained(new_model(), path)


@pytest.mark.parametrize("strict", [True, False])
def test_what_never_fits_is_refused_without_strict_too(strict, saved):
    model = new_model()
    before = copy_of(model)
    cases = {
        "The checkpoint's network is tensornet": with_hyper(files.dp_layout(), model="tensornet"),
        "looks like slide": files.slide_layout(),
        "No weight of the checkpoint fits": {"conv.weight": torch.ones(2)},
        "not finite": not_finite(files.frad_layout()),
        "No weight of the checkpoint fits the backbone": {
            "state_dict": {"module.backbone.a": torch.ones(1)}
        },
    }
    for message, content in cases.items():
        kind = "frad" if "slide" in message else "auto"
        with pytest.raises(PretrainedError, match=message):
            load_pretrained(model, saved(content), kind=kind, strict=strict)
    assert_unchanged(model, before)


def not_finite(content):
    content["state_dict"]["model.representation_model.out_norm.weight"][0] = float("nan")
    return content


def test_other_backbones_are_refused(saved):
    with pytest.raises(PretrainedError, match="needs a TorchMD-NET backbone"):
        load_pretrained(torch.nn.Linear(2, 2), saved(files.dp_layout()))


def test_old_tensornet_checkpoints_are_refused(saved):
    tensornet = registry.get_model_class("ndem_ocp.TwoViewHydra")(
        backbone={
            "model": "torchmd_tensornet_backbone",
            "hidden_channels": files.HIDDEN,
            "num_layers": 1,
            "num_rbf": files.RBF,
            "cutoff": files.CUTOFF,
        },
        heads={FORCES: {"module": "torchmd_scalar_head"}},
        auxiliary_head={"module": "ndem_torchmd_vector_head"},
    )
    weights = {
        f"representation_model.{name}": value
        for name, value in tensornet.backbone.representation_model.state_dict().items()
    }
    hyper = {**files.HYPER, "model": "tensornet", "num_layers": 1, "max_z": 128}
    hyper["equivariance_invariance_group"] = "O(3)"
    assert load_pretrained(tensornet, saved(files.lightning(weights, hyper))).missing == {}
    path = saved(files.lightning(weights, {**hyper, "check_errors": True}))
    with pytest.raises(PretrainedError, match="save it again"):
        load_pretrained(tensornet, path, strict=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "not a torch",
        ),
        (lambda path: path.write_text("compressed\ndata\n"), "not a torch"),
        (lambda path: np.savez(path.open("wb"), weight=np.ones(3)), "not a torch"),
        (lambda path: torch.save([1, 2], path), "not named weights"),
        (lambda path: torch.save({"epoch": 1}, path), "no named weights"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_named(broken, message, saved):
    path = saved(files.dp_layout())
    broken(path)
    with pytest.raises(PretrainedError, match=message) as refused:
        load_pretrained(new_model(), path)
    assert str(path) in str(refused.value)


def test_a_directory_is_not_a_checkpoint(tmp_path):
    with pytest.raises(PretrainedError, match="is a directory"):
        load_pretrained(new_model(), tmp_path)


def test_hyper_parameters_in_a_namespace_are_read(saved):
    content = files.dp_layout(cutoff_upper=5.0)
    content["hyper_parameters"] = argparse.Namespace(**content["hyper_parameters"])
    with pytest.raises(PretrainedError, match=r"cutoff: 5\.0"):
        load_pretrained(new_model(), saved(content))


def test_lightnings_classes_are_read_as_stand_ins(saved, monkeypatch):
    # pytorch-lightning before 1.5 keys callback states by class, and names the class of hparams.
    module = types.ModuleType("pytorch_lightning.not_installed")
    for name in ("EarlyStopping", "AttributeDict"):
        base = dict if name == "AttributeDict" else object
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = files.dp_layout()
    content["callbacks"] = {module.EarlyStopping: {"wait_count": 0}}
    content["hparams_type"] = module.AttributeDict
    path = saved(content)
    monkeypatch.delitem(sys.modules, module.__name__)
    assert load_pretrained(new_model(), path).missing == {}
    assert module.__name__ not in sys.modules


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_need_the_flag_that_names_the_risk(zipped, tmp_path):
    content = {**files.dp_layout(), "extra": collections.UserDict(a=1)}
    path = tmp_path / "pretrained.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PretrainedError, match="can run any code") as refused:
        load_pretrained(new_model(), path)
    assert "collections.UserDict" in str(refused.value)
    assert "task.init_from.unsafe: True" in str(refused.value)
    assert load_pretrained(new_model(), path, unsafe=True).missing == {}


def test_the_old_torch_format_is_read(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(files.dp_layout(), path, _use_new_zipfile_serialization=False)
    assert load_pretrained(new_model(), path).missing == {}


def test_the_report_reads_well(saved):
    text = str(load_pretrained(new_model(), saved(files.frad_layout())))
    for part in (
        "(kind: frad)",
        "mapped into backbone.representation_model: ",
        "noise head of the pre-training",
        "cutoff_upper 4.0",
        "out_norm_vec",
    ):
        assert part in text
    assert all(len(line) < 500 for line in text.splitlines())


def test_the_refusal_says_each_thing_once(saved):
    with pytest.raises(PretrainedError) as refused:
        load_pretrained(new_model(), saved(files.torchmd_layout(cutoff_upper=5.0)))
    assert str(refused.value).count("cutoff_upper: 5.0") == 2  # the problem, the comparison
    assert "radial functions" not in str(refused.value)


def test_init_from_reads_a_path_or_a_section_and_logs_the_report(saved, caplog):
    path = str(saved(files.frad_layout()))
    assert init_from(new_model(), None) is None
    with caplog.at_level("INFO"):
        report = init_from(new_model(), path)
    assert isinstance(report, LoadReport)
    assert "(kind: frad)" in caplog.text
    section = {"checkpoint": path, "kind": "frad", "noise_head": False, "strict": True}
    assert init_from(new_model(), section).loaded == report.loaded


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"checkpont": "a"}, "checkpont is not known. Did you mean 'checkpoint'"),
        ({"kind": "frad"}, "checkpoint = None: must be a string"),
        ({"checkpoint": ""}, "must be a string"),
        ({"checkpoint": "a", "kind": "fard"}, "kind = 'fard' is not known. Did you mean 'frad'"),
        ({"checkpoint": "a", "strict": "no"}, "strict = 'no': must be True or False"),
        (7, "must be a path or a mapping"),
    ],
)
def test_a_wrong_section_is_refused(section, message):
    with pytest.raises(PretrainedError, match=message):
        init_from(new_model(), section)


def test_the_moving_average_starts_from_the_loaded_weights(saved):
    model = new_model()
    ema = ExponentialMovingAverage(model.parameters(), 0.9)
    init_from(model, str(saved(files.dp_layout())), ema=ema)
    for shadow, parameter in zip(ema.shadow_params, model.parameters()):
        assert torch.equal(shadow, parameter)
