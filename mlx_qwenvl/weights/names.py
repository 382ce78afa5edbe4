"""Names of tensors, in the dialects that checkpoints speak.

here and on the hub      visual.*              model.*                     lm_head.*
Transformers 5           model.visual.*        model.language_model.*      lm_head.*
                         (and on the hub where a member is of that age)
mlx-vlm conversions      vision_tower.*        language_model.model.*      language_model.lm_head.*

Experts have mlx-vlm's names and axes here, `mlp.switch_mlp.up_proj.weight` [E, out, in]. On the hub
they are `mlp.experts.gate_up_proj` [E, in, 2 out], gate and up side by side, and
`mlp.experts.down_proj`.
"""

from __future__ import annotations

_PREFIXES = (
    ("model.visual.", "visual."),
    ("model.language_model.", "model."),
    ("vision_tower.", "visual."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_EXPERTS = {
    ".mlp.experts.gate_up_proj": (".mlp.switch_mlp.gate_proj", ".mlp.switch_mlp.up_proj"),
    ".mlp.experts.down_proj": (".mlp.switch_mlp.down_proj",),
}


def canonical(name: str) -> str:
    """The name of a tensor or module here, given its name in any dialect."""
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def halves(name: str) -> tuple[str, ...]:
    """The names here of what a stored tensor holds side by side, along its last axis."""
    for theirs, ours in _EXPERTS.items():
        if name.endswith(theirs):
            return tuple(f"{name.removesuffix(theirs)}{own}.weight" for own in ours)
    return (name,)


def is_turned(name: str) -> bool:
    """Whether a stored tensor has its last two axes in the other order, given its stored name."""
    return name.endswith(tuple(_EXPERTS))


def beside(path: str) -> tuple[str, tuple[str, ...]] | None:
    """Where the hub keeps a module's experts: the tensor's name, and the modules side by side.

    None for any other module.
    """
    for theirs, ours in _EXPERTS.items():
        for own in ours:
            if path.endswith(own):
                start = path.removesuffix(own)
                return start + theirs, tuple(start + each for each in ours)
    return None


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
