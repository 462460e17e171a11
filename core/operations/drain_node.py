"""Drain a node, or end its drain: on an operator's word, and never the last one that serves."""

from dataclasses import dataclass

from core.domain.errors import LastNode, NodeNotFound
from core.domain.participant import Principal
from core.ports.clock import Clock
from core.ports.cluster_admin import Cluster, Drain


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Orders drains."""

    cluster: Cluster
    clock: Clock

    async def __call__(self, principal: Principal, node_id: str, *, drained: bool) -> Drain | None:
        """Return the drain that is in force now; None if there is none.

        Raises:
            NodeNotFound: neither alive nor drained nor on the roster.
            LastNode: no other node would be left to serve.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        nodes = {node.node_id: node for node in (await self.cluster.status()).nodes}
        if node_id not in nodes:
            raise NodeNotFound("no node of this name is on the roster; see `utrn cluster status`", node_id=node_id)
        if not drained:
            await self.cluster.undrain(node_id)
            return None
        others = (node for node in nodes.values() if node.node_id != node_id)
        if not any(other.serving and not other.drained for other in others):
            raise LastNode("no other node is left to serve; bring one into service first", node_id=node_id)
        return await self.cluster.drain(node_id, by=principal.participant_id, at=self.clock.wall())
