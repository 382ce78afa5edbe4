"""One rule of a topology: a part of the model, as people name it, and the recipe it gets.

Modules are named as in this package, `model.layers.3.mlp.down_proj`; only regular expressions may
speak another dialect of names.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.recipes import Recipe

MAX_SHOWN = 60  # characters of what came that a message repeats

_MERGERS = ("visual.merger.", "visual.deepstack_merger_list.")
_STARTS = {
    "text": ("model.layers.",),
    "vision": ("visual.blocks.", *_MERGERS),
    "merger": _MERGERS,
    "embeddings": ("model.embed_tokens.",),
    "head": ("lm_head.",),
    "default": ("model.", "lm_head."),
}
_PART_OF_LAYER = {"model.layers": "text", "visual.blocks": "vision"}
_LAYER = re.compile(r"(model\.layers|visual\.blocks)\.(\d+)\.")
_RANGE = re.compile(r"([a-z]*) ?(-?[0-9]{1,9})(?:-(-?[0-9]{1,9}))?")


@dataclass(frozen=True)
class Rule:
    """One entry of a topology.

    Attributes:
        line: Where it stands in its file, from 1.
        key: Its part of the model, as it was written.
        recipe: What that part gets.
        part: The part's name; empty where a regular expression chooses weights.
        layers: The layers, where not the whole part is meant.
        pattern: The regular expression.
    """

    line: int
    key: str
    recipe: Recipe
    part: str
    layers: range | None = None
    pattern: re.Pattern[str] | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Of the rules that speak of one module, the last of the highest rank decides."""
        if self.pattern is not None:
            return 4, 0
        if self.layers is not None:
            return 3, self.layers.stop  # as in mistral.rs, the range that ends later wins
        return {"default": 0, "merger": 2}.get(self.part, 1), 0

    def speaks_of(self, path: str) -> bool:
        """Whether a module, by its name here, is meant."""
        if self.pattern is not None:
            return self.pattern.search(self.spelled(path)) is not None
        weight = f"{path}.weight"
        if self.layers is None:
            return weight.startswith(_STARTS[self.part])
        layer = _LAYER.match(weight)
        return (
            layer is not None
            and _PART_OF_LAYER[layer[1]] == self.part
            and int(layer[2]) in self.layers
        )

    def spelled(self, path: str) -> str:
        """The name of a module's weight in the dialect that the rule speaks (see `names.py`).

        Every expression speaks one dialect alone: one that excludes the vision tower by its name
        here must not meet it under another.
        """
        weight = f"{path}.weight"
        written = "" if self.pattern is None else self.pattern.pattern
        if "vision_tower" in written or re.search(r"language_model\\?\.(model|lm_head)", written):
            return to_mlx(weight)
        if "language_model" in written or re.search(r"model\\?\.visual", written):
            if weight.startswith("visual."):
                return f"model.{weight}"
            return re.sub(r"^model\.", "model.language_model.", weight)
        return weight


def read_rule(line: int, key: str, recipe: Recipe) -> Rule:
    """Make a rule of what people write.

    Args:
        line: Where it stands in its file.
        key: A part, layers such as `0-8` or `vision 3`, or a `/regex/`. Spaces and case matter in
            a regular expression only.
        recipe: What that part gets.

    Raises:
        OptionError: The key names no part of a Qwen2-VL.
    """
    if _is_regex(key):
        return Rule(line, key, recipe, "", None, _pattern(key[1:-1]))
    plain = squeezed(key)
    found = _RANGE.fullmatch(plain)
    part = plain if found is None else found[1] or "text"
    if part not in _STARTS:
        raise OptionError(
            f"unknown part {shown(key)}; expected layers such as 0-8, a /regex/, or one of "
            + ", ".join(_STARTS)
        )
    if found is None:
        return Rule(line, key, recipe, part)
    if part not in _PART_OF_LAYER.values():
        raise OptionError(f"{shown(key)} came, but {part} has no layers; expected {part}")
    first = int(found[2])
    end = first + 1 if found[3] is None else int(found[3])
    if first < 0 or end < 0:
        raise OptionError(f"{shown(key)} is negative; expected layers counted from 0")
    if end <= first:
        raise OptionError(
            f"{shown(key)} holds no layer, because the end is exclusive; expected an end above "
            f"{first}"
        )
    return Rule(line, key, recipe, part, range(first, end))


def squeezed(key: str) -> str:
    """A key without what does not matter in it: the case and most spaces of all but a regex."""
    if _is_regex(key):
        return key
    return re.sub(r" ?- ?", "-", " ".join(key.lower().split()))


def shown(text: str) -> str:
    """What came, fit for a message of one line."""
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def _is_regex(key: str) -> bool:
    return len(key) > 1 and key.startswith("/") and key.endswith("/")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        # What Python warns of, such as [[:digit:]], has another meaning in mistral.rs.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(text)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise OptionError(
            f"{shown(text)} came; expected a regular expression of Python: {error}"
        ) from None
