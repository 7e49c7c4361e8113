"""Escrow keys as people write them: an X25519 key in text, with a prefix that says which half it is, and a checksum.

`dpac-escrow-` and 58 characters is the public half, which programs declare; `dpac-escrow-private-` and 58 characters is
the private half, which never leaves the place where it is kept. The 58 characters are base 32 (RFC 4648, lower case, no
padding) of the key's 32 bytes and the first four bytes of their SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated

from pydantic import AfterValidator, Field

KEY_BYTES = 32
PUBLIC_PREFIX = "dpac-escrow-"
PRIVATE_PREFIX = "dpac-escrow-private-"
_TEXT_CHARACTERS = 58


def public_text(key: bytes) -> str:
    """The public half as programs declare it."""
    return PUBLIC_PREFIX + _text(key)


def private_text(key: bytes) -> str:
    """The private half as its file holds it."""
    return PRIVATE_PREFIX + _text(key)


def public_bytes(text: str) -> bytes:
    """The 32 bytes of a public half; ValueError says what is wrong, without the text: it may be the private one."""
    if text.startswith(PRIVATE_PREFIX):
        raise ValueError(
            "this is the private half of an escrow key: declare the public half, which `dpac key generate-escrow` printed, "
            "and make a new pair, because this one has been seen"
        )
    return _bytes(text, PUBLIC_PREFIX, "a public escrow key")


def private_bytes(text: str) -> bytes:
    """The 32 bytes of a private half; ValueError says what is wrong, without the text."""
    return _bytes(text, PRIVATE_PREFIX, "a private escrow key")


def fingerprint(public: str) -> str:
    """Which key it is, in 32 hexadecimal digits: what its copies at targets are named by."""
    return hashlib.sha256(b"dpac escrow 1" + public_bytes(public)).hexdigest()[:32]


def _text(key: bytes) -> str:
    return base64.b32encode(key + hashlib.sha256(key).digest()[:4]).decode().rstrip("=").lower()


def _bytes(text: str, prefix: str, what: str) -> bytes:
    body = text.removeprefix(prefix)
    if body == text or len(body) != _TEXT_CHARACTERS:
        raise ValueError(f"this is not {what}; those are '{prefix}' and {_TEXT_CHARACTERS} characters")
    try:
        found = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except binascii.Error:
        found = b""
    # The text must be the very one that the key makes: one key, one spelling.
    if _text(found[:KEY_BYTES]) != body:
        raise ValueError(f"this is not {what} as it was made: a character is wrong. Copy it again")
    return found[:KEY_BYTES]


def _checked(text: str) -> str:
    public_bytes(text)
    return text


EscrowKey = Annotated[
    str,
    AfterValidator(_checked),
    Field(description="The public half of an escrow key, as `dpac key generate-escrow` printed it: `dpac-escrow-...`."),
]
