"""write_secret: a file that only its owner may read, whatever stood under its name before."""

import os
import secrets
import stat
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Write a new file, on the disk before it takes the name: nobody else reads it, and a crash leaves the old one.

    Raises:
        OSError: it cannot be written, or what has the name is a link or a device.
    """
    if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
        raise OSError("a link or a device has this name; give the name of a file")
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as writing:
            writing.write(text)
            writing.flush()
            os.fsync(writing.fileno())
        os.replace(fresh, file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
