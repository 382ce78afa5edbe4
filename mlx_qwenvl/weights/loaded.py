"""What a model became in memory: how many weights, in which formats, how many bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mlx.utils import tree_flatten

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.recipes import Format


@dataclass(frozen=True)
class Loaded:
    """A loaded model in numbers.

    Attributes:
        parameters: Weights of the checkpoint's shape, however they are kept.
        decoder: What the decoder's matrices are kept in, the most bytes first: "4bit", "float32".
        tower: The same of the vision tower.
        nbytes: Of all arrays.
    """

    parameters: int
    decoder: tuple[str, ...]
    tower: tuple[str, ...]
    nbytes: int

    @property
    def formats(self) -> str:
        """What the matrices are kept in, in words."""
        decoder, tower = " + ".join(self.decoder), " + ".join(self.tower)
        return decoder if decoder == tower else f"{decoder}; the vision tower {tower}"


def look_at(model: Model) -> Loaded:
    """Count a loaded model's arrays; nothing is computed."""
    packed = {
        path: str(Format(module.bits, module.group_size, module.mode))
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }
    decoder, tower, total = Counter[str](), Counter[str](), 0
    for name, array in tree_flatten(model.parameters()):
        total += array.nbytes
        path = name.rpartition(".")[0]
        if array.ndim > 1 and path != PATCH_EMBED:  # which is folded, and float32 always
            dtype = str(array.dtype).removeprefix("mlx.core.")
            part = tower if name.startswith("visual.") else decoder
            part[packed.get(path, dtype)] += array.nbytes
    return Loaded(_parameters(model.config), _by_bytes(decoder), _by_bytes(tower), total)


def _by_bytes(counted: Counter[str]) -> tuple[str, ...]:
    return tuple(form for form, _ in counted.most_common())


def _parameters(config: Config) -> int:
    """Weights of a checkpoint of that shape: the patch embedding unfolded."""
    sizes = {name: array.size for name, array in tree_flatten(build(config).parameters())}
    made = 0 if config.vision.has_patch_bias else sizes[f"{PATCH_EMBED}.bias"]
    return sum(sizes.values()) - made
