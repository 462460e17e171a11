"""Runs seeds of the simulation until one has findings: `python -m tests.mutants.seeds 40`. Exit 1 says that one had."""

import logging
import sys
import traceback

from tests.sim.world import simulate


def main(most: int) -> int:
    logging.disable(logging.CRITICAL)
    for seed in range(1, most + 1):
        try:
            findings = simulate(seed).findings
        except BaseException as error:  # noqa: BLE001  # a mutant may break in any way, and each is told
            print(f"seed {seed}: {type(error).__name__}: {_innermost(error)}")
            return 1
        if findings:
            print(f"seed {seed}: {findings[0]}")
            return 1
    print(f"{most} seeds held")
    return 0


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return traceback.format_exception_only(error)[-1].strip()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
