"""Say what the bodies of the cluster's routes hold, as the document of the cluster mode has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from ollampi.api.durations import parse_keep_alive
from ollampi.api.wires.body import Body
from ollampi.api.wires.ollama_bodies import KeepAlive, Named
from ollampi.mpiruntime.cluster import STRATEGIES

MAX_TIMEOUT_S = 86400.0
MAX_CONTEXT = 2**31 - 1  # as that of options.num_ctx
MAX_STREAMS = 1_000_000
NODE_ROLES = ("coordinator", "worker", "mixed")
_Ids = Annotated[list[str], Field(max_length=10_000)]


class JoinBody(Body):
    """POST /api/cluster/join: the gateway at which this job shall register, or node_name of a node that left."""

    coordinator_host: str = Field(json_schema_extra={"minLength": 1})
    coordinator_port: int = Field(default=11434, json_schema_extra={"minimum": 1, "maximum": 65535})
    node_name: str = ""
    node_role: str = Field(default="worker", json_schema_extra={"enum": list(NODE_ROLES)})


class LeaveBody(Body):
    """POST /api/cluster/leave: timeout is in seconds, node_id that of the one node that shall leave."""

    graceful: bool = True
    timeout: float = Field(default=60.0, json_schema_extra={"minimum": 0, "maximum": MAX_TIMEOUT_S})
    node_id: str = ""


class LoadBody(Named):
    """POST /api/cluster/model/load: keep_alive as elsewhere, context in tokens; stream shows how far the load is.

    replicas share out node_ids, in their order, or have nodes of their own; streams: how many answers are expected to
    run at one time. A field that is none of these is refused: a slip of the pen would place the model otherwise than
    was meant.
    """

    model_config = ConfigDict(extra="forbid")

    distributed: bool | None = None
    strategy: str = Field(default="auto", json_schema_extra={"enum": list(STRATEGIES)})
    shards: int | None = Field(default=None, json_schema_extra={"minimum": 1})
    replicas: int | None = Field(default=None, json_schema_extra={"minimum": 1})
    streams: int | None = Field(default=None, json_schema_extra={"minimum": 1, "maximum": MAX_STREAMS})
    node_ids: _Ids = []
    context: int | None = Field(default=None, json_schema_extra={"minimum": 1, "maximum": MAX_CONTEXT})
    keep_alive: KeepAlive = None
    stream: bool = False

    def keep_alive_s(self) -> float | None:
        """Return how long the model stays, None for the default; raise ApiError."""
        return parse_keep_alive(self.keep_alive)


class UnloadBody(Named):
    """POST /api/cluster/model/unload."""
