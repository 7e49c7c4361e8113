"""The real CLI and sites that are down, other, empty, or configured."""

from __future__ import annotations

import socket

import pulumi.automation as auto
import pytest

from tests.pulumi.conftest import Backend, Shop

pytestmark = pytest.mark.pulumi


@pytest.fixture
def nobody() -> str:
    """An address of this host at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_preview_needs_no_backend(shop: Shop, nobody: str) -> None:
    """Neither before anything is made, nor of a change to what is there."""
    shop.stack.environment(DPAC_ENDPOINT=nobody)
    shop.program('dpac.Ready("ready", group=group)')
    assert {step.operation for step in shop.stack.preview().values()} == {"create"}

    shop.stack.environment(DPAC_ENDPOINT="")
    shop.stack.up()
    shop.stack.environment(DPAC_ENDPOINT=nobody)
    shop.program('dpac.Ready("ready", group=group)', replication=shop.legs(daily=31))
    assert {name: step.operation for name, step in shop.stack.preview().items()} == {f"{shop.name}-group": "update"}


def test_nothing_is_dropped_when_nobody_answers(shop: Shop, nobody: str) -> None:
    """Refresh is an error that names the endpoint, and state is as it was."""
    shop.program()
    shop.stack.up()
    before = shop.stack.resources()
    shop.stack.environment(DPAC_ENDPOINT=nobody)
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.refresh()
    assert f"No backend answers at {nobody}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert shop.stack.resources().keys() == before.keys()


def test_another_site_is_an_error_and_nothing_is_dropped_or_done(shop: Shop, another_backend: Backend) -> None:
    """An empty site says nothing about resources of another: refresh, up and destroy fail, state stays."""
    shop.program()
    shop.stack.up()
    before = shop.stack.resources()
    shop.stack.environment(**another_backend.variables)
    shop.program(replication=shop.legs(daily=31))
    for command in (shop.stack.refresh, shop.stack.up, shop.stack.destroy):
        with pytest.raises(auto.CommandError) as caught:
            command()
        assert shop.group().site_uid in str(caught.value)
        assert "Traceback" not in str(caught.value)
        assert shop.stack.resources().keys() == before.keys()
    with another_backend.client() as client:
        assert client.groups() == []
    assert shop.group().spec.replication["copies"].retention.daily == 30


def test_the_stacks_configuration_names_the_site(shop: Shop) -> None:
    """Without environment or context: up, refresh and destroy find the endpoint in `dpac:sites`."""
    endpoint = shop.backend.endpoint
    shop.stack.environment(DPAC_CONFIG_DIR=str(shop.folder / "no-contexts"))
    shop.program()
    with pytest.raises(auto.CommandError, match="No endpoint of a backend is known"):
        shop.stack.up()
    shop.stack.configure("dpac:sites.here.endpoint", endpoint.url)
    shop.stack.configure("dpac:sites.here.tokenFile", str(endpoint.token_file))
    shop.stack.up()
    shop.stack.refresh(expect_no_changes=True)
    shop.stack.destroy()
    assert shop.stack.resources() == {}


def test_a_token_that_may_not_is_a_message(shop: Shop) -> None:
    """A reader's token previews, and is told why it cannot update."""
    secret = shop.folder / "reader"
    with shop.backend.client() as client:
        secret.write_text(client.create_token(f"reader-{shop.name}", "read").secret)
    shop.stack.environment(DPAC_ENDPOINT=shop.backend.endpoint.url, DPAC_TOKEN_FILE=str(secret))
    shop.program()
    shop.stack.preview()
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.up()
    assert "Traceback" not in str(caught.value)
    assert "admin" in str(caught.value)
    assert secret.read_text() not in str(caught.value)
