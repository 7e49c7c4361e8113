"""Escrow copies: a group's data keys, sealed at each target to keys that people hold (docs/journal-format.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import blake3
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dpac_api import escrow_keys
from dpac_api.errors import Corruption, Invalid, NotFound, Unsupported
from dpac_engine.core.ports import Store
from dpac_engine.io.files import write_new_file

FORMAT = 1
SUITE_NAME = "DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM"
_T = TypeVar("_T")
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class _Envelope(msgspec.Struct):
    body: str
    mac: str


class _Body(msgspec.Struct):
    format: int
    group: str
    key_id: str
    escrow_key: str
    suite: str
    sealed: str


def copies_prefix(key_id: str) -> str:
    """Where the copies of a data key lie, below the group's prefix."""
    return f"escrow/{key_id}/"


def copy_key(key_id: str, escrow_key: str) -> str:
    """Where the copy for one escrow key lies."""
    return copies_prefix(key_id) + escrow_keys.fingerprint(escrow_key)


def seal(data_key: bytes, key_id: str, group_uid: str, escrow_key: str) -> bytes:
    """A data key's copy for an escrow key. Invalid if nothing can be sealed to that key."""
    public = X25519PublicKey.from_public_bytes(escrow_keys.public_bytes(escrow_key))
    try:
        sealed = _SUITE.encrypt(data_key, public, info=_info(group_uid, key_id))
    except ValueError:
        raise Invalid(
            f"Nothing can be sealed to the escrow key {escrow_key}: it is a point of low order. "
            "Make a pair with `dpac key generate-escrow`, and declare its public half.",
            property_path="encryption.escrow",
        ) from None
    body = msgspec.json.encode(
        _Body(FORMAT, group_uid, key_id, escrow_key, SUITE_NAME, base64.b64encode(sealed).decode())
    )
    return msgspec.json.encode(_Envelope(body.decode(), _mac(data_key, group_uid, body)))


def check_copy(data: bytes, data_key: bytes, group_uid: str) -> None:
    """Corruption if a copy is not one that the holder of the data key made."""
    envelope = _decoded(data, _Envelope)
    if envelope.mac != _mac(data_key, group_uid, envelope.body.encode()):
        raise Corruption("An escrow copy fails its authentication: it is damaged, forged or another group's.")


def stored_at(data: bytes) -> str:
    """Where an authentic copy belongs; Corruption if the bytes are none."""
    body = _decoded(_decoded(data, _Envelope).body, _Body)
    return copy_key(body.key_id, body.escrow_key)


def _info(group_uid: str, key_id: str) -> bytes:
    return f"dpac escrow 1 {group_uid} {key_id}".encode()


def _mac(data_key: bytes, group_uid: str, body: bytes) -> str:
    key = HKDF(hashes.SHA256(), 32, salt=bytes.fromhex(group_uid), info=b"dpac escrow 1").derive(data_key)
    return blake3.blake3(body, key=key).hexdigest()


def _decoded(data: bytes | str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Corruption(f"An escrow copy cannot be read: {error}.") from None


class PrivateKey:
    """The private half of an escrow key."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new pair."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> PrivateKey:
        """The key in a file that `write` made. NotFound if there is none, Invalid if it holds no private escrow key."""
        try:
            lines = path.read_text("utf-8").split("\n")
        except FileNotFoundError:
            raise NotFound(f"There is no file {path}. Name the one that `dpac key generate-escrow` wrote.") from None
        except (OSError, UnicodeError) as error:
            raise Invalid(f"{path} cannot be read ({error}). Name the file of a private escrow key.") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        try:
            (text,) = keys
            return cls(X25519PrivateKey.from_private_bytes(escrow_keys.private_bytes(text)))
        except ValueError as error:
            why = error if len(keys) == 1 else f"it holds {len(keys)} lines beside comments"
            raise Invalid(f"{path} is no file of a private escrow key: {why}.") from None

    def write(self, path: Path) -> None:
        """Write it to the new file `path` (0600). Conflict if the file exists, Invalid if it cannot be written."""
        text = escrow_keys.private_text(self._key.private_bytes_raw())
        about = (
            "# The private half of a dpac escrow key. Whoever has it can read every copy that was made for it.\n"
            f"# public: {self.public}\n"
        )
        write_new_file(path, f"{about}{text}\n".encode())

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public})"

    @property
    def public(self) -> str:
        """The public half, as programs declare it."""
        return escrow_keys.public_text(self._key.public_key().public_bytes_raw())

    def open(self, data: bytes, key_id: str, group_uid: str) -> bytes:
        """The data key in an escrow copy. Corruption if it is damaged or was not made for this key and that data key."""
        body = _decoded(_decoded(data, _Envelope).body, _Body)
        if (body.format, body.suite) != (FORMAT, SUITE_NAME):
            raise Unsupported(f"The escrow copy has format {body.format}; this build opens {FORMAT}. Use a newer dpac.")
        try:
            return _SUITE.decrypt(
                base64.b64decode(body.sealed, validate=True), self._key, info=_info(group_uid, key_id)
            )
        except (InvalidTag, ValueError, binascii.Error):
            raise Corruption(
                f"The escrow copy of data key {key_id} does not open with this private key: it is damaged or was made for another."
            ) from None

    def data_keys(self, store: Store, group_uid: str) -> Callable[[str], bytes]:
        """key id -> data key, from the escrow copies in a group's repository: what stands in for a site's keyring.

        The function raises NotFound where nothing was sealed to this key.
        """
        known: dict[str, bytes] = {}

        def data_key(key_id: str) -> bytes:
            if key_id not in known:
                known[key_id] = self.open(self._copy(store, key_id), key_id, group_uid)
            return known[key_id]

        return data_key

    def _copy(self, store: Store, key_id: str) -> bytes:
        try:
            return store.get(copy_key(key_id, self.public))
        except NotFound:
            others = len(list(store.list(copies_prefix(key_id))))
            raise NotFound(
                f"No copy of data key {key_id} was made for this escrow key ({self.public}); {others} were made for others. "
                "Use the private half of one that the group declared."
            ) from None
