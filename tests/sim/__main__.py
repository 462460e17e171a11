"""Replays seeds: `python -m tests.sim SEED [SEED...]`, or `python -m tests.sim FIRST-LAST`."""

import sys
import time

from tests.sim.world import simulate


def main(arguments: list[str]) -> int:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
