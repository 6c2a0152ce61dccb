"""`ndem bench`: every arm runs, the numbers say what they are, and bad options are refused.

No test looks at how long something took.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT, tiny_config
from ndem_ocp import cli
from ndem_ocp.bench import arms as arms_module
from ndem_ocp.bench.arms import ARMS, Arm, arm_config, build_arm, share_weights
from ndem_ocp.bench.batches import open_data, read_batches, supercell
from ndem_ocp.bench.clock import Stopwatch, Timing, timed_calls
from ndem_ocp.bench.configs import read_config, set_key
from ndem_ocp.bench.errors import BenchError
from ndem_ocp.bench.loading import workers_needed
from ndem_ocp.bench.measure import arm_results, interleave, ratios, summary
from ndem_ocp.bench.memory import Request, peak_memory
from ndem_ocp.bench.scaling import exponent
from ndem_ocp.bench.tables import ratios_line

CPU = torch.device("cpu")
LAST_LINE = re.compile(r"ratios: plain=(\S+) naive=(\S+) ndem=(\S+) memory=(\S+)")
UPSTREAM_ARMS = ["upstream", "naive", "joint", "dens"]


@pytest.fixture(scope="module")
def tiny(demo_data, tmp_path_factory):
    """A configuration file of the tiny model on the small set."""
    config = tiny_config(demo_data)
    config["model"]["backbone"].update(alpha_drop=0.0, drop_path_rate=0.0)
    path = tmp_path_factory.mktemp("bench") / "tiny.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def built(tiny, demo_data):
    """Factory of arms of the tiny model that share their weights, and batches for them."""
    config = read_config(str(tiny))
    batches = read_batches(open_data(demo_data / "train"), 2, 2)

    def make(names: list[str]) -> dict[str, Arm]:
        arms = [
            build_arm(name, arm_config(name, config, demo_data / "train", 2), CPU) for name in names
        ]
        share_weights(arms)
        return {arm.name: arm for arm in arms}

    return make, batches


def test_a_warmup_of_less_than_a_step_is_no_division_by_zero(tiny, demo_data):
    """31M's lasts a hundredth of an epoch; upstream's schedule divides by its whole steps."""
    config = read_config(str(tiny))
    config["optim"]["scheduler_params"]["warmup_epochs"] = 0.01
    arm = build_arm("upstream", arm_config("upstream", config, demo_data / "train", 2), CPU)
    batches = read_batches(open_data(demo_data / "train"), 2, 1)
    arm.step(batches.on(0, CPU), 0, Stopwatch(CPU))
    assert arm.trainer.optimizer.param_groups[0]["lr"] > 0


def bench(capsys, *options) -> tuple[int, str, str]:
    code = cli.main(["bench", *map(str, options)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- arms ----------------------------------------------------------------------------------------


def test_arms_on_upstreams_model_are_one_function_in_evaluation(built):
    make, batches = built
    arms = make(UPSTREAM_ARMS)
    losses = {name: arm.evaluate(batches.on(0, CPU), seed=0) for name, arm in arms.items()}
    assert losses == {name: pytest.approx(losses["upstream"], rel=1e-6) for name in arms}


@pytest.mark.parametrize("training", [False, True])
def test_ours_and_upstream_have_the_same_first_loss(built, training):
    make, batches = built
    arms = make(["upstream", "plain"])
    losses = {name: loss_of(arm, batches, training) for name, arm in arms.items()}
    assert losses["plain"] == pytest.approx(losses["upstream"], rel=1e-4)


def test_two_forward_passes_and_one_have_the_same_loss(built):
    """The naive arm computes what the joint forward does, so that only their cost differs."""
    make, batches = built
    losses = {}
    for name, arm in make(["upstream", "naive", "joint"]).items():
        arm.trainer.step = 1
        losses[name] = loss_of(arm, batches, training=True)
    # a rotation about each edge is drawn anew in the second pass; the model is equivariant to about
    # a thousandth only
    assert losses["naive"] == pytest.approx(losses["joint"], rel=0.02)
    assert losses["naive"] > 1.01 * losses["upstream"]


def loss_of(arm: Arm, batches, training: bool) -> float:
    arm.trainer.model.train(training)
    torch.manual_seed(0)
    batch = batches.on(0, CPU)
    return arm.trainer._compute_loss(arm.trainer._forward(batch), batch).item()


def test_the_naive_arm_runs_the_backbone_twice_and_the_joint_one_once(built):
    make, batches = built
    calls = {}
    for name, arm in make(UPSTREAM_ARMS).items():
        calls[name] = 0

        def count(*_, name=name):
            calls[name] += 1

        handle = arm.trainer._unwrapped_model.backbone.register_forward_hook(count)
        arm.step(batches.on(0, CPU), 0, Stopwatch(CPU))
        handle.remove()
    assert calls == {"upstream": 1, "naive": 2, "joint": 1, "dens": 1}


def test_edges_of_both_views_are_counted(built):
    make, batches = built
    edges = {}
    for name, arm in make(["upstream", "naive", "joint"]).items():
        arm.step(batches.on(0, CPU), 0, Stopwatch(CPU))
        edges[name] = arm.edges
    assert edges["naive"] == edges["joint"]
    assert 1.8 * edges["upstream"] < edges["joint"] < 2.2 * edges["upstream"]


def test_a_step_is_measured_in_its_parts_and_changes_the_weights(built):
    make, batches = built
    arm = make(["upstream"])["upstream"]
    before = [p.clone() for p in arm.trainer.model.parameters()]
    timing = arm.step(batches.on(0, CPU), 0, Stopwatch(CPU))
    assert set(timing.phases_s) == {"forward", "graph", "loss", "backward", "optimizer"}
    assert timing.phases_s["graph"] <= timing.phases_s["forward"]
    whole = sum(timing.phases_s[k] for k in ("forward", "loss", "backward", "optimizer"))
    assert whole <= timing.wall_s
    assert any(not torch.equal(a, b) for a, b in zip(before, arm.trainer.model.parameters()))
    # fairchem's own methods are back
    assert "generate_graph" not in vars(arm.trainer._unwrapped_model.backbone)
    assert torch.Tensor.backward.__name__ == "backward"


def test_a_loss_that_is_not_finite_ends_the_measurement(built):
    make, batches = built
    arm = make(["upstream"])["upstream"]
    batch = batches.on(0, CPU)
    batch.energy = torch.full_like(batch.energy, float("nan"))
    with pytest.raises(BenchError, match=r"upstream.*not finite.*ndem data check"):
        arm.step(batch, 0, Stopwatch(CPU))


def test_weights_are_shared_and_a_missing_one_is_named(built):
    make, _ = built
    arms = make(["upstream", "joint"])
    source, other = (arm.trainer._unwrapped_model.state_dict() for arm in arms.values())
    assert all(torch.equal(value, other[name]) for name, value in source.items())
    with pytest.raises(BenchError, match=r"upstream has no output_heads\.noisy_forces"):
        share_weights([arms["joint"], arms["upstream"]])


def test_settings_of_the_arms(tiny, demo_data):
    config = read_config(str(tiny))

    def section(arm):
        return arm_config(arm, config, demo_data, 2)["task"].get("ndem")

    assert section("upstream") is None
    assert section("plain")["coefficient"] == 0
    assert section("ndem")["coefficient"] == 1
    assert section("ndem")["fraction"] == 1
    assert section("ndem@0.25")["fraction"] == 0.25
    assert section("dens")["objective"] == "dens"
    assert "fraction" not in section("dens")
    ours, theirs = (arm_config(arm, config, demo_data, 2)["model"] for arm in ("ndem", "upstream"))
    assert ours["backbone"]["model"] == "ndem_ocp.EquiformerV2Backbone"
    assert theirs["backbone"]["model"] == "equiformer_v2_backbone"


def test_options_of_ours_reach_our_arms_alone(tiny, demo_data):
    config = read_config(str(tiny))
    for arm in ARMS:
        found = arm_config(arm, config, demo_data, 2, ours=["backbone.alpha_drop=0.25"])
        assert found["model"]["backbone"]["alpha_drop"] == (0.25 if arm in arms_module.OURS else 0)


# --- rounds --------------------------------------------------------------------------------------


def test_every_round_has_every_arm_and_starts_one_further():
    calls = []

    def step(arm, number):
        calls.append((number, arm))
        return Timing(1.0 + number, 0.5, {})

    measured = interleave(["a", "b", "c"], step, repeats=3, warmup=1)
    assert [arm for _, arm in calls] == [*"abc", *"bca", *"cab", *"abc"]
    assert [t.wall_s for t in measured["a"]] == [2.0, 3.0, 4.0]  # the first round does not count
    assert not measured.interrupted


def test_ctrl_c_leaves_the_whole_rounds():
    def step(arm, number):
        if (arm, number) == ("a", 3):
            raise KeyboardInterrupt
        return Timing(1.0, 1.0, {})

    measured = interleave(["a", "b"], step, repeats=9, warmup=1)
    assert measured.interrupted
    assert {arm: len(found) for arm, found in measured.items()} == {"a": 2, "b": 2}


def test_ratios_are_taken_within_a_round():
    """A machine that slows down by a factor of ten leaves them as they are."""
    base, twice = [1.0, 10.0, 1.0, 10.0, 3.0], [2.0, 20.0, 2.0, 20.0, 6.0]
    assert ratios(twice, base) == {"median": 2.0, "q25": 2.0, "q75": 2.0, "n": 5}
    timings = {"upstream": base, "x": twice}
    measured = type(interleave([], lambda *_: None, 0, 0))(
        {arm: [Timing(w, w, {"forward": w / 2}) for w in walls] for arm, walls in timings.items()}
    )
    found = arm_results(measured, "upstream", [10] * 5)
    assert found["x"]["ratio"]["median"] == 2.0
    assert found["x"]["phases_s"]["forward"]["median"] == 3.0
    assert found["x"]["atoms_per_s"]["median"] == pytest.approx(10 / 6)


def test_summary_has_quartiles():
    assert summary([3.0]) == {"median": 3.0, "q25": 3.0, "q75": 3.0, "n": 1}
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "q25": 2.0, "q75": 4.0, "n": 5}


def test_timed_calls_shows_results_and_puts_the_method_back():
    class Owner:
        def method(self):
            return 7

    owner, seen, watch = Owner(), [], Stopwatch(CPU)
    watch.start()
    with timed_calls(owner, "method", watch, "m", seen.append):
        assert owner.method() == 7
    with timed_calls(owner, "absent", watch, "n"):
        pass
    assert seen == [7]
    assert "method" not in vars(owner)
    assert set(watch.stop().phases_s) == {"m"}


def test_the_last_line_has_two_decimals_and_a_dash_for_what_was_not_run():
    def arm(ratio):
        return {"ratio": {"median": ratio}}

    arms = {"plain": arm(0.666), "ndem": {**arm(1.234), "memory_ratio": 1.4}}
    line = ratios_line([{"arms": arms}, {"arms": {}}])
    assert line == "ratios: plain=0.67 naive=- ndem=1.23 memory=1.40"
    assert ratios_line([]) == "ratios: plain=- naive=- ndem=- memory=-"


def test_exponents_of_powers():
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert exponent([5, 5], [1.0, 2.0]) is None


# --- batches -------------------------------------------------------------------------------------


def test_both_readers_give_the_same_batches(demo_data):
    ours, theirs = (
        read_batches(open_data(demo_data / "train", reader), 3, 2, seed=1)
        for reader in ("ours", "upstream")
    )
    for one, other in zip(ours.batches, theirs.batches):
        assert torch.equal(one.pos, other.pos)
        assert torch.equal(one.energy, other.energy)
    assert ours.atoms == theirs.atoms


def test_a_step_gets_a_copy_of_its_batch(demo_data):
    batches = read_batches(open_data(demo_data / "train"), 2, 2)
    batches.on(0, CPU).pos.zero_()
    assert batches.on(2, CPU).pos.abs().sum() > 0


def test_a_supercell_is_the_same_crystal(built, demo_data):
    """Its energy is a multiple, and each copy of an atom feels the same force."""
    make, _ = built
    model = make(["upstream"])["upstream"].trainer._unwrapped_model.eval()
    dataset = open_data(demo_data / "train")
    one, four = (read_batches(dataset, 1, 1, repeat=cell).batches[0] for cell in ((1, 1), (2, 2)))
    assert int(four.natoms) == 4 * int(one.natoms) == four.pos.shape[0]
    assert four.fixed.shape == four.tags.shape == (four.pos.shape[0],)
    assert float(four.energy) == pytest.approx(4 * float(one.energy))
    model.backbone.max_neighbors = 500  # of atoms at one distance, a limit keeps any
    with torch.no_grad():
        single, super_ = (model(batch) for batch in (one, four))
    energies = [float(out["energy"]["energy"].sum()) for out in (single, super_)]
    assert energies[1] == pytest.approx(4 * energies[0], rel=0.02)
    forces = super_["forces"]["forces"].view(4, -1, 3)
    spread = (forces - forces.mean(0)).abs().max() / forces.abs().max()
    assert spread < 0.05  # equivariant to its grid's precision


def test_supercell_leaves_its_source(demo_data):
    data = open_data(demo_data / "train")[0]
    before = data.pos.clone()
    supercell(data, 2, 1)
    assert torch.equal(data.pos, before)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peak_memory_grows_with_the_batch(tiny, demo_data):
    config = arm_config("upstream", read_config(str(tiny)), demo_data / "train", 2)
    small, large = (peak_memory(Request("upstream", config, "cpu", (n,)))[0] for n in (2, 32))
    assert small["batch_size"] == 2
    assert small["peak_bytes"] > 0
    assert large["peak_bytes"] > small["peak_bytes"] + 20e6
    assert small["steady_bytes"] > 1e8  # torch alone


def test_a_failing_memory_process_is_explained(tiny, demo_data):
    config = arm_config("upstream", read_config(str(tiny)), demo_data / "absent", 2)
    with pytest.raises(BenchError, match=r"memory of upstream.*--no-memory[\s\S]*absent"):
        peak_memory(Request("upstream", config, "cpu", (2,)))


# --- the commands --------------------------------------------------------------------------------

PROVENANCE = (
    "commit",
    "command",
    "date",
    "hardware",
    "what",
    "config_hash",
    "data",
    "seeds",
    "units",
)


def test_bench_step_prints_a_table_and_the_ratios_and_writes_json(
    tiny, demo_data, tmp_path, capsys
):
    out = tmp_path / "step.json"
    code, printed, _ = bench(
        capsys, "step", "--model", tiny, "--data", demo_data, "--batch-sizes", 2, 3,
        "--arms", *ARMS[1:], "--fractions", 0.5, "--repeats", 2, "--warmup", 1, "--device", "cpu",
        "--no-memory", "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 0
    found = LAST_LINE.fullmatch(printed.splitlines()[-1])
    assert found, printed
    assert re.fullmatch(r"\d+\.\d\d", found[2])  # naive
    assert found[4] == "-"  # memory, which was left out

    result = json.loads(out.read_text())
    assert [key for key in PROVENANCE if key not in result] == []
    assert result["hardware"]["cores"] > 0
    assert not result["interrupted"]
    assert [setting["batch_size"] for setting in result["settings"]] == [2, 3]
    for setting in result["settings"]:
        assert {*ARMS, "ndem@0.5"} == set(setting["arms"])
        assert set(setting["loading_s"]) == {"ndem_lmdb", "lmdb"}
        losses = [arm["evaluation_loss"] for arm in setting["arms"].values()]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
        for name, arm in setting["arms"].items():
            assert arm["wall_s"]["n"] == setting["rounds"] == 2
            assert arm["wall_s"]["q25"] <= arm["wall_s"]["median"] <= arm["wall_s"]["q75"]
            assert set(arm["phases_s"]) >= {"forward", "loss", "backward", "optimizer"}
            assert name in printed
        assert setting["arms"]["upstream"]["ratio"]["median"] == 1.0
    plain, naive = (result["settings"][0]["arms"][arm] for arm in ("upstream", "naive"))
    assert naive["parameters"] > plain["parameters"]


@pytest.mark.slow
def test_bench_step_measures_memory_and_draws(tiny, demo_data, tmp_path, capsys):
    from ndem_ocp.bench.plots import plot_step

    out = tmp_path / "step.json"
    code, _, _ = bench(
        capsys, "step", "--model", tiny, "--data", demo_data, "--arms", "naive", "--repeats", 1,
        "--warmup", 0, "--device", "cpu", "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 0
    setting = json.loads(out.read_text())["settings"][0]
    upstream, naive = (setting["arms"][arm] for arm in ("upstream", "naive"))
    assert upstream["memory_ratio"] == 1.0
    assert naive["memory_ratio"] == naive["peak_bytes"] / upstream["peak_bytes"]
    assert plot_step([("tiny", setting)], tmp_path / "p.png").stat().st_size > 10_000


def test_ctrl_c_leaves_a_table_and_a_file(tiny, demo_data, tmp_path, capsys, monkeypatch):
    out, step, calls = tmp_path / "step.json", Arm.step, []

    def interrupted(self, *args):
        calls.append(self.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Arm, "step", interrupted)
    code, printed, _ = bench(
        capsys, "step", "--model", tiny, "--data", demo_data, "--arms", "naive", "--repeats", 9,
        "--warmup", 1, "--device", "cpu", "--no-memory", "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 130
    assert "Interrupted" in printed
    assert LAST_LINE.fullmatch(printed.splitlines()[-1])
    result = json.loads(out.read_text())
    assert result["interrupted"]
    assert result["settings"][0]["rounds"] == 1


def test_bench_inference_compares_outputs_as_well(tiny, demo_data, tmp_path, capsys):
    out = tmp_path / "inference.json"
    code, printed, _ = bench(
        capsys, "inference", "--model", tiny, "--data", demo_data, "--batch-sizes", 1, 2,
        "--repeats", 2, "--warmup", 0, "--device", "cpu", "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 0
    result = json.loads(out.read_text())
    for setting in result["settings"]:
        ours = setting["arms"]["ours"]
        assert set(setting["arms"]) == {"upstream", "ours"}
        assert ours["difference"]["forces"] < 1e-4
        assert ours["difference"]["energy"] < 1e-4
        assert ours["parameters"] == setting["arms"]["upstream"]["parameters"]
    assert "ours" in printed


def test_bench_inference_of_a_trained_checkpoint(new_trainer, tiny, demo_data, tmp_path, capsys):
    trainer = new_trainer()
    path = trainer.save()
    out = tmp_path / "inference.json"
    code, _, _ = bench(
        capsys, "inference", "--checkpoint", path, "--data", demo_data, "--batch-sizes", 1,
        "--repeats", 1, "--warmup", 0, "--device", "cpu", "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 0
    result = json.loads(out.read_text())
    arms = result["settings"][0]["arms"]
    assert set(arms) == {"upstream", "ours", "trained"}
    assert arms["trained"]["difference"]["forces"] < 1e-4
    assert arms["trained"]["parameters"] > arms["ours"]["parameters"]
    assert result["checkpoint"] == Path(path).name


def test_bench_data_counts_workers(demo_data, tmp_path, capsys):
    step = tmp_path / "step.json"
    speeds = {
        "upstream": {"atoms_per_s": {"median": 10.0}},
        "ndem": {"atoms_per_s": {"median": 1e9}},
    }
    step.write_text(json.dumps({"settings": [{"arms": speeds}]}))
    out = tmp_path / "data.json"
    code, printed, _ = bench(
        capsys, "data", "--data", demo_data, "--workers", 1, 0, "--batch-size", 4, "--batches", 4,
        "--repeats", 2, "--no-progress", "--step", step, "--out", out,
    )  # fmt: skip
    assert code == 0
    result = json.loads(out.read_text())
    assert {(row["reader"], row["workers"]) for row in result["rows"]} == {
        (reader, workers)
        for reader in ("ndem_lmdb", "ndem_lmdb, checks: none", "lmdb")
        for workers in (0, 1)
    }
    assert [key for key in PROVENANCE if key not in result] == []
    assert result["needed"]["upstream"]["workers"] == 1
    assert result["needed"]["ndem"]["workers"] > 100
    assert "upstream, 10 atoms/s: 1 worker" in printed


def test_workers_needed_are_rounded_up():
    rows = [{"reader": "ndem_lmdb", "workers": 1, "atoms_per_s": {"median": 100.0}}]
    assert [workers_needed(rows, speed) for speed in (1.0, 100.0, 101.0)] == [1, 1, 2]
    assert workers_needed([], 1.0) is None


def test_bench_scaling_walks_along_its_axes(tiny, demo_data, tmp_path, capsys):
    from ndem_ocp.bench.plots import plot_scaling

    out = tmp_path / "scaling.json"
    code, printed, _ = bench(
        capsys, "scaling", "--model", tiny, "--data", demo_data, "--axes", "atoms", "layers",
        "--arms", "naive", "--batch-size", 1, "--repeats", 1, "--warmup", 0, "--device", "cpu",
        "--no-progress", "--out", out,
    )  # fmt: skip
    assert code == 0
    axes = json.loads(out.read_text())["axes"]
    assert [point["value"] for point in axes["layers"]["points"]] == [1, 2, 4, 8]
    atoms = [point["atoms"]["median"] for point in axes["atoms"]["points"]]
    assert atoms == [atoms[0] * n for n in (1, 2, 4, 9)]
    parameters = [p["arms"]["upstream"]["parameters"] for p in axes["layers"]["points"]]
    assert parameters == sorted(set(parameters))
    assert "exponents: upstream" in printed
    picture = plot_scaling({"axes": axes}, tmp_path / "p.png")
    assert picture.stat().st_size > 10_000


# --- bad options ---------------------------------------------------------------------------------

REFUSED = {
    "arm": (["step", "--arms", "fast"], "--arms fast: choose from upstream"),
    "fraction": (["step", "--fractions", "1.5"], "--fractions 1.5"),
    "repeats": (["step", "--repeats", "0"], "--repeats must be at least 1"),
    "warmup": (["step", "--warmup", "-1"], "--warmup must be at least 0"),
    "model": (["step", "--model", "31m"], "--model 31m: no such file"),
    "layers": (["step", "--layers", "0"], "--layers 0 is too small"),
    "no layers": (
        ["step", "--model", ROOT / "configs/backbones/gemnet_t.yml", "--layers", "1"],
        "has no num_layers",
    ),
    "mmax": (["step", "--mmax", "9"], "--mmax 9 is above the L"),
    "sizes": (["step", "--batch-sizes", "2", "many"], "--batch-sizes 2 many"),
    "max": (["step", "--batch-sizes", "max", "--device", "cpu"], "give numbers on the CPU"),
    "inference max": (
        ["inference", "--batch-sizes", "max", "--device", "cpu"],
        "give numbers on the CPU",
    ),
    "device": (["step", "--device", "tpu"], "--device tpu: give cuda or cpu"),
    "amp": (["step", "--amp", "--device", "cpu"], "--amp is CUDA's"),
    "threads": (["step", "--threads", "0"], "--threads must be at least 1"),
    "data": (["step", "--data", "nowhere"], "--data nowhere: no such file"),
    "no data": (["step", "--data", ROOT / "docs"], "docs: no *.lmdb in it"),
    "override": (["step", "--", "model.backbone"], "'model.backbone' is not an override"),
    "not hydra": (["step", "--", "--model.name=painn"], "model.name is 'painn'"),
    "workers": (["data", "--workers", "-1"], "--workers must be at least 0"),
    "step file": (["data", "--step", ROOT / "setup.py"], "setup.py is not a result of"),
    "checkpoint": (["inference", "--checkpoint", "gone.pt"], "gone.pt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_option_is_one_sentence(name, demo_data, capsys):
    (command, *options), words = REFUSED[name]
    if "--data" not in options:
        options = ["--data", demo_data, *options]
    threads = torch.get_num_threads()
    code, _, error = bench(capsys, command, *options)
    torch.set_num_threads(threads)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


def test_a_batch_larger_than_the_data_is_refused(tiny, demo_data, capsys):
    code, _, error = bench(
        capsys, "step", "--model", tiny, "--data", demo_data, "--batch-sizes", 1000, "--device",
        "cpu", "--no-memory", "--no-progress", "--arms", "upstream",
    )  # fmt: skip
    assert code == 2
    assert "a batch has 1,000 structures, but the data set only 40" in error


def test_dens_is_left_out_if_a_model_does_not_take_forces():
    from ndem_ocp.bench.arms import possible_arms

    config = read_config(str(ROOT / "configs/backbones/painn.yml"))
    arms, notes = possible_arms(["upstream", "dens", "ndem"], config)
    assert arms == ["upstream", "ndem"]
    assert notes == ["dens is left out: painn_backbone does not take forces as input."]


def test_sizes_and_overrides_change_the_model():
    config = read_config("31M", layers=3, lmax=6, overrides=["--model.backbone.max_neighbors=7"])
    backbone = config["model"]["backbone"]
    assert backbone["num_layers"] == 3
    assert (backbone["lmax_list"], backbone["mmax_list"]) == ([6], [2])
    assert backbone["max_neighbors"] == 7
    assert read_config("small", lmax=6)["model"]["backbone"]["grid_resolution"] == 14
    assert config["task"]["ndem"]["coefficient"] == 1.0
    changed: dict = {}
    set_key(changed, "--a.b=[1, 2]")
    assert changed == {"a": {"b": [1, 2]}}


# --- the page ------------------------------------------------------------------------------------


def test_the_commands_of_cost_py_are_valid():
    from ndem_ocp.bench.experiments import cost

    parser = cli.build_parser()
    for device in ("cpu", "cuda"):
        for quick in (False, True):
            lines = cost.commands(device, [], ["step", "inference", "data", "scaling"], quick)
            assert len({line[line.index("--out") + 1] for line in lines}) == len(lines)
            for line in lines:
                parser.parse_args(line)  # SystemExit for an unknown option


def test_the_tables_of_the_page(tmp_path):
    from ndem_ocp.bench.pages.cost import COST_TABLES

    assert {table(tmp_path) for table in COST_TABLES.values()} == {"not run"}


def test_impossible_rounds_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for option, value in (("--repeats", "0"), ("--warmup", "-1")):
        assert cli.main(["bench", "step", option, value]) == 2
        assert f"{option} must be at least" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
