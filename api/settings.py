"""Hold what the operator decides about the HTTP layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ollampi.api.access import Keys

DEFAULT_MAX_BODY_BYTES = 33554432


@dataclass(frozen=True)
class Settings:
    """How the HTTP layer behaves.

    origins: browser origins allowed besides local ones; `*` matches any text. loopback: the server is bound to a
    loopback address, so a foreign Host header means DNS rebinding. default_keep_alive_s, context_length: None leaves
    them to the engine and the model. num_threads: requests served at the same time. hosts: names by which clients
    know this server besides those that host_allowed knows. keys: who may use it. registries: hosts beside public ones
    that models may be pulled from and pushed to; num_transfer_streams: pieces of a blob under way at one time.
    """

    origins: list[str] = field(default_factory=list)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    loopback: bool = True
    default_keep_alive_s: float | None = None
    context_length: int | None = None
    num_threads: int = 256
    hosts: list[str] = field(default_factory=list)
    keys: Keys = field(default_factory=Keys)
    registries: list[str] = field(default_factory=list)
    num_transfer_streams: int = 4
