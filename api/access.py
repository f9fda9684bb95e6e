"""Decide who may do what: permissions of routes, roles, and the keys that clients send."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.mpiruntime.errors import ConfigError

MAX_FILE_BYTES = 1 << 20


class Permission(StrEnum):
    """What a route needs: nothing, to read facts, to have models compute, or to change what is there."""

    PUBLIC = "public"
    READ = "read"
    USE = "use"
    MANAGE = "manage"


ROLES = {
    "admin": frozenset(Permission),
    "user": frozenset({Permission.PUBLIC, Permission.READ, Permission.USE}),
    "readonly": frozenset({Permission.PUBLIC, Permission.READ}),
}


@dataclass(frozen=True)
class Keys:
    """The roles by SHA-256 of their keys; without any, everybody may do everything, as in Ollama."""

    roles: tuple[tuple[bytes, str], ...] = ()

    def role(self, key: str) -> str | None:
        """Return the role of a key, None where it is no key; the time taken tells nothing of the keys."""
        digest, found = hashlib.sha256(key.encode(errors="replace")).digest(), None
        for known, role in self.roles:
            if hmac.compare_digest(known, digest):
                found = role
        return found

    def check(self, permission: Permission, key: str) -> None:
        """Raise ApiError (401, 403) where whoever sends `key` has no such permission."""
        if not self.roles or permission is Permission.PUBLIC:
            return
        role = self.role(key)
        if role is None:
            raise ApiError(401, "Unauthorized access: send a key of this server as `Authorization: Bearer KEY`")
        if permission not in ROLES[role]:
            raise ApiError(403, f"a key with the role {role} may not do this: it needs the permission {permission}")


def sent_key(authorization: str, api_key: str) -> str:
    """Return the key in the headers Authorization and X-Api-Key (which Anthropic's clients send), or an empty text."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else api_key.strip()


def read_keys(path: Path) -> Keys:
    """Return the keys of a file with a line `ROLE KEY` for each; raise ConfigError, also where others can read it."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a FIFO waits
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise ConfigError(f"the file of keys {path} must be a plain file for its owner only: chmod 600 {path}")
            text = file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError as e:
        raise ConfigError(
            f"the file of keys {path} cannot be read: {e.strerror}; name one with server.keys=PATH"
        ) from e
    roles = []
    for number, line in enumerate(text.splitlines(), 1):
        role, _, key = line.strip().partition(" ")
        if not role or role.startswith("#"):
            continue
        if role not in ROLES or len(key.strip()) < 16:
            raise ConfigError(
                f"line {number} of {path} must be a role ({', '.join(ROLES)}) and a key of 16 characters or more"
            )
        roles.append((hashlib.sha256(key.strip().encode()).digest(), role))
    if not roles:
        raise ConfigError(f"the file of keys {path} has none; write a line such as `admin KEY`")
    return Keys(tuple(roles))
