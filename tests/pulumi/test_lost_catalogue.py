"""A site whose catalogue was lost and rebuilt, under the real CLI: the same resources, and nothing to do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pulumi.automation as auto
import pytest

from tests.pulumi.conftest import Backend, Shop

pytestmark = pytest.mark.pulumi


def test_up_refuses_while_it_is_lost_and_is_empty_once_it_is_rebuilt(
    tmp_path: Path, pulumi_env: dict[str, str], another_backend: Backend
) -> None:
    """A refresh in between forgets nothing; afterwards uid and owner are the same: no diff, and a change is applied without `adopt`."""
    shop = Shop(tmp_path, "phoenix", pulumi_env, another_backend)
    shop.program()
    shop.stack.up()
    uid = shop.group().uid
    data = another_backend.folder / "site"
    another_backend.dpac("stop", "--data", str(data))
    (data / "catalogue.sqlite").unlink()
    with pytest.raises(AssertionError, match="is missing"):
        another_backend.dpac("serve", "--detach", "--data", str(data), "--workers", "1")
    with pytest.raises(auto.CommandError, match="dpac catalogue rebuild") as refused:
        shop.stack.refresh()
    assert "Traceback" not in str(refused.value)
    another_backend.dpac("catalogue", "rebuild", "--data", str(data))

    def taken_up() -> bool:
        with suppress(AssertionError):  # until then it answers that the catalogue is lost
            return "phoenix" in another_backend.dpac("status")
        return False

    shop.until(taken_up, "control has taken it up")
    assert shop.group().uid == uid
    shop.stack.up(expect_no_changes=True)
    shop.stack.refresh(expect_no_changes=True)
    shop.program(replication=shop.legs(daily=7))
    shop.stack.up()
    assert shop.group().spec.replication["copies"].retention.daily == 7
