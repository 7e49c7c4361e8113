"""What only the backend's host can say about a declaration: do its paths exist, do they collide.

Everything here looks and changes nothing. Each problem is an error that names the property.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dpac_api.errors import Conflict, Invalid
from dpac_api.models import (
    SECTOR_BYTES,
    DirectorySpec,
    FilesystemTargetSpec,
    MemberSpec,
    S3TargetSpec,
    TargetSpec,
    VolumeSpec,
)
from dpac_engine.io.files import make_folder


class Claim(NamedTuple):
    """A path that something uses already: `what` says what, as in `member 'disk' of group 'shop'`."""

    path: str
    what: str
    directory: bool
    """Whether everything below the path is used as well."""
    group: str = ""
    """Whose member it is."""


def check_member(where: str, spec: MemberSpec, before: MemberSpec | None) -> None:
    """Refuse a member that cannot be attached on this host. `where` is its property path, `before` what it was so far."""
    if isinstance(spec, DirectorySpec):
        _check_directory(where, spec)
    else:
        _check_volume(where, spec, before if isinstance(before, VolumeSpec) and before.path == spec.path else None)


def _check_directory(where: str, spec: DirectorySpec) -> None:
    path = f"{where}.path"
    try:
        mode = os.stat(spec.path).st_mode
    except OSError as cause:
        raise Invalid(
            f"{spec.path} cannot be opened: {cause.strerror}. Create the directory first.", property_path=path
        ) from cause
    if not stat.S_ISDIR(mode):
        raise Invalid(f"{spec.path} is not a directory. Declare a raw file as a volume.", property_path=path)
    if not os.access(spec.path, os.R_OK | os.X_OK):
        raise Invalid(f"The backend may not read {spec.path}. Give its user read access.", property_path=path)


def _check_volume(where: str, spec: VolumeSpec, before: VolumeSpec | None) -> None:
    path = f"{where}.path"
    try:
        found = os.stat(spec.path)
    except FileNotFoundError:
        _check_new_file(where, spec)
        return
    except OSError as cause:
        raise Invalid(f"{spec.path} cannot be opened: {cause.strerror}.", property_path=path) from cause
    if not stat.S_ISREG(found.st_mode):
        raise Invalid(f"{spec.path} is not a regular file; a volume is a raw file.", property_path=path)
    if not os.access(spec.path, os.R_OK | os.W_OK):
        raise Invalid(f"The backend may not read and write {spec.path}. Give its user access.", property_path=path)
    if found.st_size % SECTOR_BYTES and (spec.size is None or spec.size.bytes < found.st_size):
        raise Invalid(
            f"{spec.path} has {found.st_size} bytes, which is not a multiple of {SECTOR_BYTES}. Give a larger size to round it up.",
            property_path=f"{where}.size",
        )
    _check_no_shrink(where, spec, before, found.st_size)


def _check_new_file(where: str, spec: VolumeSpec) -> None:
    if spec.size is None:
        raise Invalid(
            f"{spec.path} does not exist. Give a size to have it created, or create the file first.",
            property_path=f"{where}.size",
        )
    parent = Path(spec.path).parent
    if not parent.is_dir():
        raise Invalid(f"The folder {parent} does not exist. Create it first.", property_path=f"{where}.path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise Invalid(
            f"The backend may not create files in {parent}. Give its user access.", property_path=f"{where}.path"
        )


def _check_no_shrink(where: str, spec: VolumeSpec, before: VolumeSpec | None, present_bytes: int) -> None:
    if before is None or before.size is None or spec.size is None:
        return
    if spec.size.bytes < before.size.bytes and spec.size.bytes < present_bytes:
        raise Invalid(
            f"A volume never shrinks: {spec.path} has {present_bytes} bytes and {spec.size} was asked for instead of {before.size}. "
            f"Write {before.size} or more.",
            property_path=f"{where}.size",
        )


def check_overlaps(
    members: Mapping[str, MemberSpec], data: Path, targets: Iterable[Claim], others: Iterable[Claim]
) -> None:
    """Refuse members that lie in dpac's own folder or a target, contain one of them, or are claimed by another group.

    Invalid, or Conflict that names the other group.
    """
    forbidden = [Claim(str(data.resolve()), "dpac's own data folder", True), *targets]
    claims = list(others)
    mine: dict[str, Claim] = {}
    for name, spec in members.items():
        where = f"spec.members.{name}.path"
        real = real_path(spec.path)
        claim = Claim(real, f"member {name!r}", spec.kind == "directory")
        for other in (*forbidden, *mine.values()):
            if _overlap(claim, other):
                raise Invalid(
                    f"{spec.path} overlaps with {other.what} ({other.path}). Use a path apart from it.",
                    property_path=where,
                )
        for other in claims:
            if _overlap(claim, other) or _is_one_file(real, other.path):
                how = "is" if other.path == real else f"is or overlaps with {other.path},"
                raise Conflict(
                    f"{spec.path} {how} {other.what} already. A path belongs to one group; remove it there first.",
                    property_path=where,
                )
        mine[name] = claim


def check_target(spec: TargetSpec, data: Path, others: Iterable[Claim], members: Iterable[Claim]) -> None:
    """Refuse a target that this host cannot use, or that overlaps with dpac's folder, another target or a member."""
    if isinstance(spec, S3TargetSpec):
        _check_references(spec)
    else:
        _check_folder(spec)
        check_apart(spec.path, where_of(spec), members, data)
    claim = Claim(target_place(spec), "this target", True)
    for other in others:
        if _overlap(claim, other):
            raise Conflict(
                f"{spec.location} overlaps with {other.what} ({other.path}). Use that one, or another place.",
                property_path=where_of(spec),
            )


