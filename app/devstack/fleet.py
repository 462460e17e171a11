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
    pans = (record["assign_pan"] for record in records if "assign_pan" in record)
    return {pan["pan"]: pan["meter_id"] for pan in pans}
