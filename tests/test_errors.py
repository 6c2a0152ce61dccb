"""Errors of all commands: one sentence, exit status 2, nothing half-written, no traceback."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fairchem_kit
import ndem_ocp
from conftest import short_training, tiny_config
from fairchem_kit.commands import ending
from fairchem_kit.data import sources
from fairchem_kit.files import OutputError, replacing, write_text
from fairchem_kit.history.run_record import read_run_record
from ndem_ocp.cli import main
from ndem_ocp.commands.table import COMMANDS

# Raised and caught inside the package; or no error at all.
INTERNAL = {"EndedEarly", "FrameError", "Held", "OtherRuns", "Refused", "Stopped", "_Enough"}
PACKAGES = [Path(package.__file__).parent for package in (ndem_ocp, fairchem_kit)]


def test_every_error_class_has_the_one_base():
    bases = {}
    for path in (path for package in PACKAGES for path in package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [getattr(b, "id", getattr(b, "attr", "")) for b in node.bases]

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in bases.get(name, ())))

    errors = {name for name in bases if ancestors(name) & {"Exception", "ValueError", "OSError",
              "RuntimeError", "BaseException", "KeyError", "TypeError"}}  # fmt: skip
    assert len(errors) > 20
    assert {e for e in errors if "UserError" not in ancestors(e)} == INTERNAL


# --- how a command ends --------------------------------------------------------------------------


def ended(raises: BaseException) -> int:
    def command() -> int:
        raise raises

    return ending.run(command)


def test_exit_statuses(capsys, monkeypatch):
    assert ended(ndem_ocp.NDeMError("What to do.")) == 2
    assert capsys.readouterr().err == "ndem: What to do.\n"
    assert ended(KeyboardInterrupt()) == 130
    assert ended(PermissionError(13, "Permission denied", "/data/x")) == 2
    assert "ndem: /data/x: no permission." in capsys.readouterr().err
    assert ended(ModuleNotFoundError("No module named 'torchmdnet'", name="torchmdnet")) == 2
    assert "the Python package torchmdnet is missing" in capsys.readouterr().err
    assert ending.run(lambda: 1) == 1
    monkeypatch.setenv("NDEM_TRACEBACK", "1")
    assert ended(ndem_ocp.NDeMError("What to do.")) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault",
    [
        KeyError("a fault of ours"),
        ImportError("no name x in ndem_ocp.y", name="ndem_ocp.y"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),  # of a worker: nobody has closed our output
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(fault):
    with pytest.raises(type(fault)):
        ended(fault)


def ndem(*words: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ndem_ocp.cli", *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_an_option_is_a_finite_number(number, capsys):
    for words in (
        ["data", "ase", "x.traj", "--out", "out", f"--val-fraction={number}"],
        ["data", "check", "x", f"--max-force={number}"],
        ["fit", "x.traj", f"--time={number}"],
    ):
        assert main(words) == 2
        option = words[-1].partition("=")[0]
        said = capsys.readouterr().err
        assert said.startswith(f"ndem: argument {option}: give a finite number, not {number} (see")


def test_closed_output_ends_without_an_error():
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], ["bench", "step", "--help"]):
        done = ndem(*words, stdout=write)
        assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = ndem("--help", stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("ndem: standard output")
    assert done.stderr.endswith(": the disk is full.\n")


# --- inputs --------------------------------------------------------------------------------------

#: {command: command lines with the places of its inputs}
INPUTS = {
    **{command.name: [["TRAJ", "--out", "out"]] for command in sources.commands()},
    "fit": [["TRAJ", "--out", "out", "--cpu"]],
    "data curvature": [["FOLDER"], ["SPLIT", "--checkpoint", "CHECKPOINT"]],
    "data second-views": [["FOLDER", "--calculator", "ase.calculators.emt:EMT()", "--out", "o"]],
    "vibrations": [["CHECKPOINT", "TRAJ", "--cpu"], ["CHECKPOINT_GOOD", "TRAJ", "--cpu"]],
    "data ase": [["TRAJ", "--out", "out", "--workers", "1"]],
    "data md17": [["NPZ", "--out", "out"], ["NPZ_GOOD", "--test-file", "NPZ", "--out", "out"]],
    "data qm9": [["NPZ", "--out", "out"]],
    "data check": [["FOLDER"]],
    "demo": [["--config", "YAML", "--data", "DATA"]],
    "bench step": [["--model", "YAML", "--device", "cpu", "--data", "SPLIT"],
                   ["--data", "FOLDER", "--device", "cpu", "--layers", "1"]],
    "bench inference": [["--checkpoint", "CHECKPOINT", "--device", "cpu", "--data", "SPLIT"]],
    "bench data": [["--step", "JSON", "--data", "SPLIT"], ["--data", "FOLDER"]],
    "bench scaling": [["--model", "YAML", "--device", "cpu", "--data", "SPLIT"]],
    "sweep": [["YAML", "--out", "out"]],
    "train": [["YAML", "--cpu", "--run-dir", "out"],
              ["YAML_GOOD", "--cpu", "--run-dir", "out", "--checkpoint", "CHECKPOINT"],
              ["YAML_GOOD", "--cpu", "--run-dir", "out", "task.init_from=CHECKPOINT"],
              ["--sweep", "YAML", "--task", "0", "--cpu"]],
    "submit": [["YAML", "--dry-run", "--out", "out"], ["--sweep", "YAML", "--dry-run"]],
    "status": [["FOLDER"]],
    "report": [["FOLDER"], ["RUN", "--eval", "FOLDER", "--out", "out.html"]],
    "dashboard": [["FOLDER", "--dry-run"], ["--from", "JSON", "--dry-run"]],
    "eval": [["CHECKPOINT", "--data", "SPLIT", "--cpu", "--out", "out"],
             ["CHECKPOINT_GOOD", "--data", "FOLDER", "--cpu", "--out", "out"]],
    "relax": [["CHECKPOINT", "--data", "SPLIT", "--cpu", "--out", "out"]],
    "submission write": [["CHECKPOINT", "--id", "SPLIT", "--ood-ads", "SPLIT", "--ood-cat", "SPLIT",
                          "--ood-both", "SPLIT", "--cpu", "--out", "out.npz"]],
    "submission check": [["NPZ"]],
    "export": [["CHECKPOINT", "out.pt"]],
}  # fmt: skip
WITHOUT_INPUT = {"data demo", "data demo-relaxations", "doctor", "requeue", "completion"}
#: Commands that look at files and say with 1 what is wrong with them.
JUDGES = {"data check", "submission check"}

KINDS = ("missing", "empty", "junk", "text", "directory", "loop", "truncated")
ENDINGS = {"TRAJ": ".traj", "NPZ": ".npz", "YAML": ".yml", "CHECKPOINT": ".pt", "JSON": ".json"}


@pytest.fixture(scope="module")
def good(demo_data, tmp_path_factory) -> dict[str, Path]:
    """One file or folder of each kind that can be used."""
    folder = tmp_path_factory.mktemp("good")
    run = folder / "run"
    checkpoints = short_training(demo_data, run)
    config = folder / "tiny.yml"
    config.write_text(yaml.safe_dump(tiny_config(demo_data)))
    rng = np.random.default_rng(0)
    np.savez(
        folder / "md17.npz", E=rng.normal(size=(40, 1)), F=rng.normal(size=(40, 2, 3)),
        R=rng.normal(size=(40, 2, 3)), z=np.array([1, 6]),
    )  # fmt: skip
    (folder / "step.json").write_text('{"settings": [{"arms": {}}]}')
    shutil.copy(demo_data / "train" / "data.0000.lmdb", folder / "x.traj")
    return {
        "CHECKPOINT": checkpoints / "best_checkpoint.pt",
        "YAML": config,
        "NPZ": folder / "md17.npz",
        "JSON": folder / "step.json",
        "TRAJ": folder / "x.traj",
        "DATA": demo_data,
        "SPLIT": demo_data / "val_id",
        "RUN": run,
    }


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(words)``: run a command that must be refused; the sentence."""
    monkeypatch.chdir(tmp_path)

    def run(words: list[str], statuses: tuple[int, ...] = (2,)) -> str:
        try:
            code = main(words)
        finally:
            if torch.distributed.is_initialized():  # a run that ended while it was set up
                torch.distributed.destroy_process_group()
        captured = capsys.readouterr()
        assert code in statuses, (words, captured.err)
        assert "Traceback" not in captured.err + captured.out, (words, captured.err)
        said = [line for line in captured.err.splitlines() if line.startswith("ndem: ")]
        assert len(said) == (code == 2), (words, captured.err)
        return captured.err[captured.err.rfind("ndem: ") :]

    return run


