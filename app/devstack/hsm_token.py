"""Makes a development token with one key per originator: `python -m app.devstack.hsm_token FOLDER ORIGINATOR...`."""

import json
import sys
from pathlib import Path

from core.gateways.system_clock import SystemClock
from hsm.ceremony import as_json, generate_key, init_token, new_pin_file
from hsm.config import HsmConfig, find_softhsm


def main(folder: Path, originators: list[str]) -> None:
    """Make the token in `folder`, whose softhsm2.conf is there, and write its public halves to keys.json."""
    config = HsmConfig(
        module=find_softhsm(),
        token_label="utrn",  # noqa: S106  # a label
        pin_file=folder / "pin",
        softhsm_conf=folder / "softhsm2.conf",
    )
    now, audit = SystemClock().now(), folder / "audit.jsonl"
    new_pin_file(config.pin_file)
    new_pin_file(folder / "so-pin")
    init_token(config, folder / "so-pin", now=now, audit=audit)
    entries = {
        originator: as_json(generate_key(config, key_id=originator, label=originator, now=now, audit=audit))
        for originator in originators
    }
    (folder / "keys.json").write_text(json.dumps(entries), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
