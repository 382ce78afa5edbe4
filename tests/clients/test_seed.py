"""The page that this project began with: its two HTTP examples, and what those beside it send.

The page's Python example says `client` and defines none; what it configures is the module, whose
`chat` is the client meant. So that one name is given here, and the base URL and the picture are
put in place of the page's; nothing else of it is changed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from tests.clients.asking import (
    PICTURES,
    QUESTION,
    SEEDS_ANSWER,
    SEEDS_PICTURE,
    SHOWN,
    bare_jpeg,
    data_url,
    foreign,
    said,
    seen,
)
from tests.live import Live

openai = foreign("openai")

SNIPPET = """
import openai

openai.api_key = "EMPTY"
openai.base_url = "http://localhost:1234/v1/"

completion = client.chat.completions.create(
    model="llama-vision",
    messages=[
        {
            "role": "user",
            "content": [
                {
                    "type": "image_url",
                    "image_url": {
                        "url": "https://www.nhmagazine.com/content/uploads/2019/05/mtwashingtonFranconia-2-19-18-108-Edit-Edit.jpg"
                    },
                },
                {
                    "type": "text",
                    "text": "What is shown in this image? Write a detailed response analyzing the scene.",
                },
            ],
        },
    ],
    max_tokens=256,
    frequency_penalty=1.0,
    top_p=0.1,
    temperature=0,
)
resp = completion.choices[0].message.content
print(resp)
"""  # noqa: E501
PAGES_PICTURE = re.search(r'"(https://.*jpg)"', SNIPPET)[1]  # type: ignore[index]


@pytest.mark.parametrize("source", ["data", "base64", "path"])
def test_the_pages_example_runs(live: Live, source: str) -> None:
    url = {
        "data": data_url(SEEDS_PICTURE),
        "base64": bare_jpeg(SEEDS_PICTURE),
        "path": SEEDS_PICTURE,
    }[source]
    code = SNIPPET.replace("http://localhost:1234/v1/", live.v1 + "/")
    code = code.replace(PAGES_PICTURE, url)
    done = subprocess.run(
        [sys.executable, "-"],
        input=code.replace("completion =", "client = openai\ncompletion ="),
        env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.returncode) == (SEEDS_ANSWER + "\n", 0), done.stderr


def post(live: Live, **fields: Any) -> dict[str, Any]:
    """An example of the kind that needs no SDK: a body, posted with a bearer that is none."""
    asked = {"model": "phi3v", "max_tokens": 256, "frequency_penalty": 1.0, "top_p": 0.1}
    response = httpx2.post(
        f"{live.v1}/chat/completions",
        json=asked | {"temperature": 0} | fields,
        headers={"Authorization": "Bearer EMPTY"},
        timeout=60,
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("mark", ["", "<|image|>", "<|image_1|>\n"])
@pytest.mark.parametrize(
    "source",
    [
        pytest.param("heart.png", id="a path below the image root"),
        pytest.param(str(PICTURES / "heart.png"), id="an absolute path below it"),
        pytest.param(bare_jpeg("heart.png"), id="bare base64"),
        pytest.param("data:image/png;base64," + bare_jpeg("heart.png"), id="a label that lies"),
    ],
)
def test_its_other_ways_to_send_a_picture_work(live: Live, source: str, mark: str) -> None:
    """A mark of another model's template before the question is text and does no harm."""
    reply = post(live, messages=seen(source, mark + QUESTION))
    assert reply["choices"][0]["message"]["content"] == SHOWN["heart.png"]


def test_a_large_picture_in_base64_is_no_path(live: Live) -> None:
    source = bare_jpeg("shapes.png")
    source += "A" * (-len(source) % 4 + 40_000)  # decoders stop at the JPEG's end
    reply = post(live, messages=seen(source))
    assert reply["choices"][0]["message"]["content"] == SHOWN["shapes.png"]


def test_messages_may_be_a_string(live: Live) -> None:
    listed = post(live, messages=said("Who are you?"))
    assert post(live, messages="Who are you?")["choices"] == listed["choices"]


def test_a_stream_can_be_joined_without_a_look_at_each_piece(live: Live) -> None:
    with openai.OpenAI(base_url=live.v1, api_key="EMPTY") as client:
        text = ""
        for chunk in client.chat.completions.create(
            model="mistral", messages=seen(data_url("star.png")), temperature=0, stream=True
        ):
            text += chunk.choices[0].delta.content
    assert text == SHOWN["star.png"]


def test_rates_stand_beside_the_usage(live: Live) -> None:
    usage = post(live, messages=said("Who are you?"))["usage"]
    assert usage["avg_prompt_tok_per_sec"] > 0 and usage["avg_compl_tok_per_sec"] > 0


@pytest.mark.parametrize(
    ("grammar", "check"),
    [
        ({"type": "regex", "value": "[a-c]{5}"}, lambda text: set(text) <= set("abc")),
        ({"type": "lark", "value": 'start: "left" | "right"'}, ("left", "right").__contains__),
        (
            {
                "type": "json_schema",
                "value": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
            },
            lambda text: json.loads(text)["n"] in range(10),
        ),
        (
            {
                "type": "llguidance",
                "value": {"grammars": [{"lark_grammar": 'start: "up" | "down"'}]},
            },
            ("up", "down").__contains__,
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_its_grammars_hold(live: Live, grammar: dict[str, Any], check: Any) -> None:
    with openai.OpenAI(base_url=live.v1, api_key="EMPTY") as client:
        reply = client.chat.completions.create(
            model="default",
            messages=said("Which?"),
            temperature=0,
            max_tokens=100,
            extra_body={"grammar": grammar},
        )
    assert check(reply.choices[0].message.content)
