"""Take a node off the roster: on an operator's word, and never one that is alive."""

from dataclasses import dataclass

from core.domain.errors import HeadEndUnknown, NodeAlive, NodeNotFound
from core.ports.cluster_admin import Cluster


@dataclass(frozen=True, slots=True)
class ForgetNode:
    """Takes nodes that will not come back off the roster."""

    cluster: Cluster

    async def __call__(self, node_id: str) -> None:
        """Return when the node is expected no more.

        Raises:
            NodeNotFound: neither on the roster nor drained; it is off already.
            NodeAlive: it has a lease.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        if node_id not in {node.node_id for node in (await self.cluster.status()).nodes}:
            raise NodeNotFound("no node of this name is on the roster; see `utrn cluster status`", node_id=node_id)
        if not await self.cluster.forget(node_id):
            raise NodeAlive("only a node that is gone is taken off the roster; stop it first", node_id=node_id)


@dataclass(frozen=True, slots=True)
class ForgetHeadEnd:
    """Takes the names of head ends that will not come back away."""

    cluster: Cluster

    async def __call__(self, name: str) -> None:
        """Return when there is no head end of this name: nothing is registered under it, or sold to be sent by it.

        Raises:
            HeadEndUnknown: there is none of this name; it is gone already.
            NodeAlive: a node is configured with it.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        there = {head_end.name: head_end for head_end in (await self.cluster.status()).head_ends}
        if name not in there:
            raise HeadEndUnknown("no head end of this name: it is forgotten already, or mistyped", head_end=name)
        if there[name].configured_at:
            node_id = there[name].configured_at[0]
            raise NodeAlive("take it out of every node's configuration first", node_id=node_id)
        await self.cluster.forget_head_end(name)
