"""What verifying proposed tokens brings, and what it costs where it brings nothing.

    python -m benchmarks.speculation [--shape demo 0.1b 0.1b-4bit] [--tokens 128] [--pairs 5]

The models have the shapes' full cost and a text that is known: attention and MLP are computed and
multiplied by zero, and the head turns token t into t + 1. So prompts can be written that the
answer copies, or that it never meets:

    nothing     no three tokens of the answer stand in the prompt
    repeats     the whole answer stands in the prompt
    fragments   the prompt has the answer in pieces of eight tokens, each going on wrongly
    misleading  wherever the answer is, three tokens match and the fourth is wrong
    draft       nothing matches; a draft of two narrow layers is always right
    bad draft   nothing matches; the same draft is always wrong

Every pair is the same answer in turns, plainly and speculating, from the same prefilled prompt,
timed from the second token on. A ratio above 1 is a gain; on a busy machine that of the processor's
time is the steadier one. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from mlx_qwenvl import load

# isort: split
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwenvl.engine.answer import sources
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.draft import Draft, DraftModel
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.prefix_store import PrefixStore
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.engine.speculate import Speculator, speculate, verify_rows
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.linear import DequantizingEmbedding, DequantizingLinear
from mlx_qwenvl.models.model import Model

VOCABULARY = 16384  # tokens
BEGIN = 1000  # the answer's first token
FILLER = 600  # tokens of a prompt, at least
PIECE = 8  # tokens that agree in "fragments"
# Width, layers, MLP, heads, key-value heads, M-RoPE sections.
SHAPES = {
    "demo": (192, 6, 384, 6, 2, (2, 4, 10)),
    "0.1b": (768, 10, 3072, 12, 2, (8, 12, 12)),
    "draft": (128, 2, 256, 4, 2, (4, 6, 6)),
}


def counting_model(shape: str, *, step: int = 1, bits: int | None = None) -> Model:
    """A model of a shape that says t + step behind t."""
    width, layers, mlp, heads, groups, sections = SHAPES[shape]
    demo = load("demo").config
    text = replace(
        demo.text,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        mrope_section=sections,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        max_position_embeddings=32768,
    )
    model = build(replace(demo, text=text, vision=replace(demo.vision, hidden_size=width)))
    vectors = mx.random.normal((VOCABULARY, width), key=mx.random.key(0))
    model.model.embed_tokens.weight = vectors
    model.lm_head.weight = mx.roll(vectors, step, 0)
    for layer in model.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)
    if bits is not None:
        nn.quantize(model.model, 64, bits)
        model.lm_head = model.lm_head.to_quantized(64, bits)
        for module in (*model.model.modules(), model.lm_head):
            if isinstance(module, nn.QuantizedLinear):
                module.__class__ = DequantizingLinear
            elif isinstance(module, nn.QuantizedEmbedding):
                module.__class__ = DequantizingEmbedding
    model.merge_projections()
    mx.eval(model.parameters())
    return model


def prompt_for(case: str, tokens: int) -> Prompt:
    """A prompt of one case; the answer goes on from `BEGIN`."""
    answer = list(range(BEGIN - 3, BEGIN + tokens + 1))
    filler = list(range(12000, 12000 - 3 * FILLER, -3))
    before: list[int] = []
    if case == "repeats":
        before = answer
    elif case == "fragments":
        pieces = [answer[begin : begin + PIECE] for begin in range(0, len(answer), PIECE)]
        before = [token for piece in pieces for token in (*piece, 13000)]
    elif case == "misleading":
        triples = [answer[begin : begin + 3] for begin in range(len(answer) - 2)]
        before = [token for triple in triples for token in (*triple, 13000, 13001)]
    ids = [*filler[: max(0, FILLER - len(before))], *before, *answer[:3]]
    return Prompt(np.array(ids, dtype=np.int32), ())


def compare(
    model: Model, prompt: Prompt, tokens: int, draft: Model | None, pairs: int
) -> dict[str, object]:
    """Time one case, plainly and speculating in turns."""
    conversation, options = Conversation(model), Options()
    logits = prefill(model, conversation, prompt, step=256).logits[:, -1]
    mx.eval(logits, [layer.state for layer in conversation.cache])
    rows = verify_rows(model)
    prefixes = PrefixStore(0, lambda bits: Conversation(draft or model, bits))
    wall_ratios, work_ratios, seconds = [], [], []
    figures: dict[str, int] = {}
    for number in range(pairs + 1):  # the first warms up
        taken = {}
        for is_plain in ((True, False), (False, True))[number % 2]:
            sampler = Sampler(options, VOCABULARY, prompt.token_ids)
            drafting = None
            if draft is not None:
                small = DraftModel(draft, prefixes, FeatureStore(0))
                drafting = Draft(small, prompt, VOCABULARY, options, rows.least - 1)
            speculator = Speculator(sources(prompt, drafting, rows), rows)
            if is_plain:
                steps = decode(model, conversation.cache, logits, [sampler], tokens)
            else:
                steps = speculate(model, conversation.cache, logits, sampler, tokens, speculator)
            said, wall, work = [], 0.0, 0.0
            for (sampled,) in steps:
                said.append(sampled.token_id)
                if len(said) == 2:  # the draft has read the prompt behind the first token
                    wall, work = time.perf_counter(), time.process_time()
            taken[is_plain] = time.perf_counter() - wall, time.process_time() - work
            assert said == list(range(BEGIN, BEGIN + tokens)), "speculation changed the answer"
            for layer in conversation.cache:
                layer.trim(layer.offset - prompt.token_ids.size)
            if not is_plain:
                figures = speculator.figures.to_dict()
        if number:
            wall_ratios.append(taken[True][0] / taken[False][0])
            work_ratios.append(taken[True][1] / taken[False][1])
            seconds.append(taken[True][0] / (tokens - 2))
    return {
        "ratio": round(statistics.median(wall_ratios), 3),
        "cpu_ratio": round(statistics.median(work_ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(wall_ratios)],
        "plain_ms_per_token": round(1e3 * statistics.median(seconds), 2),
        **figures,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--shape", nargs="+", default=["demo", "0.1b", "0.1b-4bit"])
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--pairs", type=int, default=5)
    arguments = p.parse_args(argv)
    results: dict[str, object] = {"tokens": arguments.tokens, "load_before": os.getloadavg()[0]}
    drafts = {"draft": counting_model("draft"), "bad draft": counting_model("draft", step=2)}
    for name in arguments.shape:
        shape, _, bits = name.partition("-")
        model = counting_model(shape, bits=int(bits.removesuffix("bit")) if bits else None)
        cases = {}
        for case in ("nothing", "repeats", "fragments", "misleading", *drafts):
            prompt = prompt_for(case, arguments.tokens)
            draft = drafts.get(case)
            cases[case] = compare(model, prompt, arguments.tokens, draft, arguments.pairs)
            print(name, case, cases[case], flush=True)
        results[name] = cases
    print(json.dumps(results))


if __name__ == "__main__":
    main()
