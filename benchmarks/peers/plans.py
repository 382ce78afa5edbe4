"""How much is asked of which model, so that all of it fits an afternoon on a small machine.

Where MLX computes 4-bit matrices in bfloat16 on a CPU, the 2B takes seconds a token, so the larger
a model, the fewer tokens and rounds; `--rounds 3 --resume` adds to them. Rows of one group are
alive together, and their pairs are compared; where memory does not hold all, later groups take
ours along again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """What is asked of one model.

    Attributes:
        decoded: Tokens of each answer of "decode" and "batch".
        long_tokens: Tokens of the text of "prefill" and "picture".
        picture: (width, height) of the picture of "picture" in pixels.
        small: The same of "cold", "three", "another" and "next".
        groups: Rows that are measured in turns.
        rounds: How often.
        cases: What is left out where not named; by default nothing.
        slow: Rows that take part in the first round alone, and in these cases alone.
        once: Cases of the first round alone.
    """

    decoded: int
    long_tokens: int
    picture: tuple[int, int]
    small: tuple[int, int]
    groups: tuple[tuple[str, ...], ...]
    rounds: int
    cases: tuple[str, ...] = ()
    slow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    once: tuple[str, ...] = ()


MLX_ROWS = ("ours", "ours-bfloat16", "mlx-vlm", "mlx-vlm-float32-openblas")
OTHERS = ("transformers", "mistralrs", "llama-cpp")

PLANS = {
    "demo": Plan(
        decoded=128,
        long_tokens=256,
        picture=(448, 448),
        small=(448, 448),
        groups=((*MLX_ROWS, "mlx-vlm-float32", "ours-dense", *OTHERS),),
        rounds=5,
    ),
    "0.1b": Plan(
        decoded=12,
        long_tokens=256,
        picture=(448, 448),
        small=(224, 224),
        groups=((*MLX_ROWS, "ours-dense", *OTHERS),),
        rounds=3,
        slow=dict.fromkeys(("ours-bfloat16", "mlx-vlm"), ("cold", "decode", "picture", "another")),
        once=("megapixel",),
    ),
    "2b": Plan(
        decoded=4,
        long_tokens=32,
        picture=(224, 224),
        small=(112, 112),
        groups=(
            MLX_ROWS,
            ("ours", *OTHERS),
            ("ours", "ours-dense"),
        ),
        rounds=1,
        cases=("cold", "decode", "prefill", "picture", "another", "next-best", "batch"),
        slow=dict.fromkeys(("ours-bfloat16", "mlx-vlm"), ("decode",)),
    ),
}
