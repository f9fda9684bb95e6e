"""Check what clients ask of the cluster against what it is: nodes, shards, strategies, timeouts."""

from __future__ import annotations

from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.model import Model
from ollampi.api.wires.cluster_bodies import (
    MAX_CONTEXT,
    MAX_STREAMS,
    MAX_TIMEOUT_S,
    NODE_ROLES,
    JoinBody,
    LeaveBody,
    LoadBody,
)
from ollampi.mpiruntime.cluster import STRATEGIES, Cluster, Node, Wish

_FAILED = "Failed to load model"


def wish_of(body: LoadBody, model: Model, cluster: Cluster) -> Wish:
    """Return how a model shall be placed; raise ApiError (400, 404).

    Nodes with distributed=true share one replica, with replicas as many as these; each of them has one of its own else.
    Without nodes, distributed means all of them, as far as the model has heads, unless shards or a strategy say
    otherwise, and distributed=false one.
    """
    if body.strategy not in STRATEGIES:
        raise bad_request(f"strategy {shown(body.strategy, 40)!r} is unknown; it must be {', '.join(STRATEGIES)}")
    if body.context is not None and not 1 <= body.context <= MAX_CONTEXT:
        raise bad_request(f"context is {shown(str(body.context), 40)}; it must be from 1 to {MAX_CONTEXT} tokens")
    if body.streams is not None and not 1 <= body.streams <= MAX_STREAMS:
        raise bad_request(f"streams is {shown(str(body.streams), 40)}; it must be from 1 to {MAX_STREAMS} answers")
    nodes = [find_node(name, cluster) for name in body.node_ids]
    if len({node.rank for node in nodes}) < len(nodes):
        raise bad_request(f"{_FAILED}: node_ids names a node twice; name each once")
    if idle := [node.id for node in nodes if node.role == "coordinator"]:
        raise bad_request(f"{_FAILED}: {idle[0]} is the coordinator, which holds no weights; leave it out of node_ids")
    able = [node for node in cluster.nodes if node.role != "coordinator" and node.status != "left"]
    _check_replicas(body.replicas, body.shards or 1, len(nodes or able), bool(nodes))
    ranks = _groups([node.rank for node in nodes], body) if nodes else None
    shards = _shards(body, model, len(nodes or able) // (body.replicas or 1), bool(nodes))
    if ranks is not None and shards is not None and shards != len(ranks[0]):
        raise bad_request(
            f"{_FAILED}: {shards} shards do not fill the {len(ranks[0])} nodes of node_ids; leave one out"
        )
    return Wish(body.context, body.keep_alive_s(), body.strategy, shards, body.replicas, ranks, body.streams)


def _check_replicas(replicas: int | None, shards: int, num_nodes: int, named: bool) -> None:
    """Raise ApiError (400) for replicas of so many shards that num_nodes, which are named or not, cannot hold."""
    if replicas is None:
        return
    if replicas < 1:
        raise bad_request(f"{_FAILED}: replicas is {replicas}; it must be 1 or more")
    there = f"node_ids names {num_nodes}" if named else f"there are {num_nodes}"
    if replicas > num_nodes:
        raise bad_request(
            f"{_FAILED}: {replicas} replicas want as many nodes or more, and {there}; use at most"
            f" {num_nodes} replica{_s(num_nodes)}"
        )
    if replicas > 1 and replicas * shards > num_nodes:
        raise bad_request(
            f"{_FAILED}: {replicas} replicas of {shards} shards want {replicas * shards} nodes, and {there}; use fewer"
            " of one"
        )
    if named and (over := num_nodes % replicas):
        raise bad_request(
            f"{_FAILED}: {num_nodes} nodes of node_ids cannot be shared out evenly among {replicas} replicas; name"
            f" {num_nodes - over} or {num_nodes - over + replicas}"
        )


def _groups(ranks: list[int], body: LoadBody) -> list[list[int]]:
    """Return the ranks of each replica: in turn as many as each gets, all for one, or one for each."""
    whole = body.distributed or body.shards not in (None, 1)
    size = len(ranks) // body.replicas if body.replicas else len(ranks) if whole else 1
    return [ranks[first : first + size] for first in range(0, len(ranks), size)]


def _shards(body: LoadBody, model: Model, num_nodes: int, named: bool) -> int | None:
    """Return how many shards are asked for of each replica, which may have num_nodes; raise ApiError (400).

    None: the strategy decides.
    """
    heads = model.text_config.get("num_attention_heads")
    most = min(num_nodes, heads) if type(heads) is int and heads > 0 else num_nodes
    if body.shards is None:
        if body.distributed is False and not named:
            return 1
        return most if body.distributed and not named and body.strategy == "auto" else None
    if body.shards < 1:
        raise bad_request(f"{_FAILED}: shards is {shown(str(body.shards), 40)}; it must be 1 or more")
    if body.shards > most:
        what = f"{heads} attention heads" if most == heads else f"a model over {num_nodes} node{_s(num_nodes)}"
        asked = shown(str(body.shards), 40)
        raise bad_request(f"{_FAILED}: cannot cut {what} into {asked} shards; use at most {most} shard{_s(most)}")
    if body.distributed is False and body.shards > 1:
        raise bad_request(f"{_FAILED}: {body.shards} shards are distributed; leave out distributed=false, or shards")
    return body.shards


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def find_node(name: str, cluster: Cluster) -> Node:
    """Return the node with this id or name; raise ApiError (404) where there is none."""
    for node in cluster.nodes:
        if name in (node.id, node.name):
            return node
    some = ", ".join(node.id for node in cluster.nodes[:16])
    more = f" and {len(cluster.nodes) - 16} more" if len(cluster.nodes) > 16 else ""
    raise ApiError(404, f"node {shown(name, 100)!r} is not in this cluster, which has: {some}{more}")


def check_join(body: JoinBody, cluster: Cluster) -> Node | None:
    """Return the rank that shall come back after it left, None where the job shall join another one.

    Raise ApiError (400) where a body cannot be right, (409) where a rank that has not left shall join alone.
    """
    if not body.coordinator_host:
        raise bad_request("coordinator_host is required: the address of the gateway")
    if not 1 <= body.coordinator_port <= 65535:
        raise bad_request(f"coordinator_port is {body.coordinator_port}; it must be between 1 and 65535")
    if body.node_role not in NODE_ROLES:
        raise bad_request(f"node_role {shown(body.node_role, 40)!r} is unknown; it must be {', '.join(NODE_ROLES)}")
    named = next((node for node in cluster.nodes if body.node_name in (node.id, node.name)), None)
    if cluster.world == 1 or named is None:
        return None
    if named.status != "left":
        raise ApiError(
            409,
            f"Failed to register with coordinator: {shown(body.node_name, 100)} is a rank of this job of"
            f" {cluster.world} and has not left; only the whole job can join elsewhere; leave out node_name",
        )
    return named


def check_leave(body: LeaveBody, cluster: Cluster) -> Node | None:
    """Return the rank that shall leave, None where the whole job shall; raise ApiError (400, 404).

    A body with none of its fields was meant for another route: it ends no job.
    """
    if not body.model_fields_set:
        raise bad_request("leave ends the whole job: say how with graceful, timeout or both")
    if not 0 <= body.timeout <= MAX_TIMEOUT_S:
        raise bad_request(f"timeout is {body.timeout:g}; it must be between 0 and {MAX_TIMEOUT_S:g} seconds")
    if "node_id" not in body.model_fields_set:
        return None
    if not body.node_id:  # a variable that is not set must not end the job
        raise bad_request("node_id is empty; name a node, or leave it out to have the whole job leave")
    node = find_node(body.node_id, cluster)
    return None if cluster.world == 1 else node
