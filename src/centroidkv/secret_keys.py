"""Secrets as users give them, also by the name of an environment variable, and hiding them.

Keys are 32 bytes in base64; a URL may hold a password.
"""

import base64
import binascii
import os
import re

from centroidkv.settings import require

__all__ = ["KEY_BYTES", "given_text", "masked", "secret_bytes"]

KEY_BYTES = 32
# Up to the last @ before the path; where the password itself has a / in it, up to the last of all.
# What looks like a port is one.
_PASSWORD = re.compile(r"((?:^|//)[^/?#:@\[\s]*:)(?!\d*(?:[/?#\s]|$))(?:[^/?#\s]*|\S*)@")


def masked(text: str) -> str:
    """Return a URL, or a text with URLs, without passwords: for messages and reports."""
    return _PASSWORD.sub(r"\1***@", text)


def given_text(given: object, name: str) -> str:
    """Return a text, or what the environment variable holds that `env:NAME` names.

    Raises:
        ConfigError: There is no such variable; `name` says which setting names it.
    """
    text = str(given)
    if text.startswith("env:"):
        variable = text.removeprefix("env:")
        text = os.environ.get(variable, "")
        require(text, f"the environment variable {variable}, named by {name}, is not set")
    return text


def secret_bytes(given: object, name: str) -> bytes | None:
    """Return the bytes of a secret, None for none; `name` says which setting it is.

    Raises:
        ConfigError: There is no such variable, or it does not hold 32 bytes in base64.
    """
    if given is None:
        return None
    text = given_text(given, name)
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