def hostile(kind: str, what: str, good: dict[str, Path], folder: Path) -> Path:
    """A file that is no ``what``, or for FOLDER a directory with such a file."""
    if what == "FOLDER":
        inside = folder / f"{kind}-folder"
        inside.mkdir()
        if kind in ("missing", "loop"):
            return hostile(kind, "NPZ", good, folder)
        for name in ("data.0000.lmdb", "history.jsonl", "tasks.json", "metrics.json"):
            hostile(kind, "NPZ", good, folder).replace(inside / name)
        return inside
    path = folder / f"{kind}{ENDINGS[what]}"
    if kind == "missing":
        return path
    if kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        whole = good[what].read_bytes()
        content = {
            "empty": b"",
            "junk": bytes(np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)),
            "text": b"hello\nworld: [\n",
            "truncated": whole[: len(whole) * 2 // 3] + (b"\n [" if what == "YAML" else b""),
        }
        path.write_bytes(content[kind])
    return path


def test_the_walk_knows_every_command():
    assert {*INPUTS, *WITHOUT_INPUT} == {command.name for command in COMMANDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", INPUTS)
def test_bad_inputs_are_one_sentence(command, kind, good, refused, tmp_path):
    for number, line in enumerate(INPUTS[command]):
        folder = tmp_path / f"line{number}"
        folder.mkdir()
        words, bad = [], None
        for word in line:
            key, _, what = word.rpartition("=")
            if what.removesuffix("_GOOD") in good and (what.endswith("_GOOD") or what in PLAIN):
                word = str(good[what.removesuffix("_GOOD")])
            elif what in {*ENDINGS, "FOLDER"}:
                bad = hostile(kind, what, good, folder)
                word = f"{key}={bad}" if key else str(bad)
            words.append(word)
        said = refused([*command.split(), *words], (1, 2) if command in JUDGES else (2,))
        if said.strip():
            assert bad.stem in said, said
        assert not list(tmp_path.glob("out.*"))


PLAIN = ("DATA", "SPLIT", "RUN")


# --- other mistakes ------------------------------------------------------------------------------


def test_configurations_that_cannot_train(good, refused, tmp_path):
    def changed(**changes) -> str:
        config = yaml.safe_load(good["YAML"].read_text())
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            section = config
            for key in path:
                section = section.setdefault(key, {})
            section[last] = value
        (tmp_path / "changed.yml").write_text(yaml.safe_dump(config))
        return refused(["train", "changed.yml", "--cpu", "--run-dir", "out"])

    assert "model.name is 'schnet'" in changed(model={"name": "schnet"})
    assert "model.backbone.model = 'no.Such'" in changed(model__backbone={"model": "no.Such"})
    assert "trainer = 'nosuch' is not a trainer" in changed(trainer="nosuch")
    assert "logger.name = 'nosuch'" in changed(logger="nosuch")
    for logger in (None, 3):
        assert "changed.yml: `logger` must be a name" in changed(logger=logger)
    assert "changed.yml: `loss_functions` is missing or empty" in changed(loss_functions=None)
    for source in (None, 3, ["gone", None]):
        said = changed(dataset__train__src=source)
        assert "dataset.train.src must be a path, or a list of paths, not" in said
    assert "gone.pt" in changed(task__init_from="gone.pt")
    assert "dataset.train.src = 'gone'" in changed(dataset__train__src="gone")
    (tmp_path / "part.yml").write_text("model: {name: hydra}\n")
    assert "`dataset` is missing" in refused(["train", "part.yml", "--cpu"])
    (tmp_path / "cycle.yml").write_text("includes: [cycle.yml]\n")
    assert "Cyclic" in refused(["train", "cycle.yml", "--cpu"])
    (tmp_path / "code.yml").write_text("a: !!python/object/apply:os.system ['touch ran']\n")
    for command in ("train", "sweep"):
        assert "code.yml, line 1" in refused([command, "code.yml"])
    assert not (tmp_path / "ran").exists()
    assert "--seed" in refused(["train", str(good["YAML"]), "--cpu", "--seed", "x"])


def test_a_checkpoint_of_a_strangers_model(good, refused, tmp_path):
    state = torch.load(good["CHECKPOINT"], weights_only=True)
    split = str(good["SPLIT"])
    for key, name in (("backbone", "their_package.Model"), ("heads", "their_head")):
        config = yaml.safe_load(yaml.safe_dump(state["config"]["model"]))
        section = config["heads"]["forces"] if key == "heads" else config["backbone"]
        section["module" if key == "heads" else "model"] = name
        torch.save({**state, "config": {**state["config"], "model": config}}, "theirs.pt")
        for words in (
            ["eval", "theirs.pt", "--data", split, "--cpu"],
            ["export", "theirs.pt", "out.pt"],
            ["relax", "theirs.pt", "--data", "theirs.pt", "--cpu"],
            ["bench", "inference", "--checkpoint", "theirs.pt", "--data", split, "--device", "cpu"],
        ):
            said = refused(words)
            assert f"theirs.pt: its model.{key}" in said
            assert f"is {name!r}, which is not installed here" in said
            assert len(said) < 500  # and not all that fairchem knows
    torch.save({**state, "config": {**state["config"], "outputs": [1]}}, "damaged.pt")
    for words in (["eval", "damaged.pt", "--data", split, "--cpu"], ["export", "damaged.pt", "o"]):
        assert "outputs is a list, not a mapping" in refused(words)


def test_damaged_records_of_a_run(good, refused, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(good["RUN"] / "logs", run / "logs")
    history = next(run.rglob("history.jsonl"))
    whole = history.read_text()
    for line in ("[1, 2]", "3", '{"step": 1}', "\0\0"):
        history.write_text(f"{line}\n{whole}")
        assert "line 1: not a record of a history" in refused(["report", str(run)])
    history.write_text(whole)
    record = next(run.rglob("run.json"))
    for text in ("[1]", "\0", '{"config": 3, "starts": 7}', '{"starts": [1], "summary": []}'):
        record.write_text(text)
        assert read_run_record(record.parent) in ({}, {"starts": []})
    assert main(["report", str(run), "--out", "out.html"]) == 0
    for text in ("[1]", '{"splits": {"a": 1}, "checkpoint": {}}'):
        (tmp_path / "metrics.json").write_text(text)
        assert "not a metrics.json of ndem eval" in refused(["report", "run", "--eval", "."])


# --- outputs -------------------------------------------------------------------------------------

#: {command: (command line, what it writes into OUT)}
OUTPUTS = {
    "eval": ["CHECKPOINT", "--data", "SPLIT", "--cpu", "--out", "OUT"],
    "submission write": ["CHECKPOINT", "--id", "SPLIT", "--ood-ads", "SPLIT", "--ood-cat", "SPLIT",
                         "--ood-both", "SPLIT", "--cpu", "--out", "OUT/s.npz"],
    "export": ["CHECKPOINT", "OUT/plain.pt"],
    "report": ["RUN", "--out", "OUT/report.html"],
    "dashboard": ["RUN", "--project", "p", "--out", "OUT/d.json"],
    "train": ["YAML", "--cpu", "--run-dir", "OUT", "optim.eval_every=2"],
    "bench data": ["--data", "SPLIT", "--workers", "0", "--batches", "2", "--repeats", "1",
                   "--batch-size", "2", "--no-progress", "--out", "OUT/b.json"],
    "sweep": ["SWEEP", "--out", "OUT"],
    "demo": ["--config", "YAML", "--data", "DATA", "--out", "OUT"],
}  # fmt: skip


def output_words(command: str, good: dict[str, Path], out: Path) -> list[str]:
    sweep = out.parent / "sweep.yml"
    sweep.write_text(
        f"config: {good['YAML']}\ntest: {good['SPLIT']}\nmetrics: [forces_mae]\narms: {{a: {{}}}}\n"
    )
    words = []
    for word in OUTPUTS[command]:
        first, slash, rest = word.partition("/")
        place = {"OUT": out, "SWEEP": sweep, **good}.get(first)
        words.append(word if place is None else f"{place}{slash}{rest}")
    return [*command.split(), *words]


@pytest.mark.parametrize("command", OUTPUTS)
def test_a_file_in_the_place_of_the_output_folder(command, good, refused, tmp_path):
    out = tmp_path / "taken"
    out.write_text("mine")
    assert "taken" in refused(output_words(command, good, out))
    assert out.read_text() == "mine"


@contextlib.contextmanager
def no_file_above(size: int):
    """The kernel refuses to let a file grow: as a full disk does, at the same calls."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


IN_OTHER_PROCESSES = {"sweep", "demo"}


@pytest.mark.parametrize("command", sorted({*OUTPUTS} - IN_OTHER_PROCESSES))
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(command, good, refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    old = {"eval": "metrics.json", "submission write": "s.npz", "report": "report.html",
           "dashboard": "d.json", "bench data": "b.json"}  # fmt: skip
    if command in old:
        (out / old[command]).write_text("of before")
    words = output_words(command, good, out)
    with no_file_above(60):
        said = refused(words)
    assert str(out) in said, said
    if command in old:
        assert (out / old[command]).read_text() == "of before"
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(".writing-")]
    if command != "train":  # whose logs are appended to
        assert {path.name for path in left} <= {old.get(command)}


MOUNTED = """
mount -t tmpfs -o size=4k tmpfs full && mount -t tmpfs -o ro tmpfs readonly || exit 77
exec "$@"
"""
WALK = """
import os, sys, json
from ndem_ocp.cli import main
for words in json.loads(sys.argv[1]):
    print("WORDS", *words, file=sys.stderr, flush=True)
    print("CODE", main(words), file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_a_full_and_a_read_only_file_system(good, tmp_path):
    """With real ones, where this user may mount them in a name space of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("no name spaces for mounts here")
    (tmp_path / "full").mkdir()
    (tmp_path / "readonly").mkdir()
    names = ("eval", "export", "report")
    lines = [output_words(n, good, tmp_path / d) for n in names for d in ("full", "readonly")]
    done = subprocess.run(
        [unshare, "-rm", "bash", "-c", MOUNTED, "-", sys.executable, "-c", WALK, json.dumps(lines)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no mounts here")
    assert "Traceback" not in done.stderr, done.stderr
    codes = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("CODE")]
    said = [line for line in done.stderr.splitlines() if line.startswith("ndem: ")]
    assert codes == ["2"] * 2 * len(names), done.stderr
    assert sum("the file system is read-only" in line for line in said) == len(names)
    assert sum("the disk is full" in line for line in said) == len(names), "\n".join(said)


def test_replacing_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fails(error: Exception) -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(OutputError, match=r"a\.txt could not be written: the disk is full"):
        fails(OSError(28, "No space left on device"))
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
