"""Which module is quantized how: a recipe, bits for the vision tower, and a topology in one table.

The converter and the loader make the same plan of the same wishes, so that converting first and
quantizing at load give the same weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.experts import can_be_quantized
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.recipes import Format, Recipe, read_recipe
from mlx_qwenvl.weights.topology import Topology

PATCH_EMBED = "visual.patch_embed.proj"


@dataclass(frozen=True)
class Plan:
    """What becomes of every module that has a matrix.

    Attributes:
        formats: Formats of the modules to quantize, by their paths here.
        ungrouped: Modules that should be quantized and stay dense, each with the reason.
        notes: What to tell the person who wished it so.
    """

    formats: dict[str, Format]
    ungrouped: dict[str, str]
    notes: tuple[str, ...] = ()

    def statement(self) -> dict[str, Any] | None:
        """The `quantization` of `config.json`, or None where nothing is quantized.

        The commonest format stands at the top; modules that differ follow, by the names that
        mlx-community folders give them.
        """
        if not self.formats:
            return None
        common = Counter(self.formats.values()).most_common(1)[0][0]
        others: dict[str, Any] = {
            to_mlx(path): form.statement() for path, form in self.formats.items() if form != common
        }
        others |= {to_mlx(path): False for path in self.ungrouped}
        return {**common.statement(), **others}


def make_plan(
    config: Config,
    recipe: Recipe,
    *,
    vision: Recipe | None = None,
    topology: Topology | None = None,
) -> Plan:
    """Decide for every linear layer and embedding.

    Args:
        config: Shape of the model.
        recipe: For the decoder, its embedding and its head.
        vision: For the vision tower. By default it stays dense: it is a few large matmuls, faster
            in 16 bits, and the part whose loss shows first.
        topology: Rules that go before both.

    Raises:
        OptionError: A rule of the topology speaks of what the model does not have.
    """
    notes = [recipe.note] if recipe.note else []
    if topology is not None:
        notes += [*topology.notes, *topology.check(config)]
    layers = config.text.num_hidden_layers
    formats: dict[str, Format] = {}
    ungrouped: dict[str, str] = {}
    for path, module in build(config).named_modules():
        if not can_be_quantized(module):
            continue
        chosen = topology.recipe_of(path) if topology is not None else None
        if chosen is None:
            chosen = recipe if not path.startswith("visual.") else vision
        form = chosen.format_of(path, layers) if chosen is not None else None
        if form is None:
            continue
        inputs = module.weight.shape[-1]
        if path == PATCH_EMBED:
            inputs *= config.vision.temporal_patch_size  # the checkpoint's; ours has one frame
        if inputs % form.group_size:
            ungrouped[path] = f"its rows of {inputs} make no groups of {form.group_size}"
        elif path == PATCH_EMBED:
            ungrouped[path] = "it is a convolution"
        else:
            formats[path] = form
    return Plan(formats, ungrouped, tuple(notes))


def vision_recipe(bits: int | None, group_size: int | None = None) -> Recipe | None:
    """The recipe for a vision tower of so many bits; 16 and None leave it dense.

    Raises:
        OptionError: MLX has no such number of bits.
    """
    return None if bits in (None, 16) else read_recipe(f"{bits}bit", group_size)
