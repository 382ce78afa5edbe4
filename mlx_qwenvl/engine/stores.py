"""All that a loaded model keeps of earlier questions; `docs/caches.md` describes it for users."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlx_qwenvl.engine.agreed import ALONE, Agreed
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.disk_tier import DiskTier
from mlx_qwenvl.engine.feature_store import FEATURE_BYTES, FeatureStore
from mlx_qwenvl.engine.prefix_disk import PrefixDisk
from mlx_qwenvl.engine.prefix_store import PREFIX_BYTES, PREFIX_SHARE, PrefixStore
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.processor import PatchStore
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.weights.memory import memory_here

PATCH_BYTES = 64 * 2**20  # of pictures in uint8, 3 MB for a megapixel
DISK_VARIABLE = "MLX_QWENVL_DISK_CACHE"


@dataclass(frozen=True)
class Stores:
    """What is kept of earlier questions.

    Attributes:
        prefixes: Keys and values of their prompts and answers.
        features: Vision features of their pictures.
        patches: Their pictures, cut.
    """

    prefixes: PrefixStore
    features: FeatureStore
    patches: PatchStore

    @classmethod
    def of(
        cls,
        model: Model,
        prefix_bytes: int | None = None,
        feature_bytes: int | None = None,
        disk: DiskTier | None = None,
        agreed: Agreed = ALONE,
    ) -> Stores:
        """Empty stores of a model.

        Args:
            model: The model.
            prefix_bytes: Of memory; None for 1 GiB, or a sixteenth of the machine's
                where that is less.
            feature_bytes: Of memory; None for 256 MiB. 0 keeps no cut pictures either.
            disk: Where prefixes and features outlive the process.
            agreed: Gives the bounds that count.
        """
        for name, value in (("prefix_bytes", prefix_bytes), ("feature_bytes", feature_bytes)):
            if value is not None and value < 0:
                raise OptionError(f"{name} is {value}, expected a number of bytes from 0 up")
        if prefix_bytes is None:
            prefix_bytes = min(PREFIX_BYTES, memory_here() // PREFIX_SHARE)
        if feature_bytes is None:
            feature_bytes = FEATURE_BYTES
        prefix_bytes, feature_bytes = agreed.number(prefix_bytes), agreed.number(feature_bytes)
        blocks = None if disk is None else PrefixDisk(model, disk)
        return cls(
            PrefixStore(prefix_bytes, lambda kv: Conversation(model, kv), blocks),
            FeatureStore(feature_bytes, disk),
            PatchStore(min(feature_bytes, PATCH_BYTES)),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are kept."""
        return self.prefixes.nbytes + self.features.nbytes + self.patches.nbytes

    def make_room(self, nbytes: int) -> int:
        """Let the cheapest to compute anew go first until that many bytes are free.

        Returns:
            Bytes that are free now.
        """
        freed = self.patches.make_room(nbytes)
        for store in (self.prefixes, self.features):
            if freed < nbytes:
                freed += store.make_room(nbytes - freed)
        return freed


def disk_folder(asked: str | Path | bool | None) -> Path | None:
    """Where to keep a disk tier: the asked folder, `$MLX_QWENVL_DISK_CACHE`, or None for nowhere.

    Args:
        asked: A folder, True for the variable's or else the user's cache folder, False for none,
            None for the variable's or else none.
    """
    named = os.environ.get(DISK_VARIABLE)
    if asked is False or (asked is None and not named):
        return None
    if asked is None or asked is True:
        base = os.environ.get("XDG_CACHE_HOME")
        return Path(named or base or Path.home() / ".cache")
    if not str(asked):
        raise OptionError("disk_cache is empty, expected a folder")
    return Path(asked)
