"""Escrow keys: told apart, never misread, and enough to read a target when everything else of a site is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dpac_api import escrow_keys
from dpac_api.errors import Conflict, Corruption, DpacError, Invalid, NotFound
from dpac_api.models import GroupSpec
from dpac_engine.control.escrow_check import check_escrow
from dpac_engine.core.damage import Finding
from dpac_engine.core.ports import Store
from dpac_engine.io import escrow
from dpac_engine.io.clock import SystemClock
from dpac_engine.io.escrow import PrivateKey
from dpac_engine.io.repository import RepositoryReader, RepositoryWriter
from dpac_engine.io.stores.memory import MemoryStore
from dpac_engine.io.stores.prefixed import PrefixedStore
from dpac_engine.io.verification import Verifier
from tests.unit.test_group import DISK_BYTES, KEY, KEY_ID, UID, Site, protected, run, shipped, until, write
from tests.unit.test_group import _fast as _fast  # its pace

DATA_KEY = bytes(range(32))
GROUP = {"members": {"d": {"kind": "volume", "path": "/d"}}}
PIECE_BYTES = 2**16
GOLDEN = Path(__file__).parents[1] / "data" / "escrow.json"
GOLDEN_PRIVATE = escrow_keys.private_text(bytes(range(64, 96)))


def _key_file(folder: Path, text: str) -> Path:
    (folder / "key").write_text(text)
    return folder / "key"


# ------------------------------------------------------------------ as text


def test_a_key_has_one_spelling_and_a_wrong_character_anywhere_is_noticed() -> None:
    """Each of the 58 characters, changed to any other, makes it no key."""
    key = os.urandom(32)
    text = escrow_keys.public_text(key)
    assert escrow_keys.public_bytes(text) == key
    for at in range(len(escrow_keys.PUBLIC_PREFIX), len(text)):
        for other in "a7":
            if text[at] != other:
                with pytest.raises(ValueError, match="a character is wrong"):
                    escrow_keys.public_bytes(text[:at] + other + text[at + 1 :])
    for wrong in ("", "dpac-escrow-", text[:-1], text + "a", text.upper(), " " + text):
        with pytest.raises(ValueError, match="escrow key"):
            escrow_keys.public_bytes(wrong)


def test_a_private_half_that_is_declared_by_mistake_is_refused_and_not_repeated() -> None:
    """The message may land in a log: it says what to do, and not the key."""
    private = escrow_keys.private_text(os.urandom(32))
    with pytest.raises(ValueError, match="private half") as caught:
        GroupSpec.model_validate({**GROUP, "encryption": {"escrow": [private]}})
    told = caught.value.errors(include_input=False)[0]["msg"]  # type: ignore[attr-defined]
    assert private not in told


def test_the_order_in_which_keys_are_declared_is_no_difference() -> None:
    """Nor is one key twice: the normal form is the same."""
    one, two = (PrivateKey.generate().public for _ in range(2))
    specs = [
        GroupSpec.model_validate({**GROUP, "encryption": {"escrow": keys}}) for keys in ([one, two], [two, one, two])
    ]
    assert specs[0] == specs[1]


def test_a_private_key_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    """0600, never over another file, and read back as the same key; its name and its repr show no private half."""
    key = PrivateKey.generate()
    key.write(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert PrivateKey.read(tmp_path / "key").public == key.public
    private = (tmp_path / "key").read_text().splitlines()[-1]
    assert private.startswith(escrow_keys.PRIVATE_PREFIX)
    assert private not in repr(key)
    with pytest.raises(Conflict, match="exists already"):
        PrivateKey.generate().write(tmp_path / "key")
    with pytest.raises(NotFound):
        PrivateKey.read(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "dpac-escrow-private-abc\n", "two\nlines\n"])
def test_what_is_no_private_key_is_told(tmp_path: Path, text: str) -> None:
    """By the file's name, without what is in it."""
    with pytest.raises(Invalid, match="is no file of a private escrow key"):
        PrivateKey.read(_key_file(tmp_path, text))


