"""The context `make up` writes: `dpac` works with no flags, and nobody's programs change backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpac_api.contexts import Context, read_contexts, write_context
from setup import context

UID, OTHER_UID = "a" * 32, "b" * 32


@pytest.fixture
def token(tmp_path: Path) -> str:
    """The token file of the site that `make up` started."""
    file = tmp_path / "token"
    file.write_text("secret\n")
    return str(file)


def another(tmp_path: Path, *, alive: bool) -> Context:
    """A context of another site, whose token file is still there or not."""
    file = tmp_path / "other-token"
    if alive:
        file.write_text("secret\n")
    return Context(endpoint="http://127.0.0.1:1", token_file=str(file), site_uid=OTHER_UID)


def test_the_first_site_becomes_the_current_one(token: str) -> None:
    """So that `.venv/bin/dpac` works with no flags."""
    assert context.note(UID, "local", "http://127.0.0.1:2", token) == "current"
    known = read_contexts()
    assert known.current == "local"
    assert known.contexts["local"] == Context(endpoint="http://127.0.0.1:2", token_file=token, site_uid=UID)


def test_a_site_that_moved_to_another_port_keeps_its_one_context(token: str) -> None:
    """The second `make up` changes the endpoint in it."""
    for port in (2, 3):
        assert context.note(UID, "local", f"http://127.0.0.1:{port}", token) == "current"
    assert {name: known.endpoint for name, known in read_contexts().contexts.items()} == {"local": "http://127.0.0.1:3"}


def test_a_living_site_of_the_same_name_keeps_its_context(token: str, tmp_path: Path) -> None:
    """Another checkout, say: ours gets a name of its own and does not become the current one, and says so."""
    write_context("local", another(tmp_path, alive=True))
    name = context.note(UID, "local", "http://127.0.0.1:2", token)
    known = read_contexts()
    assert name == "local-aaaaaa"
    assert known.current == "local"
    assert known.contexts["local"].site_uid == OTHER_UID
    assert known.contexts[name].site_uid == UID


def test_a_site_that_is_gone_gives_its_place(token: str, tmp_path: Path) -> None:
    """Its token file went with it: after `rm -rf .dpac` and `make up`, `dpac` still works with no flags."""
    write_context("local", another(tmp_path, alive=False))
    assert context.note(UID, "local", "http://127.0.0.1:2", token) == "current"
    assert read_contexts().contexts["local"].site_uid == UID


def test_what_the_user_made_current_stays_current(token: str, tmp_path: Path) -> None:
    """`dpac context use production` outlives a `make up`."""
    context.note(UID, "local", "http://127.0.0.1:2", token)
    write_context("production", another(tmp_path, alive=True), make_current=True)
    assert context.note(UID, "local", "http://127.0.0.1:2", token) == "local"
    assert read_contexts().current == "production"


def test_a_removed_site_is_forgotten_and_no_other(token: str, tmp_path: Path) -> None:
    """`make clean` leaves the contexts of others."""
    write_context("production", another(tmp_path, alive=True))
    context.note(UID, "local", "http://127.0.0.1:2", token)
    context.forget(UID)
    assert set(read_contexts().contexts) == {"production"}
