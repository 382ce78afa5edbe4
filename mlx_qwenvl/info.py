"""`mlx-qwenvl info NAME`: what a model is, how large it is, what it needs; are its files sound?"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.facts import DEFAULT_CONTEXT, KV_8BIT, Facts, backend_here, find_facts, located
from mlx_qwenvl.inputs.pyav import EXPECTED, find_pyav
from mlx_qwenvl.sizes import in_bytes, in_numbers
from mlx_qwenvl.weights.choice import default_model
from mlx_qwenvl.weights.describe import Part
from mlx_qwenvl.weights.memory import (
    CHIPS,
    GPU,
    kv_bytes_per_token,
    memory_here,
    tokens_per_second,
    weights_read,
)
from mlx_qwenvl.weights.verify import Checked, verify

PROGRAM = "mlx-qwenvl info"

_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})", re.ASCII)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Tell what a model is, how large it is, and what it needs to run.",
        epilog="Of a model that is not downloaded, only descriptions and headers are read.",
    )
    p.add_argument("name", nargs="?", metavar="NAME|DIR|FILE", help="by default the chosen model")
    p.add_argument("--variant", metavar="NAME", help="which of a model's stored quantizations")
    p.add_argument("--context", type=int, metavar="N", help=f"tokens ({DEFAULT_CONTEXT})")
    p.add_argument("--image", metavar="WxH", help="a picture's pixels (one that fills the budget)")
    p.add_argument("--max-pixels", type=int, metavar="N", help="most pixels (1003520)")
    p.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    p.add_argument("--verify", action="store_true", help="check the weight files' SHA-256 instead")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _verify(arguments) if arguments.verify else _tell(arguments), PROGRAM)


def to_lines(facts: Facts) -> Iterator[str]:
    """Everything as people read it, sizes in powers of ten."""
    yield facts.model + (" (on the Hub; only its headers were read)" if facts.is_remote else "")
    for heading, lines in (
        ("Architecture", _architecture(facts)),
        ("Weights", _weights(facts)),
        ("Pictures", _pictures(facts)),
        ("Videos", _videos()),
        ("Memory", _memory(facts)),
        ("Tokens per second at most", _ceilings(facts)),
    ):
        yield f"\n{heading}"
        yield from (f"  {line}" for line in lines)


def _tell(arguments: argparse.Namespace) -> int:
    facts = find_facts(
        _name(arguments),
        variant=arguments.variant,
        context=arguments.context,
        image=None if arguments.image is None else _size(arguments.image),
        max_pixels=arguments.max_pixels,
    )
    print(json.dumps(facts.to_dict()) if arguments.json else "\n".join(to_lines(facts)))
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    with located(_name(arguments), arguments.variant) as (path, is_remote), _bar() as progress:
        if is_remote:
            raise CheckpointError(f"{_name(arguments)} is not downloaded; nothing here to verify")
        checked = verify(path, progress)
    if arguments.json:
        print(json.dumps({"files": [_verdict(file) for file in checked]}))
    else:
        for file in checked:
            verdict = "missing" if file.found is None else "ok" if file.is_sound else "damaged"
            print(f"{verdict:<9}{file.expected}  {file.file}")
    bad = [file for file in checked if not file.is_sound]
    if bad:
        first, more = bad[0], f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
        found = "is missing" if first.found is None else f"is damaged: it has SHA-256 {first.found}"
        raise CheckpointError(f"{first.file} {found}, expected {first.expected}{more}")
    return EXIT_OK


def _name(arguments: argparse.Namespace) -> str:
    return default_model() if arguments.name is None else str(arguments.name)


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(f"--image {text} is no size; expected one in pixels such as 1024x768")
    return int(match[1]), int(match[2])


def _verdict(file: Checked) -> dict[str, str | int | bool | None]:
    return {
        "file": str(file.file),
        "bytes": file.nbytes,
        "expected": file.expected,
        "found": file.found,
        "ok": file.is_sound,
    }


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar for bytes that are read, on terminals only."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="verifying", unit="B", unit_scale=True, leave=False, delay=1.0) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _architecture(facts: Facts) -> Iterator[str]:
    text, vision = facts.description.config.text, facts.description.config.vision
    head = "the embedding is the head" if text.tie_word_embeddings else "a head of its own"
    yield (
        f"decoder       {text.num_hidden_layers} layers of {text.hidden_size}, "
        f"{text.mlp_words}, {text.num_attention_heads} query and "
        f"{text.num_key_value_heads} key-value heads of {text.head_dim}"
    )
    yield (
        f"              vocabulary of {text.vocab_size}, {head}; context of "
        f"{text.max_position_embeddings} tokens"
    )
    yield (
        f"vision tower  {vision.depth} blocks of {vision.embed_dim}, MLP of {vision.mlp_dim}, "
        f"{vision.num_heads} heads of {vision.head_dim}; patches of "
        f"{vision.patch_size} x {vision.patch_size} pixels"
    )


def _weights(facts: Facts) -> Iterator[str]:
    described = facts.description
    row = "{:<14}{:>11}{:>11}{:>12}   {}".format
    yield row("part", "parameters", "bytes", "bits/weight", "format").rstrip()
    for part in described.parts:
        bits = f"{part.bits_per_weight:.2f}"
        size = in_bytes(part.stored_bytes)
        yield row(part.name, in_numbers(part.parameters), size, bits, _formats(part))
    total = in_numbers(described.parameters), in_bytes(described.stored_bytes)
    yield row("all", *total, f"{described.bits_per_weight:.2f}", "").rstrip()
    for part in described.parts:
        for name in part.dense:
            yield f"left dense: {name}"
    files = facts.weight_files
    yield f"on disk: {in_bytes(sum(files.values()))} in {len(files)} weight file" + "s" * (
        len(files) > 1
    )
    for variant, stored in facts.variants.items():
        mark = " (default)" if variant == facts.default else ""
        yield f"variant {variant}{mark}: {'not here' if stored is None else in_bytes(stored)}"


def _formats(part: Part) -> str:
    if len(part.formats) == 1:
        return next(iter(part.formats))
    return ", ".join(f"{count} x {form}" for form, count in part.formats.items())


def _pictures(facts: Facts) -> Iterator[str]:
    look = facts.look
    least, most = facts.tokens(facts.budget)
    own_least, own_most = facts.tokens(facts.own_budget)
    yield (
        f"{least} to {most} tokens a picture, {facts.token_pixels} pixels each; "
        f"the checkpoint's own limits are {own_least} to {own_most}"
    )
    if look.size is not None:
        width, height = look.size
        yield f"this one is resized to {width} x {height} pixels and takes {look.tokens} tokens"


def _videos() -> Iterator[str]:
    found = find_pyav()
    if found.fault:
        yield f"cannot be decoded here: {found.fault}"
        yield f"expected is PyAV {EXPECTED} or later; lists of frames need none"
    else:
        yield f"decoded by PyAV {found.version}; expected is {EXPECTED} or later"


def _memory(facts: Facts) -> Iterator[str]:
    config, needed = facts.description.config, facts.memory(GPU)
    per_token = kv_bytes_per_token(config, GPU)
    in_8_bits = facts.memory(GPU, KV_8BIT).kv_cache
    yield f"weights        {in_bytes(needed.weights):>9}  as loaded on a GPU"
    yield (
        f"KV cache       {in_bytes(needed.kv_cache):>9}  {facts.context} tokens of {per_token} "
        f"bytes; {in_bytes(in_8_bits)} with --kv-bits 8"
    )
    yield (
        f"vision tower   {in_bytes(needed.vision):>9}  all arrays of one block for "
        f"{facts.look.patches} patches ({facts.look.tokens} tokens)"
    )
    yield f"or prefill     {in_bytes(needed.prefill):>9}  all arrays of one layer for one step"
    yield f"in all         {in_bytes(needed.total):>9}  with the larger of the last two"
    backend, here = backend_here(), memory_here()
    here_needed = facts.memory(backend).total
    verdict = "fits" if here_needed <= here else "does not fit"
    on_cpu = f"; its CPU computes in float32 and needs {in_bytes(here_needed)}"
    how = on_cpu if backend.name == "cpu" else ""
    yield f"This machine has {in_bytes(here)}{how}: it {verdict}."


def _ceilings(facts: Facts) -> Iterator[str]:
    described, context = facts.description, facts.context
    yield "Computed from memory bandwidth, not measured; real rates are lower."
    read = in_bytes(weights_read(described))
    yield f"Each token reads {read} of weights, and the keys and values before it."
    yield f"{'':<22}{'GB/s':>7}{'at first':>10}{f'at {context}':>10}"
    for chip, bandwidth in CHIPS.items():
        first = tokens_per_second(described, 0, bandwidth)
        later = tokens_per_second(described, context, bandwidth)
        yield f"{chip:<22}{bandwidth:>7g}{first:>10.0f}{later:>10.0f}"


if __name__ == "__main__":
    sys.exit(main())
