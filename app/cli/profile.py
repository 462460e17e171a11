"""The profile: whom commands ask and as whom, kept in a file so that it need not be typed.

`$XDG_CONFIG_HOME/utrn/config.toml`, else `~/.config/utrn/config.toml`, has one table for each profile, with any of
target, cert, key, ca and server_name. The command line goes before the environment (UTRN_TARGET, UTRN_CERT, ...), and
the environment before the profile. Relative paths are relative to the file's folder.
"""

import os
import tomllib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

from app.cli.options import CONNECTION
from app.terminal.invocation import PROFILE
from app.terminal.output import EXIT_USAGE, fail

DEFAULT: Final = "default"
_PATHS = ("cert", "key", "ca")


def profile_file() -> Path:
    """Return where the profiles are kept."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(config) if Path(config).is_absolute() else Path.home() / ".config") / "utrn" / "config.toml"


def read_profile(name: str) -> dict[str, str]:
    """Return what a profile says; nothing if there is no file and no profile was asked for.

    Args:
        name: Of its table; "" for UTRN_PROFILE's, else the one called default.
    """
    wanted, file = name or os.environ.get("UTRN_PROFILE", ""), profile_file()
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if wanted:
            fail(f"--profile {wanted}: there is no {file}; make it, with a table [{wanted}]", code=EXIT_USAGE)
        return {}
    except (OSError, ValueError) as error:
        fail(f"{file}: {error}; mend it, or take it away", code=EXIT_USAGE)
    table = tables.get(wanted or DEFAULT, None if wanted else {})
    if not isinstance(table, dict):
        fail(f"{file}: no table [{wanted or DEFAULT}]; there are: {', '.join(tables) or 'none'}", code=EXIT_USAGE)
    wrong = [key for key, value in table.items() if key not in CONNECTION or not isinstance(value, str)]
    if wrong:
        known = ", ".join(CONNECTION)
        fail(f"{file}: {', '.join(wrong)}: texts are needed, under {known}", code=EXIT_USAGE)
    return {key: _path(value, file.parent) if key in _PATHS else value for key, value in table.items()}


def _path(text: str, folder: Path) -> str:
    return str(folder / Path(text).expanduser())


class ProfileDefaults(MutableMapping[str, Any]):
    """What a command takes for the options of a connection that are not given; read when it is asked for."""

    def __getitem__(self, key: str) -> str:
        """Return what the profile says of an option."""
        if key not in CONNECTION:
            raise KeyError(key)
        return read_profile(PROFILE.get())[key]

    def __iter__(self) -> Iterator[str]:
        """Yield what the profile says something of."""
        return iter(read_profile(PROFILE.get()))

    def __len__(self) -> int:
        """Return of how many options it says something."""
        return len(read_profile(PROFILE.get()))

    def __setitem__(self, key: str, value: str) -> None:
        """Refuse: the file decides."""
        raise TypeError("a profile is read only")

    def __delitem__(self, key: str) -> None:
        """Refuse: the file decides."""
        raise TypeError("a profile is read only")
