"""What is needed to make a starting point of a raw image at a target: who the group is there, and the key that its copies have.

A backend writes it to a file for another site, which has the image and the target at hand, and none of this site's keys.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dpac_api.errors import Conflict, Invalid, NotFound
from dpac_api.models import Model, Name, TargetSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.io.files import write_new_file
from dpac_engine.io.keys import Keyring

FORMAT = 1


class PreseedKit(Model):
    """Of one group and one target."""

    format: int = FORMAT
    target: Name
    target_spec: TargetSpec
    shards: list[WorkerAssignment]
    sizes_bytes: dict[Name, int]
    """Volume -> how large it is."""
    wrapped_key: str
    """The data key as it lies at targets, hex."""
    plain_key: str
    """The data key, hex: whoever has it can read every copy of the group."""

    def wrapped(self, key_id: str) -> bytes:
        """See `keys.Keyring.wrapped`."""
        return self._if_known(key_id, self.wrapped_key)

    def data_key(self, key_id: str) -> bytes:
        """See `keys.Keyring.data_key`."""
        return self._if_known(key_id, self.plain_key)

    def _if_known(self, key_id: str, key: str) -> bytes:
        if key_id != self.shards[0].key_id:
            raise NotFound(
                f"The kit has no data key {key_id}. Write another one on the group's host: dpac target preseed-kit."
            )
        return bytes.fromhex(key)

    def shard_of(self, member: str) -> WorkerAssignment:
        """The shard that has a volume. NotFound if there is no such member, Invalid if it is no volume."""
        first = self.shards[0]
        if member not in first.spec.members:
            names = ", ".join(first.spec.members)
            raise NotFound(f"The group {first.name} has no member {member!r}. Its members are {names}.")
        if member not in self.sizes_bytes:
            raise Invalid(
                f"The member {member!r} is no volume, and a raw image is one of a volume. Its own first copy is sent."
            )
        return next(shard for shard in self.shards if member in shard.own_members)

    def write(self, path: Path) -> None:
        """To a new, private file. Conflict if there is one, Invalid if it cannot be written."""
        write_new_file(path, self.model_dump_json(indent=2).encode())


def read_kit(path: Path) -> PreseedKit:
    """NotFound or Invalid if the file is none."""
    try:
        kit = PreseedKit.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path} is not there. Write it on the group's host: dpac target preseed-kit.") from None
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        raise Invalid(
            f"{path} is not what `dpac target preseed-kit` writes ({error.error_count()} mistakes)."
        ) from None
    if kit.format != FORMAT:
        raise Invalid(
            f"{path} has format {kit.format}, and this dpac reads {FORMAT}. Use the same version on both sites."
        )
    return kit


def make_kit(folders: Path, keyring: Keyring, group_uid: str, target: str, spec: TargetSpec) -> PreseedKit:
    """From what lies on the group's host; `folders` has the groups' (`site.groups`). NotFound if the group is not served from there.

    Conflict where a volume's size cannot be told. Blocks.
    """
    shards = [_assignment(folders / group_uid)]
    shards += [_assignment(folders / f"{group_uid}.{number}") for number in range(1, shards[0].shards)]
    sizes = {
        name: _size_bytes(member.path, member.size.bytes if member.size else 0)
        for name, member in shards[0].spec.members.items()
        if member.kind == "volume"
    }
    key_id = shards[0].key_id
    return PreseedKit(
        target=target,
        target_spec=spec,
        shards=shards,
        sizes_bytes=sizes,
        wrapped_key=keyring.wrapped(key_id).hex(),
        plain_key=keyring.data_key(key_id).hex(),
    )


def _assignment(folder: Path) -> WorkerAssignment:
    try:
        return WorkerAssignment.model_validate_json((folder / "assignment.json").read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{folder} has no such group. Run this on its host, with the --data of its backend.") from None


def _size_bytes(path: str, declared: int) -> int:
    try:
        size = max(Path(path).stat().st_size, declared)
    except OSError:
        size = declared
    if not size:
        raise Conflict(f"How large the volume {path} is cannot be told: it is not there, and declares no `size`.")
    return size
