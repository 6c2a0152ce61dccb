"""Hooks of mkdocs: pages that lie outside docs/, and links from docs/ to files of the repository.

On GitHub a page of docs/ links to ``../configs/oc20/31M.yml``. In the site that is the file in the
repository at ``repo_url``, or, where mkdocs.yml has none, a copy of it that belongs to the site.
A link to a file that is not there is a warning, and with ``--strict`` an error.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.plugins.ndem_ocp")
ROOT = Path(__file__).resolve().parents[2]
# pages of the site that are files of the repository's root
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
COPIES = "repository"  # where files of the repository are in the site
_NOT_PROSE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository's root."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point every link at where its target is in the site."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it would be the one line "Home"
    source = next((name for name, added in PAGES.items() if added == uri), f"docs/{uri}")
    parts = _NOT_PROSE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = _LINK.sub(
            lambda m: m[1] + _in_site(m[2], source, uri, config, files) + m[3], parts[index]
        )
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles (:func:, :class:) of docstrings."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)


def _in_site(link: str, source: str, uri: str, config: Any, files: Any) -> str:
    """The link that a page of the site has for ``link`` of the file ``source``."""
    if re.match(r"[a-z]+:|#|/", link):
        return link
    target, hash_, anchor = link.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    if path in PAGES:
        path = f"docs/{PAGES[path]}"
    if path.startswith("docs/"):
        return _relative(path.removeprefix("docs/"), uri) + hash_ + anchor
    if not (ROOT / path).is_file():
        log.warning("%s links to %s, and %s is not a file", source, link, path)
        return link
    if config.repo_url:
        return f"{config.repo_url.rstrip('/')}/blob/HEAD/{path}{hash_}{anchor}"
    copy = f"{COPIES}/{path}" + (".txt" if path.endswith(".md") else "")  # not a page
    if files.get_file_from_path(copy) is None:
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    return _relative(copy, uri)


def _relative(target: str, uri: str) -> str:
    return os.path.relpath(target, os.path.dirname(uri) or ".")
