"""Offer the routes of the cluster: /api/cluster, the same under /api/v1, and /api/v1/proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn

from flask import Response, request
from pydantic import BaseModel

from ollampi.api.access import Permission
from ollampi.api.disconnect import DisconnectWatcher
from ollampi.api.engine_client import Engine, EngineError, Loading
from ollampi.api.errors import RETRY_AFTER_S, ApiError, bad_request, public, shown
from ollampi.api.routes import NDJSON as NDJSON_TYPE
from ollampi.api.routes import Route
from ollampi.api.store.catalog import Store
from ollampi.api.stream import NDJSON, growing_answer, json_answer, line_of
from ollampi.api.wires import cluster_answers as answers
from ollampi.api.wires.cluster_bodies import JoinBody, LeaveBody, LoadBody, UnloadBody
from ollampi.api.wires.cluster_entries import (
    Json,
    alive_answer,
    health_answer,
    info_answer,
    list_entry,
    loaded_answer,
    node_entry,
    proxy_instances,
    proxy_metrics,
    proxy_status,
    status_answer,
)
from ollampi.api.wires.cluster_wishes import check_join, check_leave, wish_of
from ollampi.mpiruntime.cluster import Cluster
from ollampi.mpiruntime.errors import ModelError

View = Callable[[], Response]
NO_NODES = "No nodes discovered"
_HINTS = {
    "memory": (
        "Out of memory",
        "use the memory-optimized strategy, more shards, fewer requests at a time (engine.max_running), or a shorter"
        " context",
    ),
    "model": ("Failed to load model", "check that every node sees the model's files, or use fewer shards"),
    "request": ("Failed to load model", ""),
}
_AWAY = {503: "there is no engine, or it is leaving"}
_LOADS = {404: "", 409: "it is being loaded", 500: "out of memory, or the model cannot be used"}
_DAMAGED = {500: "the model cannot be used"}
_UNLOADS = _DAMAGED | {409: "it is being loaded, or at work"}
_JOINS = _AWAY | {409: "the rank has not left", 501: "there are no gateways yet"}
_LEAVES = _AWAY | {404: "there is no such node", 409: "no rank can take over, or the job or the rank leaves already"}


class ClusterRoutes:
    """The routes; the engine alone knows the job."""

    def __init__(self, engine: Engine, store: Store, watcher: DisconnectWatcher) -> None:
        self._engine = engine
        self._store = store
        self._watcher = watcher

    def shows(self, entry: Callable[[Cluster], Json]) -> View:
        """Return a view that answers what `entry` makes of the job; raise ApiError where there is none."""
        return lambda: json_answer(entry(self._cluster()))

    def proxy(self, entry: Callable[[Cluster], Json]) -> View:
        """Return the same for the routes of the proxy, whose errors have a message beside them."""

        def view() -> Response:
            """Answer, also where there is no engine."""
            try:
                return json_answer(entry(self._engine.cluster()))
            except EngineError as e:
                response = json_answer({"error": NO_NODES, "message": public(str(e))}, 503)
                response.headers["Retry-After"] = str(RETRY_AFTER_S)
                return response

        return view

    def info(self) -> Response:
        """Answer GET /api/cluster/model/info; raise ApiError."""
        name = request.args.get("model", "")
        if not name:
            raise bad_request("model is required: add ?model=NAME")
        cluster, name = self._cluster(), self._store.find(name).ref.name
        model = cluster.model(name)
        if model is None:
            raise ApiError(404, f"model '{name}' is not loaded; /api/cluster/model/list names those that are")
        return json_answer(info_answer(model, cluster))

    def join(self, body: JoinBody) -> Response:
        """Answer POST /api/cluster/join of a rank that left; raise ApiError, EngineError.

        A job joins others as a whole, once there are gateways.
        """
        cluster = self._cluster()
        if (node := check_join(body, cluster)) is not None:
            self._engine.take_in(node.rank)
            cluster_id = f"{cluster.nodes[0].name}:{cluster.api_port}"
            return json_answer({"status": "joined", "cluster_id": cluster_id, "node_id": node.id})
        gateway = f"{shown(body.coordinator_host, 100)}:{body.coordinator_port}"
        raise ApiError(
            501,
            f"Failed to register with coordinator: {gateway} was not asked, since this version has no gateways; start"
            " one job over all hosts instead, with `ollampi launch --hostfile`",
        )

    def leave(self, body: LeaveBody) -> Response:
        """Answer POST /api/cluster/leave when the job is about to end, or a rank has left it; raise ApiError,
        EngineError."""
        moved: list[str] = []
        if (node := check_leave(body, self._cluster())) is None:
            unfinished = self._engine.leave(body.graceful, body.timeout)
        else:
            gone = self._engine.take_out(node.rank, body.graceful, body.timeout)
            unfinished, moved = gone.unfinished, gone.moved
        parts = ["Node successfully left the cluster", *moved, *([_ended(unfinished)] if unfinished else [])]
        return json_answer({"status": "left", "message": "; ".join(parts)})

    def unload(self, body: UnloadBody) -> Response:
        """Answer POST /api/cluster/model/unload; raise ApiError, EngineError."""
        ref = self._store.find(_called(body.called)).ref
        self._refuse_loading(ref.name, self._cluster())
        self._engine.unload_idle(ref)
        return json_answer({"status": "unloaded", "model": body.called})

    def load(self, body: LoadBody) -> Response:
        """Answer POST /api/cluster/model/load; raise ApiError."""
        try:
            ref = (model := self._store.find(_called(body.called))).ref
        except ModelError as e:
            _fail(EngineError("model", str(e)))
        cluster = self._cluster()
        wish = wish_of(body, model, cluster)
        self._refuse_loading(ref.name, cluster)
        try:
            stream = self._engine.place(ref, wish)
        except EngineError as e:
            _fail(e)

        def steps() -> Iterator[Json]:
            """Yield how far the load is, at last where the model lies; raise ApiError."""
            with self._watcher.following(request.environ.get("gunicorn.socket"), stream):
                try:
                    for event in stream:
                        if isinstance(event, Loading):
                            counts = {"completed": event.completed, "total": event.total}
                            yield {"status": "loading", "model": body.called, **counts}
                        else:
                            yield loaded_answer(body.called, event.placement, cluster)
                except EngineError as e:
                    _fail(e)

        found = steps()
        if body.stream:
            return growing_answer((line_of(step) for step in found), NDJSON, stream.close)
        return json_answer(list(found)[-1])

    def _cluster(self) -> Cluster:
        """Return what the job is like; raise ApiError (503) where nobody knows."""
        try:
            return self._engine.cluster()
        except EngineError as e:
            raise ApiError(503, f"{NO_NODES}: {public(str(e))}") from e

    def _refuse_loading(self, name: str, cluster: Cluster) -> None:
        """Raise ApiError (409) where a model is being loaded."""
        model = cluster.model(name)
        if model is not None and model.state == "loading":
            raise ApiError(409, f"model '{name}' is being loaded; wait until /api/cluster/model/list shows it as ready")


def _called(name: str) -> str:
    """Return the name of a model; raise ApiError (400) where there is none."""
    if not name:
        raise bad_request("model is required")
    return name


def _ended(unfinished: int) -> str:
    return f"{unfinished} request{' was' if unfinished == 1 else 's were'} not finished"


def _fail(error: EngineError) -> NoReturn:
    """Raise a failed load as the document of the cluster mode names it, with its cause and what helps."""
    if error.code not in _HINTS:
        raise error
    title, hint = _HINTS[error.code]
    text = f"{title}: {public(str(error))}"
    raise ApiError(400 if error.code == "request" else 500, f"{text}; {hint}" if hint else text) from error


def cluster_routes(engine: Engine, store: Store, watcher: DisconnectWatcher) -> list[Route]:
    """Return the routes."""
    views = ClusterRoutes(engine, store, watcher)
    plain = _job_routes(views) + _model_routes(views)
    proxy = "/api/v1/proxy"
    return [
        *plain,
        *(replace(route, path=route.path.replace("/api/", "/api/v1/", 1)) for route in plain),
        _shown("/api/v1/health", "how the job does", views.shows(alive_answer), answers.Alive),
        _shown(f"{proxy}/status", "how many replicas are well", views.proxy(proxy_status), answers.ProxyStatus),
        _shown(f"{proxy}/instances", "the replicas of all models", views.proxy(proxy_instances), answers.Instances),
        _shown(f"{proxy}/metrics", "what the replicas had to do", views.proxy(proxy_metrics), answers.ProxyMetrics),
    ]


def _shown(path: str, summary: str, view: View, answer: type[BaseModel]) -> Route:
    """Return a route that shows what the engine tells of the job."""
    return Route("GET", path, Permission.READ, summary, view, None, answer, "", _AWAY)


def _job_routes(views: ClusterRoutes) -> list[Route]:
    """Return the routes about the job and its nodes."""
    manage, at = Permission.MANAGE, "/api/cluster"
    return [
        _shown(f"{at}/status", "what the job is like", views.shows(status_answer), answers.Status),
        _shown(f"{at}/nodes", "the ranks of the job", views.shows(_nodes), answers.Nodes),
        _shown(f"{at}/health", "how ranks and network do", views.shows(health_answer), answers.Health),
        Route(
            "POST", f"{at}/join", manage, "let a node come back", views.join, JoinBody, answers.JoinedAnswer, "", _JOINS
        ),
        Route(
            "POST",
            f"{at}/leave",
            manage,
            "end the job, or take a node out",
            views.leave,
            LeaveBody,
            answers.LeftAnswer,
            "",
            _LEAVES,
        ),
    ]


def _model_routes(views: ClusterRoutes) -> list[Route]:
    """Return the routes about models."""
    use, at = Permission.USE, "/api/cluster/model"
    loads, unloads = (f"{at}/load", use, "place a model"), (f"{at}/unload", use, "unload a model")
    info = _shown(f"{at}/info", "where a model lies, and why", views.info, answers.PlacementInfo)
    return [
        _shown(f"{at}/list", "where the loaded models lie", views.shows(_models), answers.Placements),
        replace(info, query=("model",), reasons=_AWAY | _DAMAGED),
        Route("POST", *loads, views.load, LoadBody, answers.LoadedAnswer, NDJSON_TYPE, _LOADS),
        Route("POST", *unloads, views.unload, UnloadBody, answers.UnloadedAnswer, "", _UNLOADS),
    ]


def _nodes(cluster: Cluster) -> Json:
    return {"nodes": [node_entry(node, cluster) for node in cluster.nodes]}


def _models(cluster: Cluster) -> Json:
    return {"models": [list_entry(model, cluster) for model in cluster.models]}
