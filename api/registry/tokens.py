"""Say to a registry who asks: a bearer token, fetched from the registry itself and shown to nobody else.

The challenge is RFC 6750's, the token endpoint that of https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from urllib.parse import urlencode

from urllib3 import BaseHTTPResponse

from ollampi.api.errors import ApiError
from ollampi.api.registry.hosts import Origin, origin_of
from ollampi.api.registry.web import discard

MAX_TOKEN_BYTES = 64 << 10
_FIELD = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")


class Tokens:
    """Credentials of one registry; safe to use from several threads.

    fetch: returns the body at a URL of the registry itself, asked for without credentials and redirects.
    token: a first one, None where there is none yet.
    """

    def __init__(self, origin: Origin, fetch: Callable[[str], bytes], token: str | None = None) -> None:
        self._origin, self._fetch, self._token = origin, fetch, token
        self._lock = threading.Lock()

    def authorization(self, origin: Origin) -> str | None:
        """Return the header for the registry itself, None for everybody else."""
        with self._lock:
            return f"Bearer {self._token}" if self._token and origin == self._origin else None

    def answer(self, origin: Origin, response: BaseHTTPResponse) -> bool:
        """Fetch the token that a 401 asks for; return whether there is one now.

        Raise ApiError (502) where another host than the registry would give it: that one could collect credentials.
        """
        discard(response)
        challenge = response.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.strip().partition(" ")
        fields = dict(_FIELD.findall(rest))
        if origin != self._origin or scheme.lower() != "bearer" or "realm" not in fields:
            return False
        realm = fields["realm"]
        if origin_of(realm) != self._origin:
            raise ApiError(502, f"{origin.netloc} wants a token from another host, {origin_of(realm)}; it is not asked")
        asked = [("service", fields["service"])] if "service" in fields else []
        asked += [("scope", scope) for scope in fields.get("scope", "").split()]
        body = self._fetch(realm + ("&" if "?" in realm else "?") + urlencode(asked))
        token = _token_in(body)
        if token is None:
            raise ApiError(502, f"{origin.netloc} gave no token; sign in there, or ask its operator")
        with self._lock:
            self._token = token
        return True


class Nobody:
    """No credentials."""

    def authorization(self, origin: Origin) -> str | None:
        """Return None."""
        return None

    def answer(self, origin: Origin, response: BaseHTTPResponse) -> bool:
        """Return False."""
        return False


def _token_in(body: bytes) -> str | None:
    """Return the token that an answer holds and a header can."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = (values.get("token") or values.get("access_token")) if isinstance(values, dict) else None
    return found if isinstance(found, str) and _TOKEN.fullmatch(found) else None
