"""Names of tensors, in the dialects that checkpoints speak.

here and on the hub      visual.*              model.*                     lm_head.*
Transformers 5           model.visual.*        model.language_model.*      lm_head.*
                         (and on the hub where a member is of that age)
mlx-vlm conversions      vision_tower.*        language_model.model.*      language_model.lm_head.*
"""

from __future__ import annotations

_PREFIXES = (
    ("model.visual.", "visual."),
    ("model.language_model.", "model."),
    ("vision_tower.", "visual."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


def canonical(name: str) -> str:
    """The name of a tensor or module here, given its name in any dialect."""
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def to_mlx(name: str) -> str:
    """The name of a tensor or module in mlx-community folders, given its name here."""
    if name.startswith("visual."):
        return "vision_tower." + name.removeprefix("visual.")
    return "language_model." + name


def to_nested(name: str) -> str:
    """The name of a tensor in Transformers 5, given its name here."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


def is_derived(name: str) -> bool:
    """Whether a tensor only repeats what the configuration says, as old exports do."""
    return name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"))
