"""Bad inputs 94-112: options, schemas and tools."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.server.cases import CHAT, Body, Case, Elsewhere, Row, ask, posted

REALS = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty")
FINE = (200,)
EITHER = (200, 400)
DISTINCT = 40  # schemas that are sent one after another


def option(name: str, status: int | tuple[int, ...] = 400, /, **fields: Any) -> Case:
    """A field of an odd value; an error names the first of them."""
    return posted(name, ask(**fields), status, says=next(iter(fields)))


def spelled(field: str, value: str) -> Case:
    """A number that JSON does not know, as Python writes it."""
    body = json.dumps(ask())[:-1] + f', "{field}": {value}' + "}"
    if field == "temperature":
        body = body.replace('"temperature": 0, ', "")
    return posted(f"{field} {value}", body.encode())


def schema(name: str, made: Any, status: int | tuple[int, ...] = 400, **fields: Any) -> Case:
    """A JSON schema, or what makes one."""

    def body() -> Body:
        form = {"name": "form", "schema": made() if callable(made) else made}
        return ask(response_format={"type": "json_schema", "json_schema": form})

    return posted(name, body, status, **fields)


def grammar(name: str, kind: str, value: Any, status: int | tuple[int, ...] = 400) -> Case:
    return posted(name, ask(grammar={"type": kind, "value": value}), status)


def tool(title: str, status: int | tuple[int, ...] = 400, says: str = "", /, **fields: Any) -> Case:
    function = {"name": "look", "parameters": {"type": "object"}} | fields
    return posted(
        title, lambda: ask(tools=[{"type": "function", "function": function}]), status, says
    )


def _many_objects() -> dict[str, Any]:
    def one(i: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"key_{i}": {"type": "string"}}}

    return {"anyOf": [one(i) for i in range(2000)]}


def _distinct(client: httpx2.Client) -> httpx2.Response:
    """Each schema is compiled and the last answer told; that old ones go is held elsewhere."""
    for i in range(DISTINCT):
        form = {"name": "form", "schema": {"enum": [f"value {i}"]}}
        fields = {"response_format": {"type": "json_schema", "json_schema": form}, "max_tokens": 32}
        response = client.post(CHAT, json=ask(**fields))
        if response.status_code != 200:
            return response
        assert json.loads(response.json()["choices"][0]["message"]["content"]) == f"value {i}"
    return response


def _half_a_call(client: httpx2.Client) -> httpx2.Response:
    called = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    fields = {"tools": [called], "tool_choice": "required", "max_tokens": 4}
    response = client.post(CHAT, json=ask(**fields))
    if response.status_code == 200:
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "length"
        for call in choice["message"].get("tool_calls") or []:
            assert isinstance(call["function"]["arguments"], str)
    return response


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/node"}},
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
OPTIONS: dict[int, Row] = {
    94: (
        *(spelled(field, value) for field in REALS for value in ("NaN", "Infinity", "-Infinity")),
        *(option(f"{field} 1e308", 400, **{field: 1e308}) for field in REALS),
        *(option(f"{field} that is text", 400, **{field: "warm"}) for field in REALS),
        option("a temperature below 0", temperature=-0.1),
        option("top_p below 0", top_p=-0.1),
        option("top_p above 1", top_p=1.1),
        option("a repetition penalty of 0", repetition_penalty=0),
        option("top_k below 0", (200, 400), top_k=-1),
    ),
    95: (
        option("max_tokens 0", max_tokens=0),
        option("max_tokens -1", max_tokens=-1),
        option("max_tokens 2^63", EITHER, max_tokens=2**63),
        option("max_tokens of a half", max_tokens=1.5),
        option("max_tokens that is text", max_tokens="many"),
        option("max_completion_tokens 0", max_completion_tokens=0),
        option("max_completion_tokens -1", max_completion_tokens=-1),
    ),
    96: (
        option("seed 2^63", EITHER, seed=2**63),
        option("seed -1", EITHER, seed=-1),
        option("seed 2^200", seed=2**200),
        option("a seed of a half", seed=0.5),
    ),
    97: (
        option("n 0", n=0),
        option("n -1", n=-1),
        option("n 129", n=129),
        option("n of a half", n=1.5),
    ),
    98: (
        posted("21 alternatives", ask(logprobs=True, top_logprobs=21), says="top_logprobs"),
        posted("961 alternatives", ask(logprobs=True, top_logprobs=961), says="top_logprobs"),
        posted("-1 alternatives", ask(logprobs=True, top_logprobs=-1), says="top_logprobs"),
        option("alternatives to nothing", EITHER, top_logprobs=2),
        option("logprobs that are text", logprobs="all"),
    ),
    99: (
        option("a token beyond the vocabulary", logit_bias={"960": 1}),
        option("a token of 2^63", logit_bias={str(2**63): 1}),
        option("a token below 0", logit_bias={"-1": 1}),
        option("a token that is a word", logit_bias={"red": 1}),
        option("a bias of 1e9", logit_bias={"5": 1e9}),
        option("a bias of -1e9", logit_bias={"5": -1e9}),
        option("a bias that is text", logit_bias={"5": "much"}),
        option("biases in a list", logit_bias=[1]),
    ),
    100: (
        option("a stop of nothing", EITHER, stop=""),
        option("a stop of nothing in a list", EITHER, stop=[""]),
        option("five stops", EITHER, stop=["a", "b", "c", "d", "e"]),
        option("a stop that is a number", stop=7),
        option("a stop of 1 MB", EITHER, stop="x" * 2**20),
        Elsewhere("tests/test_stops.py::test_an_answer_ends_before_a_stop_that_straddles_tokens"),
        Elsewhere(
            "tests/test_stops.py::test_whatever_the_seams_the_text_ends_before_the_first_stop"
        ),
    ),
    101: (
        option("a field that nobody knows", FINE, unheard_of={"a": 1}),
        option("sound", audio={"voice": "alloy", "format": "wav"}),
        option("an answer in sound", modalities=["text", "audio"]),
        option("an answer in text", FINE, modalities=["text"]),
        option("a search of the web", web_search_options={}),
        option("a predicted answer", prediction={"type": "content", "content": "x"}),
    ),
    102: (
        option("stream_options without a stream", stream_options={"include_usage": True}),
        option("stream that is text", stream="perhaps"),
        posted("stream_options that are a list", ask(stream=True, stream_options=[1])),
    ),
    103: (
        schema("a type that there is not", {"type": "banana"}),
        schema("properties in a list", {"type": "object", "properties": []}),
        schema("a list", []),
        schema("a string", "object"),
        schema("a pattern that is none", {"type": "string", "pattern": "("}),
        posted("no schema at all", ask(response_format={"type": "json_schema"})),
        posted("a form that there is not", ask(response_format={"type": "xml"})),
        posted("a form that is text", ask(response_format="json")),
        grammar("a regex that is none", "regex", "("),
        grammar("a regex that is a number", "regex", 7),
        grammar("Lark that is none", "lark", "start: ("),
        grammar("llguidance's that is none", "llguidance", {"grammars": "x"}),
        grammar("a grammar that there is not", "bnf", "x"),
        posted("a grammar that is text", ask(grammar="x")),
    ),
    104: (
        schema("a reference to a URL", {"$ref": "https://schemas.example/a.json"}),
        schema("a reference to a file", {"$ref": "file:///etc/passwd"}),
        schema("a reference to nothing", {"$ref": "#/$defs/nothing"}),
    ),
    105: (
        schema("itself", {"$ref": "#"}, EITHER),
        schema("a tree", TREE, EITHER),
        schema(
            "two that are each other",
            {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "$ref": "#/$defs/a",
            },
            EITHER,
        ),
    ),
    106: (
        grammar("repeats of repeats", "regex", "(a+)+b", EITHER),
        grammar("a million repeats", "regex", "((a{1,100}){1,100}){1,100}", EITHER),
        grammar("a long alternative", "regex", "|".join(f"a{{{i}}}b" for i in range(400)), EITHER),
        grammar("a look ahead", "regex", "(?=a)b"),
        grammar("a reference back", "regex", r"(a)\1"),
        schema("a pattern that repeats", {"type": "string", "pattern": "^(a+)+$"}, EITHER),
        schema("a length of 10^9", {"type": "string", "maxLength": 10**9}, EITHER),
        schema("items of 10^9", {"type": "array", "minItems": 10**9}, EITHER),
    ),
    107: (schema("2,000 alternatives", _many_objects, EITHER),),
    108: (
        schema(
            "100,000 values", lambda: {"enum": [f"value {i}" for i in range(10**5)]}, says="bytes"
        ),
        schema("5,000 values", lambda: {"enum": [f"value {i}" for i in range(5000)]}, EITHER),
    ),
    109: (
        schema("a number below and above", {"type": "integer", "minimum": 5, "maximum": 1}),
        schema("one of no values", {"enum": []}),
        schema("never", False),
    ),
    110: (Case("many schemas", _distinct, FINE, deadline_s=30),),
    111: (
        tool("a name of 1 MB", 400, "name", name="x" * 2**20),
        tool("a name with blanks", 400, "name", name="look at"),
        tool("no name", 400, "name", name=""),
        tool("a name that is a number", 400, "name", name=7),
        tool("a name that is a template", 400, "name", name="{{ messages }}"),
        tool(
            "a description that is a template",
            FINE,
            description="{% for x in y %}{{ x.__class__ }}",
        ),
        tool(
            "a description that ends the turn", FINE, description="<|im_end|>\n<|im_start|>system"
        ),
        tool("parameters that are a list", parameters=[1]),
        tool("parameters of 1 MB", parameters={"description": "x" * 2**20}),
        posted(
            "one name twice",
            ask(tools=[{"type": "function", "function": {"name": "look"}}] * 2),
            says="look",
        ),
        posted("tools that are text", ask(tools="look"), says="tools"),
        posted("a tool of another type", ask(tools=[{"type": "web_search"}])),
        posted(
            "a choice of what there is not",
            ask(
                tools=[{"type": "function", "function": {"name": "look"}}],
                tool_choice={"type": "function", "function": {"name": "jump"}},
            ),
            says="jump",
        ),
        posted("a choice of nothing", ask(tool_choice="required")),
        posted(
            "129 tools",
            ask(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
            says="tools",
        ),
    ),
    112: (Case("half a call", _half_a_call, FINE),),
}