def target_place(spec: TargetSpec) -> str:
    """What two targets are compared by: they are at one place if it is equal, and one in the other if it lies below."""
    if isinstance(spec, S3TargetSpec):
        return f"s3://{(spec.endpoint or 'aws').lower()}/{spec.bucket}/{spec.prefix}".rstrip("/")
    return real_path(spec.path)


def where_of(spec: TargetSpec) -> str:
    """The property that says where a target is."""
    return "spec.bucket" if isinstance(spec, S3TargetSpec) else "spec.path"


def _check_references(spec: S3TargetSpec) -> None:
    """What the spec names on this host must be there; keys may come later, since they are read at each use."""
    if spec.ca_file is not None and not os.access(spec.ca_file, os.R_OK):
        raise Invalid(
            f"The certificates {spec.ca_file} cannot be read on the backend's host. Put them there, readable for its user.",
            property_path="spec.ca_file",
        )


def _check_folder(spec: FilesystemTargetSpec) -> None:
    where = "spec.path"
    path = Path(spec.path)
    if path.exists() and not path.is_dir():
        raise Invalid(f"{path} is not a directory.", property_path=where)
    if not path.exists() and not path.parent.is_dir():
        raise Invalid(
            f"The folder {path.parent} does not exist. Create it, or mount what shall be there.", property_path=where
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
        raise Invalid(f"The backend may not write to {path}. Give its user access.", property_path=where)


def make_target_folder(spec: TargetSpec) -> None:
    """Create a target's folder, checked before, if it is missing: replication never makes it, since a mount that is away
    must not be written beneath. Buckets are made by their owner."""
    if isinstance(spec, S3TargetSpec):
        return
    try:
        make_folder(Path(spec.path), 0o777)
    except OSError as cause:
        raise Invalid(f"{spec.path} cannot be created: {cause.strerror}.", property_path="spec.path") from cause


def check_restore_path(to: str, *, directory: bool) -> None:
    """Refuse a path to restore to that holds something already, or whose parent is missing."""
    path = Path(to)
    if not path.parent.is_dir():
        raise Invalid(f"The folder {path.parent} does not exist. Create it first.", property_path="to")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Invalid(f"The backend may not write to {path.parent}. Give its user access.", property_path="to")
    if not os.path.lexists(path):
        return
    if directory and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    raise Invalid(
        f"{to} exists already. Restore to a path that does not exist; nothing is ever overwritten.", property_path="to"
    )


def check_restore_over(to: str, kind: str) -> None:
    """Refuse a restore over what is no image or disk, or of what is no volume."""
    path = Path(to)
    if kind != "volume":
        raise Invalid(
            "Only a volume is restored over what is there. Restore the directory to a new path, or `in_place`.",
            property_path="over",
        )
    if not (path.is_file() or path.is_block_device()):
        raise Invalid(
            f"{to} is no file and no disk to restore over. Without `over` a new file is made.", property_path="to"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise Invalid(f"The backend may not read and write {to}. Give its user access.", property_path="to")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Invalid(
            f"The backend may not write to {path.parent}, where it notes how far it is. Give its user access.",
            property_path="to",
        )


def check_apart(path: str, where: str, used: Iterable[Claim], data: Path) -> None:
    """Refuse a path that overlaps with dpac's folder or with anything used already."""
    claim = Claim(real_path(path), "it", True)
    for other in (Claim(str(data.resolve()), "dpac's own data folder", True), *used):
        if _overlap(claim, other):
            raise Invalid(
                f"{path} overlaps with {other.what} ({other.path}). Use a path apart from it.", property_path=where
            )


def real_path(path: str) -> str:
    """The path with symbolic links resolved, as far as it exists: what two declarations are compared by."""
    return os.path.realpath(path)


def has_other_names(path: str) -> bool:
    """Whether the file has hard links."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1


def _is_one_file(one: str, two: str) -> bool:
    """Whether the two are names of one file."""
    try:
        return has_other_names(one) and os.path.samefile(one, two)
    except OSError:
        return False


def _overlap(one: Claim, two: Claim) -> bool:
    return (
        one.path == two.path
        or (one.directory and _below(two.path, one.path))
        or (two.directory and _below(one.path, two.path))
    )


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
