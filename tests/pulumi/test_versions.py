"""Programs and backends of different releases: refused with which of them to upgrade, before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi.automation as auto
import pytest

from dpac_engine.control.property_paths import invalid
from tests.fake_site import TOKEN, Call, FakeSite
from tests.stack import Stack

pytestmark = pytest.mark.pulumi
PROGRAM = 'dpac.FilesystemTarget("copies", path="/mnt/copies")'


class OlderSite(FakeSite):
    """A site that knows no `shiny`, which this program's dpac is taken to send."""

    def _routed(self, call: Call) -> Any:
        if call.method == "PUT":
            raise invalid([{"type": "extra_forbidden", "loc": ("body", "spec", "shiny"), "msg": ""}], call.body)
        return super()._routed(call)


def refused(tmp_path: Path, pulumi_env: dict[str, str], site: FakeSite) -> str:
    """What `pulumi up` of a program with a target says when it fails."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with site.serving() as url:
        variables = {"DPAC_ENDPOINT": url, "DPAC_TOKEN_FILE": str(token)}
        stack = Stack(tmp_path / "program", {**pulumi_env, **variables})
        stack.write(PROGRAM)
        with pytest.raises(auto.CommandError) as failure:
            stack.up()
    assert "Traceback" not in str(failure.value)
    assert site.targets == {}
    return str(failure.value)


@pytest.mark.parametrize(("oldest", "best", "side"), [(2, 3, "client"), (0, 0, "backend")])
def test_versions_that_do_not_overlap(
    tmp_path: Path, pulumi_env: dict[str, str], oldest: int, best: int, side: str
) -> None:
    """The one that is behind is named."""
    said = refused(tmp_path, pulumi_env, FakeSite(api_version=best, api_version_oldest=oldest))
    assert f"upgrade the {side}" in said.lower()


def test_a_property_that_an_older_backend_does_not_know(tmp_path: Path, pulumi_env: dict[str, str]) -> None:
    """The property is named, and what to do: the words of the backend's own refusal come through."""
    site = OlderSite()
    said = refused(tmp_path, pulumi_env, site)
    assert "upgrade the backend" in said
    assert "shiny" in said
