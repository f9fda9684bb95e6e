"""Write the man pages of all commands: `python -m ollampi.launcher.man OUT_DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from ollampi.launcher.cli import main as commands
from ollampi.launcher.roff import pages


def main(arguments: list[str]) -> int:
    """Write a file for each page into a folder, which is made; return the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("Usage: python -m ollampi.launcher.man OUT_DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages(commands).items():
            (folder / name).write_text(text, encoding="ascii")
    except OSError as error:
        print(f"Error: cannot write to {folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
