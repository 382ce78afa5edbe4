"""What MSL forbids, stock clang allows, and the text alone shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .dtypes import METAL_TYPES, TemplateValue, template_argument
from .errors import MetalError
from .text import ATTRIBUTES, KernelSource, Signature, without_comments

MAX_THREADS = 1024  # of a threadgroup; a kernel that needs many registers gets fewer
MAX_BUFFERS = 31

_INTEGERS = ["char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"]
_SCALARS = [*_INTEGERS, "half", "bfloat", "float", "bool"]
_SPACES = r"(?:device|constant|threadgroup|thread)"


def lint_launch(grid: Sequence[int], threadgroup: Sequence[int]) -> None:
    """Refuse a launch that Metal would not start, or that starts nothing."""
    for name, sizes in (("grid", grid), ("threadgroup", threadgroup)):
        if len(sizes) != 3 or min(sizes) < 1:
            raise MetalError("lint", f"{name} is three numbers of at least 1, not {tuple(sizes)}")
    threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
    if threads > MAX_THREADS:
        raise MetalError("lint", f"threadgroup of {threads} threads; the limit is {MAX_THREADS}")
    for size in grid:
        if size >= 2**32:
            raise MetalError("lint", f"grid of {size} threads on one axis; positions have 32 bits")


def lint_source(
    kernel: KernelSource, declared: Signature, template: Sequence[tuple[str, TemplateValue]]
) -> None:
    """Refuse a source by its text."""
    for attribute in declared.attributes:
        if ATTRIBUTES[attribute][1] is None:
            raise MetalError("unsupported", f"{attribute} is not emulated")
    if len(declared.parameters) > MAX_BUFFERS:
        count = len(declared.parameters)
        raise MetalError("lint", f"{count} buffers; Metal allows {MAX_BUFFERS}")
    for what, text in (("source", kernel.source), ("header", kernel.header)):
        if not text.isascii():
            line = next(i for i, part in enumerate(text.split("\n"), 1) if not part.isascii())
            raise MetalError("lint", f"non-ASCII character at {what}:{line}; MLX passes ASCII on")
    source, header = without_comments(kernel.source), without_comments(kernel.header)
    types = _type_names(source + header) | {
        name for name, value in template if template_argument(value)[0] == "typename"
    }
    _lint_pointers("source", source, types)
    _lint_pointers("header", header, types)


def _type_names(text: str) -> set[str]:
    vectors = {f"{scalar}{width}" for scalar in _SCALARS for width in ("", 2, 3, 4)}
    own = re.findall(r"\b(?:struct|class|typename|using)\s+(\w+)", text)
    return vectors | METAL_TYPES | {"size_t", "vec", "atomic", "void"} | set(own)


def _lint_pointers(what: str, text: str, types: set[str]) -> None:
    """MSL wants an address space on every pointer and reference; C++ has no such rule."""
    names = "|".join(sorted(types, key=len, reverse=True))
    pointer = re.compile(
        rf"""
        (?P<before> (?:\b\w+\s+)*)
        \b (?:metal\s*::\s*)? (?:{names})
        (?:\s*<[^<>;(){{}}]*>)?
        (?:\s+(?:const|volatile|{_SPACES})\b)*
        \s* [*&] (?!&) (?=\s*(?:\w|\)|\[|,|\())
        """,
        re.VERBOSE,
    )
    for match in pointer.finditer(text):
        # A product, such as `return float * 2` would be, is no declaration.
        if re.match(r"\s*\d", text[match.end() :]) or re.search(r"\breturn\s*$", match["before"]):
            continue
        if re.search(rf"\b{_SPACES}\b", match[0]):
            continue
        line = text.count("\n", 0, match.start() + len(match["before"])) + 1
        written = " ".join(match[0].split())
        raise MetalError("lint", f"{what}:{line}: pointer without an address space: {written}")
