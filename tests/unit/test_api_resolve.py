"""Which backend a program talks to."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from dpac_api.contexts import Context, read_contexts, remove_context, use_context, write_context
from dpac_api.errors import Invalid, NotFound
from dpac_api.resolve import resolve

UID = "ab" * 16


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment that holds nothing but the folder of the context file."""
    return {"DPAC_CONFIG_DIR": str(tmp_path / "config")}


def test_environment_comes_before_configuration_and_context(environ: dict[str, str], tmp_path: Path) -> None:
    """DPAC_ENDPOINT wins, then dpac:sites, then the current context."""
    write_context("local", Context(endpoint="http://context:1", token_file="/c/token", site_uid=UID), environ=environ)
    sites = {"fra": {"endpoint": "http://config:2/", "tokenFile": "/f/token"}}
    said = {**environ, "DPAC_ENDPOINT": "https://environment:3", "DPAC_TOKEN_FILE": "/e/token", "DPAC_CA_FILE": "/e/ca"}

    first = resolve(sites=sites, environ=said)
    second = resolve(sites=sites, environ=environ)
    third = resolve(environ=environ)

    assert (first.url, first.token_file, first.ca_file) == ("https://environment:3", Path("/e/token"), Path("/e/ca"))
    assert (second.url, second.token_file, second.source) == ("http://config:2", Path("/f/token"), "dpac:sites.fra")
    assert (third.url, third.token_file, third.site_uid) == ("http://context:1", Path("/c/token"), UID)


def test_a_named_site_has_its_own_variables(environ: dict[str, str]) -> None:
    """One DPAC_ENDPOINT is never taken for two sites."""
    environ |= {"DPAC_ENDPOINT": "http://one:1", "DPAC_ENDPOINT_FRA_2": "http://fra:2"}
    assert resolve("fra-2", environ=environ).url == "http://fra:2"
    with pytest.raises(Invalid, match="DPAC_ENDPOINT_LON"):
        resolve("lon", environ=environ)


def test_a_named_site_is_found_in_configuration_or_contexts_by_its_name(environ: dict[str, str]) -> None:
    """The configuration's entry, else the context of that name, though another is current."""
    write_context("lon", Context(endpoint="http://lon:1"), environ=environ)
    write_context("here", Context(endpoint="http://here:1"), environ=environ)
    sites = json.dumps({"fra": {"endpoint": "http://fra:2"}})
    assert resolve("fra", sites=sites, environ=environ).url == "http://fra:2"
    assert resolve("lon", sites=sites, environ=environ).url == "http://lon:1"


def test_nothing_known_says_every_way_to_name_an_endpoint(environ: dict[str, str]) -> None:
    """The message names the environment, the configuration and the context."""
    with pytest.raises(Invalid) as caught:
        resolve(environ=environ)
    for way in ("DPAC_ENDPOINT", "DPAC_TOKEN_FILE", "pulumi config set --path dpac:sites", "dpac context"):
        assert way in caught.value.message


def test_several_sites_are_not_chosen_from(environ: dict[str, str]) -> None:
    """Two configured sites and no dpac.Site is an error that names both."""
    sites = {"fra": {"endpoint": "http://a:1"}, "lon": {"endpoint": "http://b:1"}}
    with pytest.raises(Invalid, match=r"fra, lon.*dpac\.Site"):
        resolve(sites=sites, environ=environ)


@pytest.mark.parametrize(
    ("sites", "path"),
    [
        ("not json", "dpac:sites"),
        (["fra"], "dpac:sites"),
        ({"fra": {"tokenFile": "/t"}}, "dpac:sites.fra"),
        ({"fra": {"endpoint": "http://a:1", "token": "secret"}}, "dpac:sites.fra.token"),
        ({"fra": {"endpoint": "ftp://a"}}, "dpac:sites.fra.endpoint"),
        ({"fra": {"endpoint": "http://a:1", "tokenFile": "relative"}}, "dpac:sites.fra.tokenFile"),
        ({"fra": {"endpoint": "http://a:port"}}, "dpac:sites.fra.endpoint"),
    ],
)
def test_a_wrong_configuration_is_named_by_its_path(environ: dict[str, str], sites: object, path: str) -> None:
    """Each mistake in dpac:sites names the property that holds it."""
    with pytest.raises(Invalid) as caught:
        resolve(sites=sites, environ=environ)  # type: ignore[arg-type]
    assert caught.value.property_path == path


def test_a_password_in_an_endpoint_is_refused_and_not_repeated(environ: dict[str, str]) -> None:
    """What is refused may be a secret, so the message leaves it out."""
    with pytest.raises(Invalid) as caught:
        resolve(environ={**environ, "DPAC_ENDPOINT": "https://user:hunter2@host"})
    assert "hunter2" not in str(caught.value)


def test_contexts_are_kept_privately_and_survive_each_other(environ: dict[str, str]) -> None:
    """Writing one keeps the others, the file is the user's alone, and one is current."""
    write_context("a", Context(endpoint="http://a:1"), environ=environ)
    path = write_context("b", Context(endpoint="http://b:1"), make_current=False, environ=environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_contexts(environ).current == "a"
    use_context("b", environ)
    assert resolve(environ=environ).url == "http://b:1"
    remove_context("b", environ)
    assert read_contexts(environ).current is None
    assert list(read_contexts(environ).contexts) == ["a"]
    with pytest.raises(NotFound, match="it has: a"):
        use_context("b", environ)


def test_a_damaged_context_file_is_named(environ: dict[str, str]) -> None:
    """The message names the file and what is wrong with it."""
    path = write_context("a", Context(endpoint="http://a:1"), environ=environ)
    path.write_text('{"contexts": {"a": {"endpoint": 3}}}')
    with pytest.raises(Invalid, match=r"contexts\.json.*contexts\.a\.endpoint"):
        resolve(environ=environ)
