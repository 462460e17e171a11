"""HsmConfig: which HSM, which token, and how many workers."""

from dataclasses import dataclass
from pathlib import Path

SOFTHSM_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
)
_DESCRIPTORS = (Path("/dev/fd"), Path("/proc/self/fd"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HsmConfig:
    """HsmConfig says how this node reaches its HSM.

    Attributes:
        module: The vendor's PKCS#11 library.
        token_label: Label of the token that holds the suppliers' keys, 1 to 32 characters.
        pin_file: File with the user PIN, read by each worker that starts; or /dev/fd/N for an open descriptor, which is
            read once, by the node. Never the PIN itself.
        softhsm_conf: For SoftHSM: its configuration file. Not a secret.
        workers: Processes, 1 to 16. Each has one session and one thread; a network HSM wants more, SoftHSM one a core.
        sign_deadline_ms: Milliseconds, 10 to 60000, for one batch, waiting included.
        secrets_max: Pairwise secrets, 100 to 1000000, kept in the HSM per worker as session objects.
        probe_ms: Milliseconds, 50 to 600000, after which an idle worker is asked for a sign of life.
        restart_first_ms: Milliseconds, 10 to 60000, before a worker that failed is started again; doubled each time.
        restart_most_ms: Milliseconds, the cap of the above.
        renew_after: Signatures, 10 to 1000000000, after which a worker is replaced by a new one: vendors' libraries
            keep memory for ever (SoftHSM some 300 bytes for each secret that made room for another).
        renew_above_mib: MiB, 64 to 65536, of resident memory above which it is replaced, at most every ten minutes.
    """

    module: Path
    token_label: str
    pin_file: Path
    softhsm_conf: Path | None = None
    workers: int = 2
    sign_deadline_ms: int = 2_000
    secrets_max: int = 20_000
    probe_ms: int = 500
    restart_first_ms: int = 100
    restart_most_ms: int = 5_000
    renew_after: int = 200_000
    renew_above_mib: int = 512

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 1 <= len(self.token_label) <= 32:
            raise ValueError("token_label: must be 1 to 32 characters")
        for key, least, most in (
            ("workers", 1, 16),
            ("sign_deadline_ms", 10, 60_000),
            ("secrets_max", 100, 1_000_000),
            ("probe_ms", 50, 600_000),
            ("restart_first_ms", 10, 60_000),
            ("restart_most_ms", self.restart_first_ms, 600_000),
            ("renew_after", 10, 1_000_000_000),
            ("renew_above_mib", 64, 65_536),
        ):
            if not least <= getattr(self, key) <= most:
                raise ValueError(f"{key}: must be {least} to {most}")


def read_pin(config: HsmConfig) -> str:
    """Return the PIN; raise OSError or UnicodeDecodeError if it cannot be read."""
    return config.pin_file.read_text(encoding="ascii").strip()


def is_descriptor(path: Path) -> bool:
    """Return whether a path names an open descriptor of whoever reads it: no other process can, and it may end."""
    return path.parent in _DESCRIPTORS


def find_softhsm() -> Path:
    """Return the SoftHSM library of this machine.

    Raises:
        FileNotFoundError: says how to install it.
    """
    for path in SOFTHSM_MODULES:
        if path.exists():
            return path
    raise FileNotFoundError("libsofthsm2.so is not on this machine; run `make setup` (installs the package softhsm2)")
