"""A logger never ends a run: W&B without an account or a network, a history on a full disk."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import wandb

from fairchem_kit.history import wandb_mode
from fairchem_kit.history.logger import HistoryLogger, read_history
from fairchem_kit.history.wandb_mode import offline_if_need_be


@pytest.fixture
def online(monkeypatch, caplog):
    """W&B as a user has it who has chosen nothing; what mode it is given, and what is said."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    settings = SimpleNamespace(mode="online", base_url="http://127.0.0.1:1")
    given = []

    def setup(settings=None):
        if settings is not None:
            given.append(settings.mode)
        return SimpleNamespace(settings=here.settings)

    here = SimpleNamespace(settings=settings, given=given, said=caplog)
    monkeypatch.setattr(wandb, "setup", setup)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    caplog.set_level(logging.WARNING)
    return here


@pytest.fixture
def server(online):
    """Somebody who answers at the address of W&B."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        online.settings.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield online


def test_no_network_is_offline_at_once(online):
    start = time.monotonic()
    offline_if_need_be()
    assert time.monotonic() - start < wandb_mode.NETWORK_S + 1
    assert online.given == ["offline"]
    assert "W&B is offline in this run: 127.0.0.1 cannot be reached" in online.said.text
    assert "wandb sync" in online.said.text


def test_a_name_server_that_hangs_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(wandb_mode, "NETWORK_S", 0.2)
    ended = threading.Event()

    def hangs(*_, **__):
        ended.wait(5)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hangs)
    start = time.monotonic()
    offline_if_need_be()
    assert time.monotonic() - start < 2
    ended.set()
    assert online.given == ["offline"]


def test_no_key_is_offline(server, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    offline_if_need_be()
    assert server.given == ["offline"]
    assert "there is no API key (`wandb login`, or WANDB_API_KEY)" in server.said.text


def test_a_key_that_is_refused_is_offline(server, monkeypatch):
    def refuse(**_):
        raise wandb.errors.AuthenticationError("the key is not known")

    monkeypatch.setattr(wandb, "login", refuse)
    offline_if_need_be()
    assert server.given == ["offline"]
    assert "the key is not known" in server.said.text


def test_with_a_network_and_a_key_nothing_is_said(server):
    offline_if_need_be()
    assert server.given == []
    assert not server.said.text


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_wandb_mode_that_was_chosen_is_kept(online, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    offline_if_need_be()
    monkeypatch.delenv("WANDB_MODE")
    online.settings.mode = mode  # chosen in wandb's own settings file
    offline_if_need_be()
    assert online.given == []
    assert not online.said.text


def test_a_proxy_is_what_must_be_reached(server, monkeypatch):
    proxy = server.settings.base_url
    server.settings.base_url = "http://wandb.invalid"
    monkeypatch.setenv("http_proxy", proxy)
    offline_if_need_be()
    assert server.given == []


RUN = """
import sys, time
from pathlib import Path
from fairchem.core.common.registry import registry
from fairchem_kit.history.logger import HistoryLogger
logs = Path(sys.argv[1])
cmd = {"logs_dir": logs, "timestamp_id": "first", "identifier": "first"}
config = {"cmd": cmd, "logger": {"name": "ndem_history", "inner": "wandb", "project": "p"}}
start = time.monotonic()
logger = HistoryLogger(config)
logger.log({"loss": 1.0}, 1, "train")
import wandb
assert wandb.run.settings.mode == "offline", wandb.run.settings.mode
wandb.finish()
print(time.monotonic() - start)
"""


@pytest.mark.slow
def test_a_run_with_a_key_and_no_network_logs_offline(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "W&B is offline in this run" in done.stderr
    assert list(tmp_path.rglob("offline-run-*"))
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


def test_a_run_continues_without_a_logger_that_cannot_be_made(tmp_path, monkeypatch, caplog):
    from fairchem.core.common.logger import WandBLogger

    def fails(self, config):
        raise wandb.errors.CommError("no")

    monkeypatch.setattr(WandBLogger, "__init__", fails)
    cmd = {"logs_dir": tmp_path, "timestamp_id": "a", "identifier": "a"}
    logger = HistoryLogger({"cmd": cmd, "logger": {"name": "x", "inner": "wandb"}})
    logger.log({"loss": 1.0}, 1, "train")
    assert "WandBLogger cannot be started (CommError: no)" in caplog.text
    assert len(read_history(tmp_path)) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_history_on_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    cmd = {"logs_dir": tmp_path, "timestamp_id": "a", "identifier": "a"}
    logger = HistoryLogger({"cmd": cmd, "logger": {"name": "x", "inner": None}})
    logger.log({"loss": 1.0}, 1, "train")
    kept = tmp_path / "kept.jsonl"
    logger.path.rename(kept)
    logger.path.symlink_to("/dev/full")
    for step in (2, 3):
        logger.log({"loss": 1.0}, step, "train")
    assert caplog.text.count("cannot be written") == 1
    logger.path.unlink()
    kept.rename(logger.path)
    logger.log({"loss": 1.0}, 4, "train")
    lines = [json.loads(line)["step"] for line in logger.path.read_text().splitlines()]
    assert lines == [1, 4]
