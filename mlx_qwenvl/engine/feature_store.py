"""Vision features that were computed before, by the content of the picture.

The key is the SHA-256 of the patches with their grid (`ImagePatches.digest`), so neither a path nor
a URL nor a size can stand for another picture. Of a video each temporal patch is kept by its own
(`TemporalPatch.digest`). A store belongs to one loaded model.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_qwenvl.engine.disk_tier import DiskTier
from mlx_qwenvl.lru import BoundedStore

FEATURE_BYTES = 256 * 2**20  # kept by default; a picture of a megapixel is 4 MB at the 2B in bf16
_KIND = "features"


class FeatureStore:
    """Features by digest; the least recently used go first.

    Args:
        limit: Bytes to keep in memory at most; 0 keeps nothing there.
        disk: Where they outlive the process, or None.

    Attributes:
        hits: Times that features were asked for and found.
        misses: Times that they were not.
    """

    def __init__(self, limit: int, disk: DiskTier | None = None) -> None:
        self.hits = self.misses = 0
        self._kept: BoundedStore[bytes, mx.array] = BoundedStore(limit)
        self._disk = disk

    @property
    def nbytes(self) -> int:
        """Bytes that are kept in memory."""
        return self._kept.nbytes

    def get(self, digest: bytes) -> mx.array | None:
        """Features [n, D] of a picture that is to be looked at, or None where they are not kept."""
        found = self._find(digest)
        self.hits += found is not None
        self.misses += found is None
        return found

    def holds(self, digest: bytes) -> bool:
        """Whether features of a picture are kept."""
        return self._find(digest) is not None

    def _find(self, digest: bytes) -> mx.array | None:
        found = self._kept.get(digest)
        if found is None and self._disk is not None:
            arrays = self._disk.get(_KIND, digest)
            if arrays is not None:
                (found,) = arrays
                self._kept.put(digest, found, found.nbytes)
        return found

    def put(self, digest: bytes, features: mx.array) -> None:
        """Keep evaluated features [n, D], and let older ones go where they do not all fit."""
        self._kept.put(digest, features, features.nbytes)
        if self._disk is not None:
            self._disk.put(_KIND, digest, [features])

    def make_room(self, nbytes: int) -> int:
        """Let features go until that many bytes of memory are free; give how many are."""
        return self._kept.make_room(nbytes)
