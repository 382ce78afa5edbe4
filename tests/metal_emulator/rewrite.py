"""MSL -> what stock clang takes: vectors, threadgroup variables, structs, the entry point."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from .errors import MetalError
from .text import ATTRIBUTES, KernelSource, Signature, without_comments


def clang_text(kernel: KernelSource, declared: Signature) -> str:
    """One translation unit, to be compiled behind metal_shim.h.

    Lines keep their numbers: what clang and the checks name is "source:3" or "header:1".
    """
    header, source = without_comments(kernel.header), without_comments(kernel.source)
    source = _threadgroup_variables(source)
    header, source = (_vector_constructors(_copied_structs(text)) for text in (header, source))
    return (
        f'#line 1 "header"\n{header}\n#line 1 "signature"\n{declared.head()}'
        f'#line 1 "source"\n{source}\n}}\n#line 1 "emulator"\n{_entry(declared)}'
    )


def _entry(declared: Signature) -> str:
    """The function that the runtime calls, once for each thread."""
    arguments = []
    for i, parameter in enumerate(declared.parameters):
        if parameter.declared.endswith("&"):
            arguments.append(f"*({parameter.declared[:-1]}*)(ulong)buffers[{i}]")
        else:
            arguments.append(f"({parameter.declared})(ulong)buffers[{i}]")
    for name in declared.attributes:
        kind, slot = ATTRIBUTES[name]
        if slot is None:
            raise MetalError("unsupported", f"{name} is not emulated")
        axes = [f"slots[{slot + axis}]" for axis in range(3 if kind == "uint3" else 1)]
        arguments.append(f"uint3{{{', '.join(axes)}}}" if kind == "uint3" else axes[0])
    call = f"{declared.function}{declared.template_arguments}({', '.join(arguments)});"
    return (
        'extern "C" EMU_UNCHECKED void emu_kernel_entry(void** buffers, const uint* slots) '
        f"{{ {call} }}\n"
    )


def _vector_constructors(text: str) -> str:
    """``vec<T, 4>(x)`` -> a function: clang's cast between vectors reinterprets the bits."""
    parts, done = [], 0
    for match in re.finditer(r"\b(?:metal\s*::\s*)?vec\s*<", text):
        if match.start() < done:
            continue
        end = _after_angle(text, match.end())
        if re.match(r"\s*\(", text[end:]):
            name = f"metal::emu_make_vec<{text[match.end() : end]}"
            parts += [text[done : match.start()], name]
            done = end
    return "".join(parts) + text[done:]


def _after_angle(text: str, start: int) -> int:
    """Behind the ``>`` that closes a ``<`` just before `start`."""
    depth = 1
    for i in range(start, len(text)):
        depth += {"<": 1, ">": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    return len(text)


def _threadgroup_variables(source: str) -> str:
    """``threadgroup float a[32];`` -> a reference into the emulator's threadgroup memory."""
    numbers = itertools.count()

    def replace(match: re.Match[str]) -> str:
        body = match["body"]
        bare = re.sub(r"\[[^\]]*\]", "", body)
        if re.search(r"[*&]", bare.split("=")[0]):
            return match[0]  # a pointer or a reference into threadgroup memory
        if "=" in bare:
            raise MetalError("lint", f"threadgroup variable with an initialiser: {body.strip()}")
        return match["indent"] + " ".join(_references(body, numbers)) + "\n" * body.count("\n")

    statement = r"(?:(?<=[;{}])|\A)(?P<indent>\s*)threadgroup\s+(?P<body>[^;{}]*);"
    return re.sub(statement, replace, source)


def _references(body: str, numbers: Iterator[int]) -> Iterator[str]:
    commas = r",(?![^<]*>)(?![^\[]*\])"
    first, *others = re.split(commas, body)
    declaration = re.fullmatch(r"(.+?)\s*\b(\w+)\s*((?:\[[^\]]*\]\s*)*)", first, re.DOTALL)
    named = [re.fullmatch(r"\s*(\w+)\s*((?:\[[^\]]*\]\s*)*)", other) for other in others]
    if not declaration or None in named:
        raise MetalError("lint", f"threadgroup declaration not understood: {body.strip()}")
    kind = declaration[1]
    variables = [(declaration[2], declaration[3])] + [(n[1], n[2]) for n in named if n]
    for variable, dimensions in variables:
        i = next(numbers)
        yield (
            f"typedef {kind} emu_type_{i} {dimensions}; threadgroup emu_type_{i}& {variable} = "
            f"*metal::emu_threadgroup_variable<emu_type_{i}>({i}, __LINE__);"
        )


def _copied_structs(text: str) -> str:
    """Give plain structs the copies out of other address spaces that MSL gives them.

    A constructor makes a struct no aggregate, so one for all fields goes with it. A struct with
    an array among its fields gets neither where the text fills it from braces.
    """

    def replace(match: re.Match[str]) -> str:
        name, body = match["name"], match["body"]
        fields = [field.strip() for field in body.split(";") if field.strip()]
        if not fields or re.search(r"[(:=&~]|\bstatic\b|\bfriend\b|\btypedef\b|\busing\b", body):
            return match[0]
        brace_filled = re.search(rf"\b{name}\b[^;(]*\{{", text[match.end() :])
        if "[" in body and brace_filled:
            return match[0]
        copies = f"{name}() = default; {name}(const {name}&) = default; "
        copies += f"{name}& operator=(const {name}&) = default; "
        for space in ("device", "constant", "threadgroup"):
            copies += f"{name}(const {space} {name}& other) "
            copies += (
                f"{{ __builtin_memcpy((void*)this, (const void*)(ulong)&other, sizeof({name})); }} "
            )
        if "[" not in body:
            copies += _field_constructor(name, fields)
        return f"struct {name} {{{body} {copies}}};"

    plain = r"\bstruct\s+(?P<name>\w+)\s*\{(?P<body>[^{}]*)\}\s*;"
    return re.sub(plain, replace, text)


def _field_constructor(name: str, fields: list[str]) -> str:
    typed: list[tuple[str, str]] = []
    for field in fields:
        first, *others = re.split(r",(?![^<]*>)", field)
        declaration = re.fullmatch(r"(.+?)\s*\b(\w+)", first.strip(), re.DOTALL)
        if not declaration:
            return ""
        typed += [(declaration[1], declaration[2])]
        typed += [(declaration[1], other.strip()) for other in others]
    parameters = ", ".join(f"{kind} emu_{field}" for kind, field in typed)
    values = ", ".join(f"{field}(emu_{field})" for _, field in typed)
    explicit = "explicit " if len(typed) == 1 else ""
    return f"{explicit}constexpr {name}({parameters}) : {values} {{}} "
