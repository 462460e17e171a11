"""Runs mutants: each in a copy of the tree, never in the tree itself, and each for a bounded time."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
# Several times what the slowest takes alone, so that a busy machine kills nothing.
_LONGEST_S = 240.0
_SAID_MAX = 110


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. `said` is what noticed it, or what was asked in vain."""

    mutant: Mutant
    killed: bool
    said: str

    def __str__(self) -> str:
        """Return it as one line."""
        state = "killed  " if self.killed else "SURVIVED"
        return f"{state} {self.mutant.name}: {self.said[:_SAID_MAX]}"


@dataclass(slots=True)
class Tree:
    """A copy of the project in which one fault at a time is put."""

    root: Path
    _writes: int = 0

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; raise TimeoutExpired if it takes too long."""
        places = (self.root, self.root / "proto" / "gen", self.root / "client")
        environment = {**os.environ, "PYTHONPATH": ":".join(map(str, places)), "PYTHONHASHSEED": "0"}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )

    def write(self, file: str, text: str) -> None:
        """Write a file, at a time of its own: compiled code is told from it by that time."""
        path = self.root / file
        path.write_text(text, encoding="utf-8")
        self._writes += 1
        os.utime(path, (1_000_000_000 + 10 * self._writes,) * 2)


@contextmanager
def _copy() -> Iterator[Tree]:
    """Copy what is, or could be, committed: a change that is not yet, too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="utrn-mutant-") as scratch:
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                target = Path(scratch) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        yield Tree(Path(scratch))


def command_of(killer: str | int) -> list[str]:
    """Return what is run to notice a mutant."""
    if isinstance(killer, int):
        return ["-m", "tests.mutants.seeds", str(killer)]
    return ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", killer]


def run_one(tree: Tree, mutant: Mutant) -> Verdict:
    """Put one fault into the copy, see whether it is noticed, and take it out again."""
    before = mutant.text_in(tree.root)
    tree.write(mutant.file, mutant.apply(before))
    try:
        done = tree.run(command_of(mutant.killer))
    except subprocess.TimeoutExpired:
        return Verdict(mutant, killed=False, said=f"no verdict within {_LONGEST_S:.0f} s: {mutant.killer}")
    finally:
        tree.write(mutant.file, before)
    if done.returncode == 1:
        return Verdict(mutant, killed=True, said=_noticed(mutant.killer, done.stdout))
    said = (done.stdout + done.stderr).strip().splitlines()[-1:]
    where = f"{mutant.killer} seeds held" if isinstance(mutant.killer, int) else f"{mutant.killer} held"
    # Neither green nor red: no such test, or the mutant is no Python.
    return Verdict(mutant, killed=False, said=where if done.returncode == 0 else f"exit {done.returncode}: {said}")


def _noticed(killer: str | int, output: str) -> str:
    lines = output.strip().splitlines()
    if isinstance(killer, int):
        return lines[-1] if lines else ""
    failed = [line for line in lines if line.startswith("FAILED")]
    return failed[0].removeprefix("FAILED ") if failed else killer


def control(mutants: Iterable[Mutant]) -> list[str]:
    """Return what is red without any fault: a killer that always kills proves nothing."""
    chosen = list(mutants)
    tests = sorted({mutant.killer for mutant in chosen if isinstance(mutant.killer, str)})
    most = max((mutant.killer for mutant in chosen if isinstance(mutant.killer, int)), default=0)
    broken = []
    with _copy() as tree:
        for command in (
            *([["-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", *tests]] if tests else []),
            *([command_of(most)] if most else []),
        ):
            done = tree.run(command)
            if done.returncode:
                broken += [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "seed"))]
                broken = broken or [done.stderr[-500:]]
    return broken


def run_all(mutants: Sequence[Mutant], *, jobs: int, say: Callable[[str], None]) -> list[Verdict]:
    """Return what became of each, in order; `say` is told as they end."""
    trees: SimpleQueue[Tree] = SimpleQueue()

    def one(mutant: Mutant) -> Verdict:
        tree = trees.get()
        try:
            verdict = run_one(tree, mutant)
        finally:
            trees.put(tree)
        say(str(verdict))
        return verdict

    with ExitStack() as copies:
        for _ in range(jobs):
            trees.put(copies.enter_context(_copy()))
        with ThreadPoolExecutor(jobs) as workers:
            return list(workers.map(one, mutants))
