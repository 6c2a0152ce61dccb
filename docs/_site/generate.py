"""Write the pages of docs/ that are made from the source:

    python docs/_site/generate.py [--check]

With ``--check`` nothing is written, and a difference is exit status 1. Needs neither torch nor
fairchem.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from commands_page import commands_page
from settings_page import settings_page

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[], str]] = {
    "settings_reference.md": lambda: settings_page(ROOT),
    "commands.md": commands_page,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    different = []
    for name, page in PAGES.items():
        path, text = ROOT / "docs" / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            different.append(name)
            if not args.check:
                path.write_text(text, encoding="utf-8")
    if args.check and different:
        print(f"docs/{', docs/'.join(different)}: not what the source says; run `make docs-pages`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
