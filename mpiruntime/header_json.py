"""Take the JSON of a safetensors header apart, one tensor at a time.

A header comes from a stranger: whatever it holds, it takes little memory beyond what is made of its tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ollampi.mpiruntime.strict_json import unique

_TEXT = rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
_GAP = rb"[ \t\n\r]*+"
_PAIR = _GAP.join((rb"", _TEXT, rb":", _TEXT, rb""))
_OPENED = re.compile(_GAP.join((rb"", rb"\{", rb"(\})?+")))
_TENSOR = re.compile(  # 1000 bytes are enough for a name, and for a dtype, a shape and two offsets
    _GAP.join((rb"", rb'("[^"\\\x00-\x1f]{0,1000}+(?:\\.[^"\\\x00-\x1f]{0,1000}+){0,1000}+")', rb":"))
    + _GAP.join((rb"", rb"(\{[^{}]{0,1000}+\})", rb"([,}])"))
)
_METADATA = re.compile(  # texts, in which there may be braces
    _GAP.join((rb"", b'"__metadata__"', rb":", rb"(?:null|\{(?:%s(?:,%s)*+)?+" % (_PAIR, _PAIR)))
    + _GAP.join((rb"\})", rb"([,}])"))
)
_DECODER = json.JSONDecoder(object_pairs_hook=unique)


def header_pairs(raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names of the header `raw` and what it says of each, without its metadata; raise ValueError.

    A name may come twice; within what is said of a tensor no key does.
    """
    found = _OPENED.match(raw)
    if found is None:
        raise ValueError("the header is not valid JSON, or no object")
    at, last, described = found.end(), found[1] is not None, False
    while not last:
        found = None if described else _METADATA.match(raw, at)
        if found is not None:
            described = True
        elif (found := _TENSOR.match(raw, at)) is not None:
            name = found[1]
            yield _decoded(name) if b"\\" in name else name[1:-1].decode(), _decoded(found[2])
        else:
            raise ValueError(f"the header is not valid JSON, or describes no tensor at byte {at}")
        at, last = found.end(), found[found.re.groups] == b"}"
    if raw[at:].strip(b" \t\n\r"):
        raise ValueError(f"the header is not valid JSON: something is behind its end at byte {at}")


def _decoded(raw: bytes) -> Any:
    """Return what a piece of JSON says; raise ValueError."""
    try:
        return _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the header is not valid JSON ({e})") from e
