"""Store: SQLite that commits what has queued up, and lets nobody answer before that. Survives kill -9."""

import asyncio
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

Statement = tuple[str, tuple[Any, ...]]


class Store:
    """One file, its owner's alone. Reads see what is committed; writes queue up and are committed together."""

    def __init__(self, path: Path, schema: str) -> None:
        # SQLite gives its other files the mode of the first.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + schema)
        self._queue: list[Statement] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of `query`. Only before the store runs, or on tables that nobody is writing now."""
        return self._connection.execute(query, values).fetchall()

    def write_now(self, statements: Iterable[Statement]) -> None:
        """Commit `statements` at once. Only before the store runs."""
        self._commit(list(statements))

    def queue(self, query: str, *values: Any) -> None:  # whatever SQLite takes
        """Have a statement committed with the next group."""
        self._queue.append((query, values))

    async def flushed(self) -> None:
        """Return when all that was queued before this call is on disk."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._work.set()
        await asyncio.shield(done)

    async def run(self) -> NoReturn:
        """Commit groups for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            statements, self._queue = self._queue, []
            waiting, self._waiting = self._waiting, []
            if statements:
                await asyncio.to_thread(self._commit, statements)
            for done in waiting:
                done.set_result(None)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _commit(self, statements: list[Statement]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for query, values in statements:
            self._connection.execute(query, values)
        self._connection.execute("COMMIT")