# ------------------------------------------------------------------ copies


def test_a_copy_opens_with_its_private_key_for_its_group_and_data_key_alone() -> None:
    """Another key, group or key id is refused."""
    key = PrivateKey.generate()
    data = escrow.seal(DATA_KEY, KEY_ID, UID, key.public)
    assert key.open(data, KEY_ID, UID) == DATA_KEY
    assert DATA_KEY not in data
    for who, key_id, group in (
        (PrivateKey.generate(), KEY_ID, UID),
        (key, "8" * 32, UID),
        (key, KEY_ID, "2" * 32),
    ):
        with pytest.raises(Corruption):
            who.open(data, key_id, group)


def test_the_format_is_what_it_was(tmp_path: Path) -> None:
    """A stored copy of the first version opens with its private key: golden bytes."""
    key = PrivateKey.read(_key_file(tmp_path, GOLDEN_PRIVATE))
    data = GOLDEN.read_bytes()
    assert key.open(data, KEY_ID, UID) == DATA_KEY
    escrow.check_copy(data, DATA_KEY, UID)
    body = json.loads(json.loads(data)["body"])
    assert body["escrow_key"] == key.public
    assert escrow.copy_key(KEY_ID, key.public) == f"escrow/{KEY_ID}/81a8e32496af56246e1da465ad0e9886"


def test_nothing_is_sealed_to_a_key_of_low_order() -> None:
    """Whoever computes with such a key gets a secret that everybody knows."""
    with pytest.raises(Invalid, match="low order"):
        escrow.seal(DATA_KEY, KEY_ID, UID, escrow_keys.public_text(bytes(32)))


def _writer(store: MemoryStore) -> RepositoryWriter:
    return RepositoryWriter(store, UID, KEY_ID, b"wrapped", lambda _: DATA_KEY, SystemClock())


def test_a_copy_that_was_exchanged_or_lost_is_written_anew_and_a_sound_one_is_left_alone() -> None:
    """The site tells it by the data key, without any private half."""
    store, key = MemoryStore(), PrivateKey.generate()
    name = escrow.copy_key(KEY_ID, key.public)
    assert _writer(store).put_escrow([key.public]) == [escrow_keys.fingerprint(key.public)]
    first = store.get(name)
    _writer(store).put_escrow([key.public])
    assert store.get(name) == first
    # An attacker who writes at the target can seal another key to the same person, but not authenticate it.
    for damage in (escrow.seal(bytes(32), KEY_ID, UID, key.public), first[:-3], b"", b'{"body": 7}'):
        store.put(name, damage)
        _writer(store).put_escrow([key.public])
        assert key.open(store.get(name), KEY_ID, UID) == DATA_KEY
    store.delete(name)
    _writer(store).put_escrow([key.public])
    assert key.open(store.get(name), KEY_ID, UID) == DATA_KEY


# ------------------------------------------------------------------ a group at work


def _declared(*keys: PrivateKey, generation: int = 1) -> dict[str, Any]:
    return {"generation": generation, "spec": {"encryption": {"escrow": [key.public for key in keys]}}}


def _thrown_away(_: str) -> bytes:
    raise NotFound("The site and its keys are gone.")


