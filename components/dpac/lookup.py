"""What a program may ask a backend: groups with their status, checkpoints, targets. Read at every preview and update."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

import pulumi

from dpac.arguments import Mistake, Site, name_of
from dpac.component import site_name
from dpac.group import ProtectionGroup
from dpac_api.client import Client
from dpac_api.errors import DpacError
from dpac_api.models import Checkpoint, Group, GroupStatus, Target
from dpac_provider import session

Found = TypeVar("Found")


class GroupView(Group):
    """A group with its status: `get_group("shop").status.protected`."""

    status: GroupStatus


def get_group(group: ProtectionGroup | pulumi.Input[str], *, site: Site | None = None) -> pulumi.Output[GroupView]:
    """A group and its status: states, RPO, conditions. What changes by itself is here and not in `ProtectionGroup`.

    :param group: The group, which is then asked about once it is made, or the name of one that exists.
    :param site: Which backend, where there are several.
    """

    def ask(client: Client, name: str) -> GroupView:
        found = client.group(name)
        return GroupView(**dict(found), status=client.group_status(name))

    return _asked("get_group", group, site, ask)


def get_checkpoints(
    group: ProtectionGroup | pulumi.Input[str],
    *,
    limit: int = 100,
    tag: str | None = None,
    app: bool | None = None,
    target: str | None = None,
    site: Site | None = None,
) -> pulumi.Output[list[Checkpoint]]:
    """A group's checkpoints, newest first.

    :param group: The group, which is then asked about once it is made, or the name of one that exists.
    :param limit: The most to return; there is about one a second.
    :param tag: Only those with this tag.
    :param app: Only those that are application-consistent, or, if False, that are not.
    :param target: Only those that this target holds.
    :param site: Which backend, where there are several.
    """

    def ask(client: Client, name: str) -> list[Checkpoint]:
        return list(islice(client.every_checkpoint(name, tag=tag, app=app, target=target), limit))

    return _asked("get_checkpoints", group, site, ask)


def get_target(name: pulumi.Input[str], *, site: Site | None = None) -> pulumi.Output[Target]:
    """A target that another stack declared, or the CLI made: `Async(to=dpac.get_target("shared"))`.

    :param name: The target's name on the site.
    :param site: Which backend, where there are several.
    """
    return _asked("get_target", name, site, lambda client, known: client.target(known))


def _asked(what: str, whom: Any, site: Site | None, ask: Callable[[Client, str], Found]) -> pulumi.Output[Found]:
    place = site_name(what, site, whom)
    sites = pulumi.Config("dpac").get("sites")

    def blocking(name: str) -> Found:
        session.configure(sites)
        try:
            return ask(session.connect(place, None), name)
        except DpacError as error:
            raise Mistake(f"{what}({name!r}): {error.message}") from None

    async def answer(parts: list[Any]) -> Found:
        return await asyncio.to_thread(blocking, parts[0])

    # A group's uid is unknown until it is made: then nothing is asked in a preview.
    awaited = [whom.uid] if isinstance(whom, ProtectionGroup) else []
    return pulumi.Output.all(name_of(whom), *awaited).apply(answer)
