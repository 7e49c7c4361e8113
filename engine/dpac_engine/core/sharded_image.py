"""A group of several shards at a checkpoint: each member is read from its own shard."""

from __future__ import annotations

from collections.abc import Mapping

from dpac_api.errors import NotFound
from dpac_engine.core.image import Image, TreeImage, VolumeImage


class ShardedImage:
    """Members by ordinal, as of one image."""

    def __init__(self, images: Mapping[int, Image]) -> None:
        """`images`: ordinal -> the image of the member's shard."""
        self._images = images

    def volume(self, ordinal: int) -> VolumeImage:
        """See `Image.volume`."""
        return self.of(ordinal).volume(ordinal)

    def tree(self, ordinal: int) -> TreeImage:
        """See `Image.tree`."""
        return self.of(ordinal).tree(ordinal)

    def of(self, ordinal: int) -> Image:
        """The image of the member's shard; NotFound if the checkpoint does not hold the member."""
        if ordinal not in self._images:
            raise NotFound(f"The checkpoint does not hold the member {ordinal}: it was not protected yet then.")
        return self._images[ordinal]
