"""Vision features that were computed before, by the content of the picture.

The key is the SHA-256 of the patches with their grid (`ImagePatches.digest`), so neither a path nor
a URL nor a size can stand for another picture. A store belongs to one loaded model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import mlx.core as mx

FEATURE_BYTES = 256 * 2**20  # kept by default; a picture of a megapixel is 4 MB at the 2B in bf16


class FeatureStore:
    """Features by digest; the least recently used go first.

    Args:
        limit: Bytes to keep at most; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._features: OrderedDict[bytes, mx.array] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def get(self, digest: bytes) -> mx.array | None:
        """Features [n, D] of a picture, or None where they are not kept."""
        with self._lock:
            found = self._features.get(digest)
            if found is not None:
                self._features.move_to_end(digest)
            return found

    def put(self, digest: bytes, features: mx.array) -> None:
        """Keep evaluated features [n, D], and let older ones go where they do not all fit."""
        with self._lock:
            if digest in self._features or features.nbytes > self._limit:
                return
            self._features[digest] = features
            self.nbytes += features.nbytes
            while self.nbytes > self._limit:
                self.nbytes -= self._features.popitem(last=False)[1].nbytes
