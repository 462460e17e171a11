"""Takes keys out of a token, as another program does: the sessions of a running node stay open."""

import os
import subprocess
import sys

from hsm.config import HsmConfig

_PROGRAM = """
import sys, pkcs11
lib, label, pin, key = sys.argv[1:]
token = pkcs11.lib(lib).get_token(token_label=label)
with token.open(user_pin=open(pin).read().strip(), rw=True) as session:
    for one in list(session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(key)})):
        one.destroy()
"""


def destroy_key(config: HsmConfig, key_id: str) -> None:
    """Destroy everything that a token has under a key id."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(config.softhsm_conf)}
    arguments = [str(config.module), config.token_label, str(config.pin_file), key_id]
    subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=True, env=environment)
