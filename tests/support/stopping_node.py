"""A node that stops itself between the last look at its right to send and the wire, with many codes in its hand.

`python -m tests.support.stopping_node NODE COUNT MARKER --config ...`: the node of that name holds its first COUNT
sends back until it has all of them, writes the meters of these into MARKER, and stops in its tracks (SIGSTOP). When it
is told to go on it sends them. No check of the service's own lies behind that point: what happens then is the head
end's word.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.node.assembly import build
from app.node.config import load_config
from app.node.logging import set_up_logs
from app.node.run import serve
from core.assembly.ports import Ports
from core.ports.head_end import AddCredit, HeadEnd, HeadEndEvent


class StoppingHeadEnd:
    """A HeadEnd before whose wire the process stops, once."""

    def __init__(self, inner: HeadEnd, count: int, marker: Path) -> None:
        self._inner = inner
        self._count = count
        self._marker = marker
        self._held: list[str] = []
        self._sending: list[asyncio.Task[None]] = []
        self._go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def available(self) -> bool:
        return self._inner.available

    async def send(self, message: AddCredit) -> None:
        if self._go.is_set():
            return await self._inner.send(message)
        # What is held counts as handed to the network: that its delivery is broken off does not call it back.
        self._held.append(message.meter_id)
        sending = asyncio.get_running_loop().create_task(self._send_later(message))
        self._sending.append(sending)
        if len(self._sending) == self._count:
            whole = self._marker.with_suffix(".part")
            whole.write_text("\n".join(self._held))
            whole.rename(self._marker)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._go.set()
        return await asyncio.shield(sending)

    async def _send_later(self, message: AddCredit) -> None:
        await self._go.wait()
        await self._inner.send(message)

    def events(self) -> AsyncIterator[HeadEndEvent]:
        return self._inner.events()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("node")
    parser.add_argument("count", type=int)
    parser.add_argument("marker", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    set_up_logs("INFO")

    def between(ports: Ports) -> Ports:
        if config.node.node_id != arguments.node:
            return ports
        head_ends = {
            name: StoppingHeadEnd(one, arguments.count, arguments.marker) for name, one in ports.head_ends.items()
        }
        return replace(ports, head_ends=head_ends)

    raise SystemExit(serve(lambda: build(config, between=between)))


if __name__ == "__main__":
    main()
