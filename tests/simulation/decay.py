"""Histories after which a volume's own file rots, while the process is dead: what may come of that, and what may not.

dpac keeps no checksums of a live volume: that a sector of its file is not what was written there is not found by reading it, and a copy
that is made of the whole file from then on (a new leg, a resync, a change behind dpac's back) has the rotten sector, and so its checkpoints.
What must be true: as long as no such copy is made, none of it reaches a target. Every checkpoint, of before and after, has what clients wrote,
until they write there again; and who brings the volume back to one has it whole again.
"""

from __future__ import annotations

from typing import Any

from tests.simulation import stage
from tests.simulation.history import History, path_of
from tests.simulation.oracle import SECTOR


class Decay(History):
    """One such history."""

    def __init__(self, seed: int, defects: stage.Defects) -> None:
        super().__init__(seed, defects, steps=20)
        self.rotten: dict[int, set[int]] = {}
        """Ordinal -> sectors of its file that are not what clients wrote, or wrote to since."""
        self._rotting = self._settled = False

    def run(self) -> None:
        """Lives of which the last ends whole, rot, and one life more."""
        super().run()
        if not self._settled or any(target.rotten for target in self.targets.values()) or self.fenced:
            return  # a copy is still to be made, or may be made anew
        self._rotting = True
        for ordinal in sorted(self.members.values()):
            self.rotten[ordinal] = set()
            node = self.host.disk.find(path_of(ordinal))
            for page in self.chance.sample(sorted(node.pages), min(3, len(node.pages))):
                at = page * 4096 + self.chance.randrange(4096)
                if at < self.devices[ordinal].size_bytes:
                    self.host.rot(node, at, self.chance)
                    self.rotten[ordinal].add(at // SECTOR * SECTOR)
        self.world.note(f"rot in the volumes' files: {self.rotten}")
        self.sync.clear()
        self.generation += 1
        self._live(last=True)
        self._check_targets()

    async def _settle(self) -> None:
        await super()._settle()
        self._settled = True

    def _more_steps(self) -> list[tuple[Any, int]]:
        return [(self._write, 30)] if self._rotting else []

    def _break_disk(self) -> None:
        if not self._rotting:  # once a journal has failed, every target is copied anew
            super()._break_disk()

    async def _change_spec(self) -> None:
        if not self._rotting:  # a new leg gets a copy
            await super()._change_spec()

    def _change_target(self) -> None:
        super()._change_target()
        for target in self.targets.values():
            target.away = target.away and not self._rotting  # a leg that falls out of the spool gets blocks of the file

    def _found(self, ordinal: int, content: bytes, at: int = 0) -> bytes:
        """What a client reads, with what it wrote in the place of sectors that rotted."""
        device, read = self.devices[ordinal], bytearray(content)
        for sector in self.rotten.get(ordinal, ()):
            if at <= sector < at + len(content):
                read[sector - at : sector - at + SECTOR] = device.content[sector : sector + SECTOR]
        return bytes(read)
