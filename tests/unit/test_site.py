"""The data folder: made once, private, refused when it is not ours, locked against a second backend."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from dpac_api.errors import Conflict, Corruption, Invalid, NotFound, Temporary, Unsupported
from dpac_engine.control.site import FOLDERS, Site, SiteLocks, supervisor_pid


def made(data: Path, **options: object) -> Site:
    """A site, as `dpac serve` makes it."""
    data.mkdir(mode=0o700, exist_ok=True)
    return Site.open(data, **options)  # type: ignore[arg-type]


def test_a_new_site_is_complete_and_private(tmp_path: Path) -> None:
    """Every folder is there with 0700, every secret with 0600, and the identity is random."""
    site = made(tmp_path / "a", name="fra")
    assert site.name == "fra"
    assert len(bytes.fromhex(site.site_uid)) == 16
    assert site.site_uid != made(tmp_path / "b").site_uid
    for folder in [*FOLDERS, "run"]:
        assert (site.data / folder).stat().st_mode & 0o777 == 0o700, folder
    for secret in (site.keys / "kek", site.keys / "signing", site.admin_token_file):
        assert secret.stat().st_mode & 0o777 == 0o600, secret
    assert (site.keys / "kek").stat().st_size == 32
    assert (site.keys / "kek").read_bytes() != (site.keys / "signing").read_bytes()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    """Identity, keys and token stay what they were; the name given later does not count."""
    first = made(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made(tmp_path, name="other") == first == Site.read(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_making_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    """A site whose site.json was not written yet is made with what is there."""
    site = made(tmp_path)
    kek = (site.keys / "kek").read_bytes()
    (tmp_path / "site.json").unlink()
    again = made(tmp_path)
    assert (again.keys / "kek").read_bytes() == kek


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    """`--data ~` by mistake does not litter a home folder."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Invalid, match=r"thesis\.tex"):
        made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_site_without_its_identity_is_not_made_anew(tmp_path: Path) -> None:
    """Beside an existing catalogue a missing site.json is a loss, not a fresh start."""
    made(tmp_path).catalogue_file.write_bytes(b"SQLite format 3")
    (tmp_path / "site.json").unlink()
    with pytest.raises(Corruption, match=r"lost its site\.json"):
        made(tmp_path)


def test_a_lost_key_is_not_made_anew(tmp_path: Path) -> None:
    """A new key-encryption key would silently make every copy unreadable."""
    site = made(tmp_path)
    (site.keys / "kek").unlink()
    with pytest.raises(Corruption, match="kek is missing"):
        made(tmp_path)
    assert not (site.keys / "kek").exists()


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    """An older dpac does not touch what a newer one wrote."""
    made(tmp_path)
    path = tmp_path / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 2}))
    with pytest.raises(Unsupported, match="layout 2"):
        made(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"layout": "x"}'])
def test_a_damaged_identity_is_corruption(tmp_path: Path, content: str) -> None:
    """A site.json that is none says to put it back."""
    made(tmp_path)
    (tmp_path / "site.json").write_text(content)
    with pytest.raises(Corruption, match="Put it back"):
        Site.read(tmp_path)


def test_no_site_is_not_found(tmp_path: Path) -> None:
    """An empty folder holds no site, and the message says how to make one."""
    with pytest.raises(NotFound, match="dpac serve --data"):
        Site.read(tmp_path)


@pytest.mark.parametrize("name", ["", "Fra", "-a", "a" * 64, "a/b"])
def test_a_wrong_name_is_refused(tmp_path: Path, name: str) -> None:
    """A site's name is one word of the API."""
    with pytest.raises(Invalid, match="not a site's name"):
        made(tmp_path, name=name)


def test_a_long_path_gets_a_short_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of a deep data folder lie in XDG_RUNTIME_DIR, at the same place at every start."""
    with tempfile.TemporaryDirectory(prefix="x") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        data = tmp_path / ("d" * 100)
        site = made(data)
        assert site.run == Path(runtime) / f"dpac-{site.site_uid[:16]}"
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert made(data).run == site.run


def test_a_runtime_folder_that_is_too_long_itself_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temp folder serves then."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with tempfile.TemporaryDirectory(prefix="x") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
        monkeypatch.setattr(tempfile, "tempdir", short)
        assert made(tmp_path / ("d" * 100)).run.parent == Path(short)


def test_a_run_folder_can_be_chosen_and_stays(tmp_path: Path) -> None:
    """--run-dir is remembered; one that is too long is refused."""
    chosen = tmp_path / "sockets"
    assert made(tmp_path / "a", run=chosen).run == chosen
    assert made(tmp_path / "a").run == chosen
    with pytest.raises(Invalid, match="too long"):
        made(tmp_path / "a", run=tmp_path / ("r" * 120))


def test_a_run_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """In a shared place somebody else may have made the folder first."""
    chosen = tmp_path / "sockets"
    chosen.mkdir()
    chosen.chmod(0o777)
    with pytest.raises(Invalid, match="only this user"):
        made(tmp_path / "a", run=chosen)


def test_only_one_backend_holds_a_data_folder(tmp_path: Path) -> None:
    """The second is refused with the first one's pid; after a release it may."""
    locks = SiteLocks.take(tmp_path)
    assert supervisor_pid(tmp_path) == os.getpid()
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        SiteLocks.take(tmp_path)
    locks.release()
    assert supervisor_pid(tmp_path) is None
    SiteLocks.take(tmp_path).release()


def test_children_of_a_dead_supervisor_keep_the_folder_locked(tmp_path: Path) -> None:
    """While any process of the old tree lives no new one begins; what holds it up is said."""
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Temporary, match="still hold"):
        SiteLocks.take(tmp_path, wait_seconds=0.05)
    os.close(descriptor)
    SiteLocks.take(tmp_path, wait_seconds=0.05).release()


def test_export_addresses_are_nbd_uris(tmp_path: Path) -> None:
    """Blanks in a path do not break the URI."""
    site = made(tmp_path / "a b")
    assert site.nbd_uri(1, "shop/disk") == f"nbd+unix:///shop/disk?socket={tmp_path}/a%20b/run/nbd-1.sock"
