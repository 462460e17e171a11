"""Reads which meters and PANs the sandbox's fleet was made with."""

import json
from pathlib import Path


def pans_of(folder: Path) -> list[str]:
    """Return every PAN of the fleet in `folder`, in order of its meters."""
    return list(meter_by_pan(folder))


def meter_by_pan(folder: Path) -> dict[str, str]:
    """Return the meter that each PAN stands for."""
    lines = (folder / "meters.jsonl").read_text(encoding="utf-8").splitlines()
    records = (json.loads(line) for line in lines)
    return {record["pan"]: record["meter_id"] for record in records if record["type"] == "pan"}
