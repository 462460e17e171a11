"""`python -m tests.mutants [--quick] [--jobs N] [NAME...]`: every fault must be noticed; docs/testing.md."""

import argparse
import os
import sys
import time

from tests.mutants.catalogue import MUTANTS
from tests.mutants.run import ROOT, Verdict, control, run_all


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--quick", action="store_true", help="only the slice that every run of the tests makes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-control", action="store_true", help="leave out the run without a fault")
    chosen = parser.parse_args(arguments)
    mutants = [
        mutant
        for mutant in MUTANTS
        if (not chosen.quick or mutant.quick) and (not chosen.names or mutant.name in chosen.names)
    ]
    if not mutants:
        parser.error("no such mutant")
    started = time.perf_counter()
    broken = [] if chosen.no_control else control(mutants)
    if broken:
        print("red without any fault, so nothing can be said:", *broken, sep="\n  ")
        return 2
    verdicts = run_all(mutants, jobs=chosen.jobs, say=lambda line: print(line, flush=True))
    survivors = [verdict for verdict in verdicts if not verdict.killed]
    for survivor in survivors:
        print(_where_to_look(survivor))
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"killed {len(verdicts) - len(survivors)} of {len(verdicts)}")
    return 1 if survivors else 0


def _where_to_look(verdict: Verdict) -> str:
    mutant = verdict.mutant
    text = mutant.text_in(ROOT)
    line = text[: text.index(mutant.old)].count("\n") + 1
    return (
        f"\n{mutant.name}: {mutant.file}:{line}\n  {mutant.why}\n  not noticed by: {mutant.killer}\n"
        f"- {mutant.old.strip()}\n+ {mutant.new.strip()}\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
