"""Secrets of 32 bytes, as users give them: base64, or the name of an environment variable."""

import base64
import binascii
import os

from centroidkv.settings import require

__all__ = ["KEY_BYTES", "secret_bytes"]

KEY_BYTES = 32


def secret_bytes(given: object, name: str) -> bytes | None:
    """Return the bytes of a secret, None for none; `name` says which setting it is.

    Raises:
        ConfigError: There is no such variable, or it does not hold 32 bytes in base64.
    """
    if given is None:
        return None
    text = str(given)
    if text.startswith("env:"):
        variable = text.removeprefix("env:")
        text = os.environ.get(variable, "")
        require(text, f"the environment variable {variable}, named by {name}, is not set")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    require(
        len(raw) == KEY_BYTES,
        f"{name} must be 32 bytes in base64 (make one with: python -c "
        "'import base64, os; print(base64.b64encode(os.urandom(32)).decode())'), "
        "or env:NAME of a variable that holds them",
    )
    return raw
