"""Convert or quantise a model's weights in a process of its own: `python -m ollampi.mpiruntime.gguf_job VERB ...`.

The HTTP process starts it, so that arithmetic on gigabytes neither slows down its answers nor stays in its memory. It
writes one JSON array [bytes done, bytes in all] per line to stdout, and at the end null, or a text for what went wrong.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_convert import convert
from ollampi.mpiruntime.gguf_quantise import requantise
from ollampi.mpiruntime.lifetime import die_with


def main(arguments: list[str]) -> None:
    """Run `convert SOURCE TARGET` or `requantise SOURCE TARGET LEVEL`, behind the number of the parent process."""
    parent, verb, source, target, *level = arguments
    die_with(int(parent))
    os.nice(5)  # answers go first
    try:
        if verb == "convert":
            convert(Path(source), Path(target), _tell)
        else:
            requantise(Path(source), Path(target), level[0], _tell)
    except ModelError as e:
        _say({"model": str(e)})
    except OSError as e:
        _say({"number": e.errno, "text": e.strerror})
    else:
        _say(None)


def _tell(done: int, total: int) -> None:
    _say([done, total])


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
