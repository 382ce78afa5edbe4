"""What every recipe costs the demo model, on pictures that neither training nor learning has seen.

    python -m benchmarks.recipes [--per-family 25] [--recipes 4bit,3bit,3bit+learned] [--json FILE]

Each recipe is converted to a folder, loaded from there, and asked the questions of all 41
families. Behind a recipe, `+vision8` or `+vision4` quantizes the vision tower too, and `+learned`
learns the rounding from the built-in pictures. Answers are scored with the expected answer fed in,
so that one pass gives everything: an answer is right where each of its tokens is the likeliest,
which is what greedy decoding gives. KL is that of the full-precision model's next token to the
quantized one's, in nats, the mean over the answers' tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlx_qwenvl import load

# isort: split
import mlx.core as mx
import numpy as np

from convert import Wishes, convert
from examples.train_demo.questions import FAMILIES, held_out
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.prompt import Prompt, build_prompt
from mlx_qwenvl.vlm import QwenVL
from mlx_qwenvl.weights.files import list_tensors
from mlx_qwenvl.weights.resolve import DEMO_FOLDER

SEED = 31  # of the held-out pictures; tests of the demo model use others
STEP = 1024  # tokens computed at once
RECIPES = (
    *("8bit", "6bit", "5bit", "4bit", "3bit", "2bit", "mxfp8", "mxfp4", "nvfp4"),
    *("mixed_4_6", "mixed_3_6", "mixed_3_4", "mixed_2_6", "4bit+vision8", "4bit+vision4"),
    *("4bit+learned", "3bit+learned", "2bit+learned", "mixed_2_6+learned"),
)


@dataclass(frozen=True)
class Asked:
    """A question with its expected answer.

    Attributes:
        prompt: The question and the answer but for its last token.
        answer: Tokens of the answer, its end included.
        log_probs: [tokens, V], what the full-precision model gives.
    """

    prompt: Prompt
    answer: np.ndarray
    log_probs: np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        recipe: What was done.
        nbytes: Bytes of the weights.
        bits_per_weight: Of the whole model, vision tower and norms included.
        kl: Nats per answer token.
        same_top: Share of answer tokens whose likeliest one is the full-precision model's.
        exact: Share of answers that are right word for word.
        answers: How many were asked for.
    """

    recipe: str
    nbytes: int
    bits_per_weight: float
    kl: float
    same_top: float
    exact: float
    answers: int


def ask(vlm: QwenVL, per_family: int) -> list[Asked]:
    """Held-out questions with what the full-precision model makes of them."""
    end = vlm.tokenizer.token_id("<|im_end|>")
    asked = []
    for family in FAMILIES:
        if family.startswith("box"):  # answered by boxes: there are no words to score
            continue
        for images, question, answer in held_out(family, SEED, per_family):
            turns = [user_message(question, images)]
            built = build_prompt(turns, vlm.template, vlm.tokenizer, vlm.processor.open)
            # A box follows the words of a "where" answer.
            ending = [] if family == "where" else [end]
            tokens = np.array([*vlm.tokenizer.encode(answer), *ending], dtype=np.int32)
            fed = Prompt(np.concatenate([built.token_ids, tokens[:-1]]), built.slots)
            case = Asked(fed, tokens, np.empty(0))
            asked.append(replace(case, log_probs=log_probs(vlm, case)))
    return asked


def log_probs(vlm: QwenVL, case: Asked) -> np.ndarray:
    """Log-probabilities [tokens, V] where the expected answer has its tokens."""
    conversation = Conversation(vlm.model)
    filled = prefill(vlm.model, conversation, case.prompt, step=STEP, all_logits=True)
    logits = filled.logits[0, -case.answer.size :].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def measure(name: str, folder: Path, weights: int, asked: Sequence[Asked]) -> Row:
    """Score the model in a folder.

    Args:
        name: What to call it.
        folder: Where it is.
        weights: Numbers in the full-precision model.
        asked: The questions.
    """
    vlm = load(folder, dtype="float32")
    nbytes = sum(tensor.nbytes for tensor in list_tensors(folder).values())
    kl, same_top, exact, tokens = 0.0, 0, 0, 0
    for case in asked:
        ours = log_probs(vlm, case)
        kl += float(np.sum(np.exp(case.log_probs) * (case.log_probs - ours)))
        same_top += int(np.sum(ours.argmax(axis=1) == case.log_probs.argmax(axis=1)))
        exact += bool((ours.argmax(axis=1) == case.answer).all())
        tokens += case.answer.size
    return Row(
        recipe=name,
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / weights,
        kl=kl / tokens,
        same_top=same_top / tokens,
        exact=exact / len(asked),
        answers=len(asked),
    )


def converted(name: str, output: Path) -> Path:
    """The demo model by a recipe, as a folder."""
    recipe, *more = name.split("+")
    bits = next((int(m.removeprefix("vision")) for m in more if m.startswith("vision")), None)
    calibrate = "builtin" if "learned" in more else None
    convert(DEMO_FOLDER, output, Wishes((recipe,), vision_bits=bits, calibrate=calibrate))
    return output


def as_markdown(row: Row) -> str:
    """A line of the table."""
    return (
        f"| {row.recipe} | {row.nbytes:,} | {row.bits_per_weight:.2f} | {row.kl:.4f} "
        f"| {row.same_top:.2%} | {row.exact:.1%} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--per-family", type=int, default=25, help="questions of each family")
    p.add_argument("--recipes", default=",".join(RECIPES))
    p.add_argument("--json", type=Path, metavar="FILE")
    arguments = p.parse_args(argv)
    asked = ask(load(DEMO_FOLDER, dtype="float32"), arguments.per_family)
    weights = sum(tensor.size for tensor in list_tensors(DEMO_FOLDER).values())
    print(f"{len(asked)} held-out questions, {sum(a.answer.size for a in asked)} answer tokens\n")
    print("| recipe | bytes | bits per weight | KL | same top token | right answers |")
    print("|---|---|---|---|---|---|")
    rows = [measure("none", DEMO_FOLDER, weights, asked)]
    print(as_markdown(rows[0]), flush=True)
    for name in arguments.recipes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            output = converted(name, Path(folder, "model"))
            rows.append(measure(name, output, weights, asked))
        print(as_markdown(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
