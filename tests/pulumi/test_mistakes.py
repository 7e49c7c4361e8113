"""A user's mistake is told by the real CLI as a message that names the property."""

from __future__ import annotations

import pulumi.automation as auto
import pytest

from tests.pulumi.conftest import Backend, Shop
from tests.tools import pulumi_environment

pytestmark = pytest.mark.pulumi


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, backend: Backend) -> Shop:
    """One shop for all: a mistake leaves nothing behind but the targets."""
    folder = tmp_path_factory.mktemp("mistakes")
    return Shop(folder, "mistakes", pulumi_environment(folder / "pulumi"), backend)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"members": '{"disk": dpac.Volume("/d/disk.raw", size="64xiB")}'}, ("members.disk.size", "is not a size")),
        ({"members": '{"disk": "/d/disk.raw"}'}, ("members.disk must be dpac.Volume",)),
        ({"journal": 'dpac.Journal(history="soon")'}, ("journal.history", "is not a duration")),
        ({"name": '"My Shop"'}, ("name", "Lower-case letters")),
        ({"replication": '{"copies": dpac.Async(to=dpac.get_target("nowhere"))}'}, ("get_target('nowhere')",)),
    ],
    ids=["size", "kind", "duration", "name", "target"],
)
def test_a_mistake_is_found_in_the_preview(shop: Shop, changes: dict[str, str], says: tuple[str, ...]) -> None:
    """By its property, with what would be right, and without a traceback."""
    shop.program(**changes)
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.preview()
    said = str(caught.value)
    assert all(part in said for part in says), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"members": '{"orders": dpac.Directory("/nowhere/at/all")}'}, ("members.orders.path", "/nowhere/at/all")),
        ({"replication": '{"copies": dpac.Async(to="nowhere")}'}, ("replication.copies.target", "nowhere")),
    ],
    ids=["path", "target"],
)
def test_what_only_the_site_can_know_is_told_by_up(shop: Shop, changes: dict[str, str], says: tuple[str, ...]) -> None:
    """In the program's words too, and without a traceback."""
    shop.program(**changes)
    with pytest.raises(auto.CommandError) as caught:
        shop.stack.up()
    said = str(caught.value)
    assert all(part in said for part in says), said
    assert "Traceback" not in said
    assert "spec." not in said
