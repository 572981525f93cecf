"""Proof of placement: how many nodes ran on the provider that was asked for, and what fell back."""

from collections import Counter

from pydantic import BaseModel

from bench.profile import NodeTime
from core.sessions import provider_name

COPY_OPERATORS = ("MemcpyToHost", "MemcpyFromHost")


class Placement(BaseModel, frozen=True):
    """Where the nodes of a model ran.

    Attributes:
        provider: The provider that was asked for, by ONNX Runtime's name.
        nodes: Number of nodes on each provider, copies not counted.
        placed_ratio: Share of the nodes that ran where they were asked to.
        fell_back: Operators that ran elsewhere, with how many nodes of each.
        copies: Copies between host and device in a run.
    """

    provider: str
    nodes: dict[str, int]
    placed_ratio: float
    fell_back: dict[str, int]
    copies: int


def placement(nodes: tuple[NodeTime, ...], provider: str) -> Placement:
    """Count where nodes ran.

    Args:
        nodes: As `bench.profile.profile` returns them.
        provider: The provider that was asked for.
    """
    name = provider_name(provider)
    computing = [node for node in nodes if node.operator not in COPY_OPERATORS]
    elsewhere = Counter(node.operator for node in computing if node.provider != name)
    return Placement(
        provider=name,
        nodes=dict(Counter(node.provider for node in computing)),
        placed_ratio=1 - sum(elsewhere.values()) / len(computing) if computing else 1.0,
        fell_back=dict(elsewhere),
        copies=len(nodes) - len(computing),
    )
