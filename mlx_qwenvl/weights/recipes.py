"""Names of quantizations: what people write, and what it means for each module.

MLX's own names are `4bit`, `mxfp4` and so on; `-g32` behind an affine one sets its group size.
The mixed recipes are mlx-lm's: a low number of bits, and a higher one for the value and down
projections of the layers where loss costs most. Names of llama.cpp and mistral.rs are taken too
and become the nearest of these, which is said aloud.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_qwenvl.errors import OptionError

GROUP_SIZE = 64  # weights that share a scale, where nothing else is asked for
GROUP_SIZES = (32, 64, 128)  # those that MLX has for affine formats


@dataclass(frozen=True)
class Format:
    """How a module's weights are quantized.

    Attributes:
        bits: Bits per weight.
        group_size: Weights that share a scale.
        mode: MLX's name of the number format.
    """

    bits: int
    group_size: int
    mode: str

    def statement(self) -> dict[str, int | str]:
        """As `config.json` states it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def __str__(self) -> str:
        """The recipe of this format alone."""
        if self.mode != "affine":
            return self.mode
        return f"{self.bits}bit" + ("" if self.group_size == GROUP_SIZE else f"-g{self.group_size}")


@dataclass(frozen=True)
class Recipe:
    """What a name means.

    Attributes:
        name: The name here, whatever alias was written.
        low: Format of most modules; None leaves them dense.
        high: Format of the sensitive ones, equal to `low` but in mixed recipes.
        note: What to tell the person who wrote an alias, or nothing.
    """

    name: str
    low: Format | None
    high: Format | None
    note: str = ""

    def format_of(self, path: str, layers: int) -> Format | None:
        """Format of a module of the decoder.

        Args:
            path: The module, by its name here.
            layers: Layers of the decoder.
        """
        if self.low == self.high:
            return self.low
        return self.high if _is_sensitive(path, layers) else self.low


_AFFINE = {f"{bits}bit": Format(bits, GROUP_SIZE, "affine") for bits in (2, 3, 4, 5, 6, 8)}
_FLOATS = {
    "mxfp4": Format(4, 32, "mxfp4"),
    "mxfp8": Format(8, 32, "mxfp8"),
    "nvfp4": Format(4, 16, "nvfp4"),
}
_MIXED = {
    f"mixed_{low}_{high}": (_AFFINE[f"{low}bit"], _AFFINE[f"{high}bit"])
    for low, high in ((2, 6), (3, 4), (3, 6), (4, 6))
}
RECIPES: Mapping[str, tuple[Format | None, Format | None]] = {
    "none": (None, None),
    **{name: (form, form) for name, form in (_AFFINE | _FLOATS).items()},
    **_MIXED,
}

# The same thing under another name: AFQ is mistral.rs's word for MLX's affine formats.
_SYNONYMS = {
    **{str(bits): f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)},
    **{f"afq{bits}": f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)},
    **dict.fromkeys(("f16", "bf16", "f32", "fp16", "dense"), "none"),
}
# Another format of about the same size; underscores are left out.
_NEAREST = {
    **dict.fromkeys(("q2k", "q2ks"), "2bit"),
    **dict.fromkeys(("q3k", "q3ks"), "3bit"),
    **dict.fromkeys(("q40", "q41", "q4k", "q4ks", "hqq4", "iq4xs", "iq4nl"), "4bit"),
    **dict.fromkeys(("q50", "q51", "q5k", "q5ks", "q5km"), "5bit"),
    "q6k": "6bit",
    **dict.fromkeys(("q80", "q81", "q8k", "hqq8"), "8bit"),
    **dict.fromkeys(("fp8", "f8q8", "f8e4m3"), "mxfp8"),
    **dict.fromkeys(("q3km", "q3kl"), "mixed_3_6"),
    "q4km": "mixed_4_6",
}

_GROUPED = re.compile(r"(?P<name>.+?)-g(?P<size>[0-9]{1,9})")


def read_recipe(name: str, group_size: int | None = None) -> Recipe:
    """What a recipe's name means.

    Args:
        name: A recipe or an alias of one, in any case; `-g32`, `-g64` or `-g128` behind it sets
            the group size of an affine one.
        group_size: The group size of an affine recipe whose name states none; others have one of
            their own.

    Raises:
        OptionError: No such recipe, or a group size that it cannot have.
    """
    written = name.strip().lower()
    stated = _GROUPED.fullmatch(written)
    if stated is not None:
        written, group_size = stated["name"], int(stated["size"])
    squeezed = written.replace("_", "")
    known = written if written in RECIPES else _SYNONYMS.get(squeezed, _NEAREST.get(squeezed))
    if known is None:
        raise OptionError(
            f"unknown quantization {name!r}; expected one of {', '.join(RECIPES)}, or a name of "
            "llama.cpp or mistral.rs such as Q4K, Q8_0 or AFQ4"
        )
    note = f"{name.strip()} is no format of MLX; {known} is taken, the nearest one"
    is_nearest = known != written and squeezed not in _SYNONYMS
    low, high = RECIPES[known]
    if stated is not None or (group_size is not None and low is not None and low.mode == "affine"):
        low, high = _regrouped(known, low, group_size), _regrouped(known, high, group_size)
    suffix = f"-g{low.group_size}" if low is not None and _is_regrouped(low) else ""
    return Recipe(known + suffix, low, high, note if is_nearest else "")


def _regrouped(name: str, form: Format | None, group_size: int | None) -> Format | None:
    if form is None or group_size is None:
        return form
    allowed = GROUP_SIZES if form.mode == "affine" else (form.group_size,)
    if group_size not in allowed:
        raise OptionError(
            f"{name} cannot have groups of {group_size}; expected "
            + " or ".join(str(size) for size in allowed)
        )
    return Format(form.bits, group_size, form.mode)


def _is_regrouped(form: Format) -> bool:
    return form.mode == "affine" and form.group_size != GROUP_SIZE


def _is_sensitive(path: str, layers: int) -> bool:
    """Whether a mixed recipe gives a module more bits, by the rule of mlx-lm's converter.

    The head always; value and down projections in the first and the last eighth of the layers, and
    in every third between.
    """
    if path == "lm_head":
        return True
    if not path.endswith(("v_proj", "down_proj")):
        return False
    layer, eighth = int(path.split(".")[2]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
