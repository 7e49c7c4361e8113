"""Keys: made once, wrapped as repositories hold them, escrowed by a confirmed copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from dpac_api.errors import Conflict, Corruption, Invalid, NotFound
from dpac_engine.control.site import Site
from dpac_engine.io.keys import Keyring, SigningKey, read_escrow

SITE_UID = "5" * 32


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The key folder of a new site."""
    data = tmp_path / "data"
    data.mkdir()
    return Site.open(data).keys


def test_data_keys_differ_and_are_found_again(keys: Path) -> None:
    """Each key is its own, and another process with the folder opens it."""
    ring = Keyring(keys)
    first, second = ring.create(), ring.create()
    assert first != second
    assert ring.data_key(first) != ring.data_key(second)
    assert len(ring.data_key(first)) == 32
    assert Keyring(keys).data_key(first) == ring.data_key(first)
    assert (keys / "data" / first).stat().st_mode & 0o777 == 0o600


def test_what_is_stored_is_the_wrapped_key_of_rfc_3394(keys: Path) -> None:
    """The stored bytes open with the key-encryption key and any RFC 3394 implementation, and hold no key in plain."""
    ring = Keyring(keys)
    key_id = ring.create()
    assert aes_key_unwrap((keys / "kek").read_bytes(), ring.wrapped(key_id)) == ring.data_key(key_id)
    assert ring.data_key(key_id) not in (keys / "data" / key_id).read_bytes()


def test_an_unknown_key_is_not_found(keys: Path) -> None:
    """The message says where to look for it; what is no key id never becomes a path."""
    with pytest.raises(NotFound, match="keys/data"):
        Keyring(keys).data_key("0" * 32)
    with pytest.raises(Invalid, match="not a key id"):
        Keyring(keys).data_key("../kek")


def test_a_damaged_or_foreign_key_is_corruption(keys: Path, tmp_path: Path) -> None:
    """A flipped bit, and a key that another site wrapped, are told from a good one."""
    ring = Keyring(keys)
    wrapped = bytearray(ring.wrapped(ring.create()))
    wrapped[5] ^= 1
    with pytest.raises(Corruption, match="does not open"):
        ring.unwrap(bytes(wrapped))
    (tmp_path / "other").mkdir()
    other = Keyring(Site.open(tmp_path / "other").keys)
    with pytest.raises(Corruption):
        ring.add("1" * 32, other.wrapped(other.create()))


def test_a_key_from_a_repository_can_be_taken_over(keys: Path) -> None:
    """After a recovery the repository's own key is added; an id never changes its key."""
    ring = Keyring(keys)
    key_id = ring.create()
    wrapped, key = ring.wrapped(key_id), ring.data_key(key_id)
    (keys / "data" / key_id).unlink()
    fresh = Keyring(keys)
    fresh.add(key_id, wrapped)
    fresh.add(key_id, wrapped)
    assert fresh.data_key(key_id) == key
    with pytest.raises(Conflict):
        fresh.add(key_id, fresh.wrapped(fresh.create()))


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_key_encryption_key_is_corruption(keys: Path, content: bytes) -> None:
    """Nothing is encrypted with a key that is not whole."""
    (keys / "kek").write_bytes(content)
    with pytest.raises(Corruption, match="damaged"):
        Keyring(keys)


def test_escrow_is_a_copy_that_somebody_confirmed(keys: Path, tmp_path: Path) -> None:
    """A key counts as escrowed only after the copy's own fingerprint was confirmed."""
    ring = Keyring(keys)
    key_id = ring.create()
    assert not ring.escrowed(key_id)
    copy = tmp_path / "escrow.json"
    mine = ring.export_kek(copy, SITE_UID)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not ring.escrowed(key_id)
    kek, found = read_escrow(copy)
    assert (kek, found) == ((keys / "kek").read_bytes(), mine)
    with pytest.raises(Invalid, match="fingerprint"):
        ring.confirm_escrow("0" * 32, 7)
    ring.confirm_escrow(found, 7)
    assert ring.escrowed(key_id)
    assert Keyring(keys).escrow_status().confirmed_ns == 7


def test_a_confirmation_of_another_key_does_not_count(keys: Path) -> None:
    """Once the key-encryption key is another one, the old confirmation is void."""
    ring = Keyring(keys)
    ring.confirm_escrow(ring.escrow_status().fingerprint, 7)
    (keys / "kek").write_bytes(bytes(32))
    assert Keyring(keys).escrow_status().confirmed_ns is None


def test_an_escrow_copy_never_replaces_a_file(keys: Path, tmp_path: Path) -> None:
    """The file may be the only copy of another site's key."""
    copy = tmp_path / "escrow.json"
    copy.write_text("precious")
    with pytest.raises(Conflict):
        Keyring(keys).export_kek(copy, SITE_UID)
    assert copy.read_text() == "precious"
    with pytest.raises(Corruption, match="not a sound copy"):
        read_escrow(copy)
    with pytest.raises(NotFound):
        read_escrow(tmp_path / "none")


def test_signatures_hold_for_exactly_what_was_signed(keys: Path) -> None:
    """The public key checks them; another message fails."""
    key = SigningKey(keys)
    public = Ed25519PublicKey.from_public_bytes(SigningKey(keys).public_key)
    public.verify(key.sign(b"report"), b"report")
    with pytest.raises(InvalidSignature):
        public.verify(key.sign(b"report"), b"Report")
