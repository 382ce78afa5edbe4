"""What MSL forbids, stock clang allows, and clang's syntax tree shows.

``clang -ast-dump`` prints one node a line, indented; a place is printed only where it differs
from the one printed before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import MetalError

_PLACE = re.compile(r"\bline:(?P<b>\d+):\d+|(?P<file>\w+):(?P<a>\d+):\d+")
_NODE = re.compile(r"^(?P<indent>[|` -]*)(?P<kind>\w+) (?P<id>0x[0-9a-f]+)?")
_VECTOR_TYPE = re.compile(r"ext_vector_type|'\w+[234]'")
_DEDUCED = re.compile(r"TemplateArgument type '[^'*&]*__(?:global|local|constant)\b[^'*&]*'")


@dataclass(frozen=True)
class Node:
    """One line of the dump."""

    depth: int
    kind: str
    id: str
    text: str
    begin: str  # "source:3"


def check_tree(dump: str) -> None:
    """Refuse casts and calls whose meaning differs in MSL, recursion, variables out of place."""
    calls: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    function, function_depth = "", 0
    for node in _nodes(dump.splitlines()):
        _check_node(node)
        if function and node.depth <= function_depth:
            function = ""
        if node.kind in ("FunctionDecl", "CXXMethodDecl") and node.id:
            # A function that was declared before goes by the name of that declaration.
            earlier = re.search(r" prev (0x[0-9a-f]+)", node.text)
            first[node.id] = first.get(earlier[1], earlier[1]) if earlier else node.id
            function, function_depth = first[node.id], node.depth
            calls.setdefault(function, set())
            names[function] = node.begin
        elif function:
            calls[function].update(re.findall(r"\b0x[0-9a-f]+", node.text))
    _refuse_recursion(
        {caller: {first.get(id, id) for id in ids} for caller, ids in calls.items()}, names
    )


def _nodes(lines: Iterable[str]) -> Iterator[Node]:
    file, line = "", "0"
    for text in lines:
        match = _NODE.match(text)
        begin = ""
        for place in _PLACE.finditer(text.split("'", 1)[0]):
            file, line = place["file"] or file, place["a"] or place["b"]
            begin = begin or f"{file}:{line}"
        if match:
            depth, kind = len(match["indent"]) // 2, match["kind"]
            yield Node(depth, kind, match["id"] or "", text, begin or f"{file}:{line}")


def _check_node(node: Node) -> None:
    if _DEDUCED.search(node.text):
        raise MetalError(
            "lint",
            f"{node.begin}: a template parameter becomes a type with an address space, so MSL "
            f"would reject the call:{_types(node.text)}",
        )
    if "<AddressSpaceConversion>" in node.text:
        raise MetalError(
            "lint", f"{node.begin}: cast between address spaces, to{_types(node.text)}"
        )
    if "<BitCast>" in node.text and "*" not in node.text and _VECTOR_TYPE.search(node.text):
        raise MetalError(
            "lint",
            f"{node.begin}: a cast between vectors converts in MSL and reinterprets here; write "
            f"floatN(...) or vec<T, N>(...):{_types(node.text)}",
        )
    if node.kind == "VarDecl" and "__constant" not in node.text:
        if node.depth == 1:
            raise MetalError(
                "lint", f"{node.begin}: a variable outside of functions must be `constant`"
            )
        if re.search(r"' static\b", node.text):
            raise MetalError("lint", f"{node.begin}: a static variable must be `constant`")


def _types(text: str) -> str:
    return " " + ", ".join(re.findall(r"'([^']*)'", text))


def _refuse_recursion(calls: dict[str, set[str]], names: dict[str, str]) -> None:
    """MSL allows no function that calls itself, not even by way of others."""
    done: set[str] = set()

    def visit(function: str, path: tuple[str, ...]) -> None:
        if function in path:
            raise MetalError("lint", f"{names[function]}: recursion, which MSL does not allow")
        if function in done:
            return
        for called in sorted(calls[function] & calls.keys()):
            visit(called, (*path, function))
        done.add(function)

    for function in calls:
        visit(function, ())
