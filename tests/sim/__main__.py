"""Replays seeds: `python -m tests.sim SEED [SEED...]`, or FIRST-LAST. Many: `--from FIRST --count N [--jobs J]`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.sim.loop import Stuck
from tests.sim.world import SimResult, simulate

_TOLD_EVERY_S = 5.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("seeds", nargs="*", metavar="SEED or FIRST-LAST")
    parser.add_argument("--from", type=int, dest="first", metavar="FIRST")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args(arguments)
    if chosen.first is not None:
        return run_many(chosen.first, chosen.count, jobs=chosen.jobs)
    return replay(chosen.seeds)


def replay(arguments: list[str]) -> int:
    """Run seeds one after the other, and tell of each; of a single one, also what broke and when."""
    failed = 0
    for argument in arguments:
        first, _, last = argument.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            started = time.perf_counter()
            result = simulate(seed)
            failed += bool(result.findings)
            print(
                f"seed {seed}: {result.vends} vends, {len(result.faults)} faults, {result.virtual_s:.1f} virtual s, "
                f"{time.perf_counter() - started:.2f} s, digest {result.digest[:16]}, "
                f"{'; '.join(map(str, result.findings[:5])) or 'held'}"
            )
            if len(arguments) == 1 and not last:
                print("\n".join(result.faults))
    return 1 if failed else 0


def run_many(first: int, count: int, *, jobs: int) -> int:
    """Run `count` seeds from `first` on, in several processes; print what breaks at once, and progress."""
    started = told = time.monotonic()
    done = vends = broken = 0
    with ProcessPoolExecutor(jobs, initializer=logging.disable, initargs=(logging.CRITICAL,)) as workers:
        for result in workers.map(_one, range(first, first + count), chunksize=4):
            done, vends = done + 1, vends + result.vends
            if result.findings:
                broken += 1
                print(f"seed {result.seed}: {'; '.join(map(str, result.findings[:5]))}", flush=True)
            now = time.monotonic()
            if now - told >= _TOLD_EVERY_S:
                told = now
                print(_progress(done, count, vends, broken, now - started), flush=True)
    print(_progress(done, count, vends, broken, time.monotonic() - started))
    return 1 if broken else 0


def _one(seed: int) -> SimResult:
    try:
        return simulate(seed)
    except (Exception, BaseExceptionGroup, Stuck) as error:
        raise RuntimeError(f"seed {seed} ended in {_named(error)}") from error


def _named(error: BaseException) -> str:
    inner: Iterable[BaseException] = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return f"{type(error).__name__}({', '.join(map(_named, inner))})" if inner else repr(error)


def _progress(done: int, count: int, vends: int, broken: int, passed_s: float) -> str:
    per_s = done / max(passed_s, 0.001)
    left_s = (count - done) / max(per_s, 0.001)
    return (
        f"{done} of {count} seeds, {broken} broken, {vends} vends, {per_s:.1f} seeds/s, "
        f"{passed_s:.0f} s passed, about {left_s:.0f} s left"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