def test_a_whole_image_is_recovered_with_the_private_key_alone(tmp_path: Path) -> None:
    """From what lies at the target; the site's keys are thrown away."""

    async def story(site: Site) -> None:
        key = PrivateKey.generate()
        group = site.group(**_declared(key))
        await group.start()
        await protected(group)
        content = os.urandom(DISK_BYTES // 2)
        for at in range(0, len(content), PIECE_BYTES):
            write(group, DISK_BYTES // 4 + at, content[at : at + PIECE_BYTES])
        await shipped(group, tag="end")

        store = site.targets["copies"]
        lost = RepositoryReader(store, UID, _thrown_away)
        with pytest.raises(DpacError):
            lost.refresh()
        reader = RepositoryReader(store, UID, key.data_keys(store, UID))
        reader.refresh()
        assert reader.spec().name == "shop"
        volume = reader.image(reader.resolve("tag:end")).volume(1)
        assert volume.read(0, volume.size_bytes) == bytes(DISK_BYTES // 4) + content + bytes(DISK_BYTES // 4)
        with pytest.raises(NotFound, match="1 were made for others"):
            RepositoryReader(store, UID, PrivateKey.generate().data_keys(store, UID)).refresh()

    run(tmp_path, story)


def test_a_changed_list_is_wrapped_anew_and_old_copies_are_told(tmp_path: Path) -> None:
    """While nothing else is to be shipped: the new key opens the target, the removed one still does and is in the leg's status."""

    async def story(site: Site) -> None:
        old, new = PrivateKey.generate(), PrivateKey.generate()
        group = site.group(**_declared(old))
        await group.start()
        await protected(group)
        assert group.status().legs["copies"].escrow == [escrow_keys.fingerprint(old.public)]
        idle = group.legs["copies"].repository
        sequence = group.state.sequence
        await until(lambda: group.state.sequence > sequence + 10)
        assert group.legs["copies"].repository is idle, "nothing is written, so nothing is shipped"
        await group.apply(site.assignment(**_declared(new, generation=2)))
        both = sorted(escrow_keys.fingerprint(key.public) for key in (old, new))
        await until(lambda: sorted(group.status().legs["copies"].escrow) == both)
        await until(lambda: (stored := group.legs["copies"].repository) is not None and stored.last.spec == 2)
        for key in (old, new):
            store = site.targets["copies"]
            reader = RepositoryReader(store, UID, key.data_keys(store, UID))
            reader.refresh()
            assert reader.spec().escrow_keys == [new.public]

    run(tmp_path, story)


def verify(store: Store) -> dict[str, Finding]:
    """Object -> what a verification finds of it."""
    reader = RepositoryReader(store, UID, lambda _: KEY)
    found = Verifier(reader, lambda name, data: None, lambda done, total: None).run().findings
    return {finding.object: finding for finding in found}


def test_verify_finds_a_copy_that_is_damaged_or_missing(tmp_path: Path) -> None:
    """By its name; no checkpoint is called unreadable for it."""

    async def story(site: Site) -> None:
        key, other = PrivateKey.generate(), PrivateKey.generate()
        group = site.group(**_declared(key, other))
        await group.start()
        await protected(group)
        store = site.targets["copies"]
        assert verify(store) == {}
        store.put(escrow.copy_key(KEY_ID, key.public), b"damage")
        store.delete(escrow.copy_key(KEY_ID, other.public))
        found = verify(store)
        assert set(found) == {escrow.copy_key(KEY_ID, one.public) for one in (key, other)}
        assert "missing" in found[escrow.copy_key(KEY_ID, other.public)].problem
        assert not any(finding.runs for finding in found.values())

    run(tmp_path, story)


def test_a_target_is_checked_group_by_group(tmp_path: Path) -> None:
    """What the key opens with its name and newest checkpoint, what it does not with why."""

    async def story(site: Site) -> None:
        key = PrivateKey.generate()
        group = site.group(**_declared(key))
        await group.start()
        mark = await shipped(group, tag="end")
        await protected(group)
        target = MemoryStore()
        mine, foreign = PrefixedStore(target, f"g/{UID}/"), PrefixedStore(target, f"g/{'2' * 32}/")
        for name in site.targets["copies"].list(""):
            mine.put(name, site.targets["copies"].get(name))
            foreign.put(name, site.targets["copies"].get(name))
        opened, closed = check_escrow(target, key)
        assert (opened.group_uid, opened.group, opened.problem) == (UID, "shop", None)
        assert opened.checkpoint is not None
        assert int(opened.checkpoint.rpartition("-")[2]) >= mark.sequence
        assert closed.group_uid == "2" * 32
        assert "names the group" in str(closed.problem)
        assert [one.group for one in check_escrow(target, key, UID)] == ["shop"]
        with pytest.raises(NotFound, match="No group's copies"):
            check_escrow(MemoryStore(), key)

    run(tmp_path, story)
