"""The site's keys: the data keys of its groups, wrapped by its key-encryption key, and the key that signs reports.

keys/kek              32 random bytes: the key-encryption key. Who loses it loses every copy
keys/signing          32 bytes: the Ed25519 private key
keys/data/<key id>    a data key, wrapped (RFC 3394): the very bytes that lie in repositories at `keys/<key id>`
keys/escrow.json      which key-encryption key somebody confirmed to have a copy of, and when
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from dpac_api.errors import Conflict, Corruption, Invalid, NotFound, Unsupported
from dpac_engine.io.files import make_folder, replace_file, write_new_file

KEY_BYTES = 32
_KEY_ID = re.compile(r"[0-9a-f]{32}")
_ESCROW_FORMAT = 1


@dataclass(frozen=True)
class EscrowStatus:
    """Whether a copy of the key-encryption key lies outside this host, as far as somebody said so."""

    fingerprint: str
    """Of the key in use."""
    confirmed_ns: int | None
    """When its copy was confirmed, nanoseconds since 1970 UTC; None: never."""


def fingerprint(kek: bytes) -> str:
    """What people compare to know that two copies are the same key; tells nothing about the key."""
    return hashlib.sha256(b"dpac kek 1" + kek).hexdigest()[:32]


class WritingKeys(Protocol):
    """What a repository's writer needs of keys."""

    def wrapped(self, key_id: str) -> bytes:
        """The key as it lies in repositories at `keys/<key id>`. NotFound if it is not known here."""

    def data_key(self, key_id: str) -> bytes:
        """Its 32 bytes."""


