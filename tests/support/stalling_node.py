"""A node whose event loop stands still when told to: `python -m tests.support.stalling_node SECONDS --config ...`.

SIGUSR1 stalls it once for SECONDS. Nothing else of it differs.
"""

import argparse
import signal
import time
from pathlib import Path

from app.node.assembly import build
from app.node.config import load_config
from app.node.logging import set_up_logs
from app.node.run import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    set_up_logs("INFO")
    # Python runs this in the loop's own thread: the loop stands still, as in a bug or a long computation.
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(arguments.seconds))
    raise SystemExit(serve(lambda: build(config)))


if __name__ == "__main__":
    main()
