"""The grammar of answers that call tools: a call that is begun is one that parses.

Where a call may be made but need not be, text flows freely up to the mark that begins one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mlx_qwenvl.engine.grammar import JSON_FORM, Grammar
from mlx_qwenvl.inputs.tools import CALL_BEGIN, CALL_END, Tool, ToolChoice, as_json

ANY_OBJECT = {"type": "object"}


def grammar_for(tools: Sequence[Tool], choice: ToolChoice) -> Grammar | None:
    """What an answer with tools has to look like, or None where anything goes.

    Where a schema cannot be compiled, tools that are not strict take any object as arguments.

    Args:
        tools: All tools.
        choice: Which of them may or have to be called.
    """
    callable_tools = choice.among(tools)
    if not callable_tools:
        return None
    loose = None
    if not all(tool.strict for tool in callable_tools):
        loose = Grammar("tools", _source(callable_tools, choice, loose=True))
    return Grammar("tools", _source(callable_tools, choice, loose=False), loose)


def _source(callable_tools: Sequence[Tool], choice: ToolChoice, *, loose: bool) -> str:
    lines = ["%llguidance {}", _start(choice)]
    names = []
    for index, tool in enumerate(callable_tools):
        names.append(f"call_{index}")
        head = f'\n{{"name": {json.dumps(tool.name)}, "arguments": '
        lines.append(f"call_{index}: {json.dumps(head)} args_{index}")
        lines.append(f"args_{index}: %json {_arguments(tool, loose)}")
    lines.append(f"body: ({' | '.join(names)}) {json.dumps(chr(125) + chr(10) + CALL_END)}")
    return "\n".join(lines)


def _start(choice: ToolChoice) -> str:
    begin = json.dumps(CALL_BEGIN)
    if choice.mode == "required":
        call = f"call: {begin} body"
        more = r' ("\n" call)*' if choice.parallel else ""
        return f"start: call{more}\n{call}"
    # What comes before a mark ends there, because its lexeme is lazy.
    text = f"TEXT: /(.|\\n)*/\nbegun[lazy]: TEXT {begin}"
    if choice.parallel:
        return f"start: (begun body)* rest\nrest: TEXT\n{text}"
    return f"start: begun body | rest\nrest: TEXT\n{text}"


def _arguments(tool: Tool, loose: bool) -> str:
    """The schema of a call's arguments, in the form in which JSON is written here."""
    schema = ANY_OBJECT if loose and not tool.strict else tool.parameters
    form = {**JSON_FORM, "lenient": not tool.strict, "coerce_one_of": not tool.strict}
    return as_json({**schema, "type": "object", "x-guidance": form}, f"tool {tool.name}")
