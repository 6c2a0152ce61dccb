"""Whether W&B can go online. This is checked before ``wandb.init``, which ends a run without an
account and waits for minutes without a network."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import wandb

NETWORK_S = 3.0  # timeout of a connection
_ONLINE = ("online", "run", "shared", None)


def offline_if_need_be() -> None:
    """Set W&B to offline, with a message, if it cannot start online.

    Nothing is checked if WANDB_MODE or wandb's own settings have chosen another mode.
    """
    settings = wandb.setup().settings
    if os.environ.get("WANDB_MODE") not in _ONLINE or settings.mode not in _ONLINE:
        return
    why = _why_not_online(settings.base_url)
    if why is not None:
        go_offline(why)


def go_offline(why: str) -> None:
    """Make W&B write to files from now on."""
    wandb.setup(settings=wandb.Settings(mode="offline"))
    logging.warning(
        f"W&B is offline in this run: {why}. Everything is logged to files; `wandb sync "
        "RUN_DIR/logs/*/*/wandb/offline-run-*` sends it later. WANDB_MODE=offline says that this "
        "is meant."
    )


def _why_not_online(address: str) -> str | None:
    host, port = _server(address)
    # checked first, because a login with a key waits for the network
    if not _reachable(host, port):
        return f"{host} cannot be reached"
    try:
        if wandb.login(prompt=False):  # does not ask at the terminal
            return None
    except TypeError:  # a version of wandb without this argument
        return None
    except Exception as error:  # the server does not answer, or rejects the key
        return " ".join(str(error).split()).rstrip(".")
    return "there is no API key (`wandb login`, or WANDB_API_KEY)"


def _server(address: str) -> tuple[str, int]:
    """Host and port to connect to for an address of W&B: its host, or a proxy."""
    url = urlparse(address)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlparse(proxy if "//" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)


def _reachable(host: str, port: int) -> bool:
    """Whether a connection can be made; tried in a thread, because a name server may hang."""
    found: list[Any] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=NETWORK_S).close()
            found.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_S)
    return bool(found)