class Keyring:
    """The data keys of this site's groups. Safe for threads; another process sees a new key at its first use."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the site's `keys/`. Corruption if the key-encryption key is missing or damaged."""
        self._folder = folder
        self._kek = _read_key(folder / "kek", "The key-encryption key")
        self._data_keys: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self) -> str:
        """Make a data key; returns its key id. Durable when this returns."""
        key_id = secrets.token_hex(16)
        self.add(key_id, aes_key_wrap(self._kek, secrets.token_bytes(KEY_BYTES)))
        return key_id

    def add(self, key_id: str, wrapped: bytes) -> None:
        """Take over a data key as it lies in a repository.

        Corruption if this site's key-encryption key does not open it; Conflict if another key has that id here.
        """
        path = self._path(key_id)
        self.unwrap(wrapped)
        with self._lock:
            if path.exists() and path.read_bytes() != wrapped:
                raise Conflict(f"Another data key is called {key_id} on this site. Nothing was changed.")
            make_folder(path.parent)
            replace_file(path, wrapped)

    def data_key(self, key_id: str) -> bytes:
        """The 32 bytes. NotFound if this site has no such key, Corruption if it cannot be opened."""
        with self._lock:
            known = self._data_keys.get(key_id)
        if known is None:
            known = self.unwrap(self.wrapped(key_id))
            with self._lock:
                self._data_keys[key_id] = known
        return known

    def wrapped(self, key_id: str) -> bytes:
        """The key as it lies in repositories at `keys/<key id>`. NotFound if this site has no such key."""
        try:
            return self._path(key_id).read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"This site has no data key {key_id}. Put back keys/data/{key_id} from a copy of the data folder, "
                "or read the repository's own keys/ with the key-encryption key of the site that wrote it."
            ) from None

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key in bytes from a repository. Corruption if this site's key-encryption key does not open them."""
        try:
            return aes_key_unwrap(self._kek, wrapped)
        except (InvalidUnwrap, ValueError) as error:
            raise Corruption(
                "A wrapped data key does not open with this site's key-encryption key "
                f"(fingerprint {fingerprint(self._kek)}). It is damaged, or another site wrapped it."
            ) from error

    def check_stored(self, name: str, data: bytes) -> None:
        """Check the bytes of a repository's object `keys/<name>`.

        Corruption unless they are the data key of that id, wrapped; Unsupported if that is no name of a data key.
        """
        if not _KEY_ID.fullmatch(name):
            raise Unsupported("this build does not know what it is")
        if self.unwrap(data) != self.data_key(name):
            raise Corruption(f"What lies there is another data key than {name}.")

    # ---------------------------------------------------------------- escrow

    def escrow_status(self) -> EscrowStatus:
        """Whether a copy of the key-encryption key was confirmed."""
        mine = fingerprint(self._kek)
        try:
            noted = json.loads((self._folder / "escrow.json").read_bytes())
            confirmed_ns = int(noted["confirmed_ns"]) if noted["fingerprint"] == mine else None
        except FileNotFoundError:
            confirmed_ns = None
        except (ValueError, KeyError, TypeError) as error:
            raise Corruption(
                f"{self._folder / 'escrow.json'} is damaged. Remove it and confirm the escrow copy again."
            ) from error
        return EscrowStatus(mine, confirmed_ns)

    def escrowed(self, key_id: str) -> bool:
        """Whether somebody confirmed a copy, outside this host, of what opens the data key. NotFound without the key."""
        self.wrapped(key_id)
        return self.escrow_status().confirmed_ns is not None

    def export_kek(self, path: Path, site_uid: str) -> str:
        """Write a copy of the key-encryption key to the new file `path` (0600); returns its fingerprint.

        Conflict if the file exists: a copy of another key must not be lost. Invalid if it cannot be written.
        """
        copy = {
            "dpac_kek": _ESCROW_FORMAT,
            "site_uid": site_uid,
            "fingerprint": fingerprint(self._kek),
            "key": base64.b64encode(self._kek).decode(),
        }
        write_new_file(path, (json.dumps(copy, indent=1) + "\n").encode())
        return fingerprint(self._kek)

    def confirm_escrow(self, confirmed: str, now_ns: int) -> None:
        """Note that a copy of the key with that fingerprint lies outside this host. Invalid if it is another key."""
        mine = fingerprint(self._kek)
        if confirmed != mine:
            raise Invalid(
                f"The copy's fingerprint is {confirmed}, this site's key-encryption key has {mine}. "
                "Export the key again and confirm that copy."
            )
        noted = {"fingerprint": mine, "confirmed_ns": now_ns}
        replace_file(self._folder / "escrow.json", (json.dumps(noted) + "\n").encode())

    def _path(self, key_id: str) -> Path:
        if not _KEY_ID.fullmatch(key_id):
            raise Invalid(f"{key_id!r} is not a key id; those are 32 hexadecimal digits.")
        return self._folder / "data" / key_id


def read_escrow(path: Path) -> tuple[bytes, str]:
    """The key-encryption key in an escrow copy, and its fingerprint.

    NotFound if there is no such file, Corruption if it is damaged or no such copy.
    """
    try:
        copy = json.loads(path.read_bytes())
        kek = base64.b64decode(copy["key"], validate=True)
        sound = copy["dpac_kek"] == _ESCROW_FORMAT and len(kek) == KEY_BYTES and copy["fingerprint"] == fingerprint(kek)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}. Name the file that `dpac` wrote the key to.") from None
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise Corruption(f"{path} is not a sound copy of a key-encryption key. Use another copy.")
    return kek, fingerprint(kek)


class SigningKey:
    """The site's Ed25519 key, which signs drill reports."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the site's `keys/`. Corruption if the key is missing or damaged."""
        self._key = Ed25519PrivateKey.from_private_bytes(_read_key(folder / "signing", "The signing key"))

    @property
    def public_key(self) -> bytes:
        """Raw, 32 bytes."""
        return self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """The raw signature, 64 bytes."""
        return self._key.sign(message)


def _read_key(path: Path, what: str) -> bytes:
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Corruption(
            f"{what} {path} is missing or damaged. Put it back from a copy: without it this site's data cannot be read."
        )
    return key
