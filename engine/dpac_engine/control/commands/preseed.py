"""`dpac target preseed`: a copy that something else made becomes what a leg starts from.

Works on a target itself: it is to run where the image is. The key comes from the data folder, or in a kit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpac_engine.control.commands.session import (
    DATA,
    DataFolder,
    GroupName,
    Json,
    aside,
    chosen,
    client,
    print_json,
    say,
    size,
)
from dpac_engine.control.commands.targets import TargetName

if TYPE_CHECKING:
    from dpac_engine.control.preseed_kit import PreseedKit

TELL_SECONDS = 2.0


def preseed(
    target: TargetName,
    member: Annotated[str, typer.Argument(metavar="GROUP/MEMBER", help="The volume that the image is a copy of.")],
    image: Annotated[
        Path,
        typer.Option("--from", metavar="RAW", help="A raw image or a block device, on this host. It is only read."),
    ],
    kit: Annotated[
        Path | None,
        typer.Option("--kit", metavar="FILE", help="On another host than the group's: what preseed-kit wrote there."),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            "--path", metavar="DIR", help="Where a filesystem target's directory is on this host, if elsewhere."
        ),
    ] = None,
    data: DataFolder = DATA,
    json: Json = False,
) -> None:
    """Make a starting point of a raw image at a target that has nothing of the group yet: its leg then sends what differs. Killed and run again, it
    goes on where it was."""
    import asyncio
    from dataclasses import asdict

    from dpac_api.errors import Invalid, NotFound
    from dpac_engine.control.preseeding import Preseeding
    from dpac_engine.io.clock import SystemClock
    from dpac_engine.io.raw_image import RawImage

    group, slash, name = member.partition("/")
    if not slash:
        raise Invalid(f"{member!r} names no member. Write GROUP/MEMBER, such as shop/disk.")
    found = _read(kit, target) if kit else _made(data, target, group)
    if found.shards[0].name != group:
        raise NotFound(f"{kit} is of the group {found.shards[0].name!r}, not of {group!r}.")
    found = _placed(found, path)
    shard = found.shard_of(name)
    source = RawImage(image.expanduser().absolute())
    source.require_size(found.sizes_bytes[name])
    assert chosen.open_preseed is not None, "the wiring sets it"

    writer = chosen.open_preseed(found, shard)
    done = asyncio.run(Preseeding(writer, shard, name, source, SystemClock(), _Told(source.size_bytes)).run())
    if json:
        print_json(asdict(done))
        return
    say(f"The target {target} has {image} as a starting point for {member} ({size(done.stored_bytes)} there).")
    say("Declare the group's leg to it: it compares, and sends what differs.")


def preseed_kit(
    target: TargetName,
    group: GroupName,
    to: Annotated[
        Path,
        typer.Option("--to", dir_okay=False, help="A new file (0600). Whoever has it can read the group's copies."),
    ],
    data: DataFolder = DATA,
) -> None:
    """Write what `dpac target preseed` needs on another host: who the group is, and its data key."""
    _made(data, target, group).write(to.expanduser().absolute())
    say(
        f"{to} has the data key of {group}: whoever has it can read every copy. Take it to the host that has the image, then:"
    )
    say(f"  dpac target preseed {target} {group}/MEMBER --from RAW --kit {to.name}")
    say("Delete it on both hosts afterwards.")


class _Told:
    """Says how far it is, now and then."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._at = 0.0

    def __call__(self, done_bytes: int) -> None:
        if time.monotonic() >= self._at or done_bytes == self._total_bytes:
            self._at = time.monotonic() + TELL_SECONDS
            aside().print(f"{size(done_bytes)} of {size(self._total_bytes)}", soft_wrap=True)


def _made(data: Path, target: str, group: str) -> PreseedKit:
    from dpac_engine.control.preseed_kit import make_kit
    from dpac_engine.control.site import Site
    from dpac_engine.io.keys import Keyring

    site = Site.read(data.expanduser().absolute())
    with client() as backend:
        spec, uid = backend.target(target).spec, backend.group(group).uid
    return make_kit(site.groups, Keyring(site.keys), uid, target, spec)


def _read(file: Path, target: str) -> PreseedKit:
    from dpac_api.errors import NotFound
    from dpac_engine.control.preseed_kit import read_kit

    kit = read_kit(file.expanduser())
    if kit.target != target:
        raise NotFound(f"{file} is for the target {kit.target!r}, not for {target!r}. Write another kit for that.")
    return kit


def _placed(kit: PreseedKit, path: Path | None) -> PreseedKit:
    from dpac_api.errors import Invalid
    from dpac_api.models import FilesystemTargetSpec

    if path is None:
        return kit
    if not isinstance(kit.target_spec, FilesystemTargetSpec):
        raise Invalid(f"The target {kit.target} is a bucket, and --path is for directories. Leave it out.")
    at = kit.target_spec.model_copy(update={"path": str(path.expanduser().absolute())})
    return kit.model_copy(update={"target_spec": at})
