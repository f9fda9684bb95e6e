"""Hold how models are spread over the ranks; a part of the `cluster` settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ClusterSettings:
    """Rank 0 and replicas.

    node_role: of rank 0: mixed computes too, coordinator holds no weights, auto is mixed; load_balancing: which replica
    of a model a request goes to, one of BALANCING.
    """

    node_role: str = "auto"
    load_balancing: str = "least_connections"
