"""Whether W&B can go online, asked before ``wandb.init``: that ends a run without an account, and
waits for minutes where there is no network."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import wandb

NETWORK_S = 3.0  # until a connection counts as impossible
_ONLINE = ("online", "run", "shared", None)


def offline_if_need_be() -> None:
    """Set W&B to offline where it could not start online, and say so now.

    Nothing is asked where WANDB_MODE or a setting of wandb's own has chosen another mode.
    """
    settings = wandb.setup().settings
    if os.environ.get("WANDB_MODE") not in _ONLINE or settings.mode not in _ONLINE:
        return
    why = _why_not_online(settings.base_url)
    if why is not None:
        go_offline(why)


def go_offline(why: str) -> None:
    """Let W&B write to files from now on."""
    wandb.setup(settings=wandb.Settings(mode="offline"))
    logging.warning(
        f"W&B is offline in this run: {why}. What is logged is kept in files; `wandb sync "
        "RUN_DIR/logs/*/*/wandb/offline-run-*` sends it later. WANDB_MODE=offline says that this "
        "is meant."
    )


def _why_not_online(address: str) -> str | None:
    host, port = _server(address)
    if not _reachable(host, port):  # first: with a key, a login waits for the network
        return f"{host} cannot be reached"
    try:
        if wandb.login(prompt=False):  # does not ask at the terminal
            return None
    except TypeError:  # a wandb without this argument: not known
        return None
    except Exception as error:  # the server does not answer, or does not know the key
        return " ".join(str(error).split()).rstrip(".")
    return "there is no API key (`wandb login`, or WANDB_API_KEY)"


def _server(address: str) -> tuple[str, int]:
    """Who is spoken to for an address of W&B: its host, or a proxy in between."""
    url = urlparse(address)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlparse(proxy if "//" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)


def _reachable(host: str, port: int) -> bool:
    """Whether a connection can be made; a name server may hang, so it is asked in a thread."""
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
