"""A raw image of a volume that something else made: a storage array, `dd`, `qemu-img`, a cloud's snapshot."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from dpac_api.errors import Invalid, NotFound
from dpac_engine.io.holes import data_ranges
from dpac_engine.io.members.volume_file import Descriptor, read_whole

_FORMATS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)
"""(Offset, bytes there, the format as qemu-img calls it)."""
_COMPRESSED = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh")
_HEAD_BYTES = 128


class RawImage:
    """A file or a device that is read, and never written (a `seeding.VolumeSource`)."""

    def __init__(self, path: Path) -> None:
        """NotFound or Invalid if it is no raw image that can be read. Blocks."""
        self.path = path
        try:
            self._fd = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            raise NotFound(f"{path} is not there. Name a raw image of the volume, or a device.") from None
        except OSError as error:
            raise Invalid(
                f"{path} cannot be read ({error.strerror}). Name a raw image that this user may read."
            ) from None
        kind = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            raise Invalid(f"{path} is neither a file nor a block device. Name a raw image of the volume.")
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def require_size(self, size_bytes: int) -> None:
        """Invalid unless it is as large as the volume, or is plainly no raw image. Blocks."""
        head = os.pread(self._fd, _HEAD_BYTES, 0)
        for at, magic, name in _FORMATS:
            if head[at : at + len(magic)] == magic and self.size_bytes != size_bytes:
                raise Invalid(
                    f"{self.path} is an image in the format {name}, not a raw one. Convert it first: "
                    f"qemu-img convert -f {name} -O raw {self.path} RAW."
                )
        if head.startswith(_COMPRESSED) and self.size_bytes != size_bytes:
            raise Invalid(f"{self.path} is compressed. Decompress it first.")
        if self.size_bytes != size_bytes:
            raise Invalid(
                f"{self.path} has {self.size_bytes} bytes and the volume {size_bytes}: it is another volume's, or was cut short. If the "
                f"volume has grown since, make the copy as large: truncate -s {size_bytes} {self.path}."
            )

    async def allocated(self, offset: int, length: int) -> list[tuple[int, int]]:
        """See `VolumeSource.allocated`."""
        return await asyncio.to_thread(self._allocated, offset, offset + length)

    def _allocated(self, begin: int, end: int) -> list[tuple[int, int]]:
        return [(start, stop - start) for start, stop in data_ranges(self._fd, begin, end)]

    async def read_for_seed(self, offset: int, length: int) -> tuple[int, bytes]:
        """See `VolumeSource.read_for_seed`: it is older than any record."""
        return 0, await asyncio.to_thread(read_whole, self._fd, offset, length)
