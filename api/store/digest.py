"""Name a blob by the SHA-256 of its bytes, as "sha256:<64 hex digits>"."""

from __future__ import annotations

import re
from typing import Any

from ollampi.api.errors import bad_request

_FORM = re.compile(r"sha256[:-]([0-9a-fA-F]{64})", re.ASCII)


class Digest(str):
    """The text "sha256:<64 lower-case hex digits>"; made by parse_digest or digest_of."""

    __slots__ = ()

    @property
    def hex(self) -> str:
        """Return the 64 digits."""
        return self[7:]

    @property
    def file_name(self) -> str:
        """Return the name of the blob's file."""
        return f"sha256-{self.hex}"


def parse_digest(text: str) -> Digest:
    """Return the digest that `text` writes with ":" or "-", in any case; raise ApiError (400)."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise bad_request("invalid digest format")
    return Digest(f"sha256:{found[1].lower()}")


def digest_of(hashed: Any) -> Digest:
    """Return the digest that a hashlib object of SHA-256 has come to."""
    return Digest(f"sha256:{hashed.hexdigest()}")
