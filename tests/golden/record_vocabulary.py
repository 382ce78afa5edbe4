"""Record ids under the real vocabulary: `python -m tests.golden.record_vocabulary`.

Writes `vocabulary.json` beside this file. Needs transformers and the package index; the tests need
only the index. Every string is recorded twice: with special tokens recognized, as in a template's
own text, and with `split_special_tokens`, as text that a person typed.
"""

# ruff: noqa: RUF001 (many scripts are the point)

from __future__ import annotations

import json
import tempfile
import unicodedata
from pathlib import Path

import tokenizers
import transformers
from transformers import Qwen2Tokenizer

from tests.golden.vocabulary import (
    LEARNED_TOKENS,
    RECORDED_STRINGS,
    WHEEL,
    build_qwen_tokenizer,
)

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"  # one picture of four people
RAINBOW_FLAG = "\U0001f3f3\ufe0f\u200d\U0001f308"
THUMB = "\U0001f44d\U0001f3fd"  # with a skin tone

STRINGS = (
    "",
    " ",
    "a",
    "Hello, world!",
    "You are a helpful assistant.",
    "Describe this image.",
    "  two spaces before, two after  ",
    "tabs\tand\t\ttwo tabs",
    "line\nline\r\nline\n\n\nline",
    "   \n   indented\n\t\n",
    " " * 17,
    "\n" * 9,
    "a" + " " * 40 + "b",
    "no\u00a0break, thin\u2009space, ideographic\u3000space",
    "zero\u200bwidth\ufeffmarks",
    "I'm you're he'll we've they'd it's can't",
    "I'M YOU'RE HE'LL WE'VE THEY'D IT'S CAN'T",
    "O'Neill's l'été d'avant 'tis 'quoted'",
    "don\u2019t \u201cquote\u201d \u2014 dash \u2026",
    "1234567890",
    "3.14159, -2.5e-10, 1,000,000 and 0xDEADBEEF",
    "2024-02-29T23:59:59.999+05:30",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u2160\u2161\u2162 \u00bd \u00b2",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    'print(f"{name!r:>10} {value:.3f}")',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; }",
    "SELECT * FROM t WHERE a <> 'b' AND c IS NOT NULL;",
    '<div class="a">\n  <img src="b.png" alt=""/>\n</div>',
    '{"key": [1, 2, {"nested": null}], \'x\': true}',
    "\\frac{a}{b} = \\sum_{i=1}^{n} x_i^2",
    "https://example.org/a/b?q=1&r=%20#top user@example.org",
    "C:\\Users\\name\\file.txt /usr/local/bin ~/.config",
    "!!! ??? ... --- *** === ### @@@ $$$ %%%",
    "ÄÖÜ äöü ß, Grüße aus Köln",
    "Où est la forêt? Ça va, garçon, naïve, œuvre",
    "¿Dónde está el niño? ¡Mañana!",
    "Zażółć gęślą jaźń; příliš žluťoučký kůň",
    "Türkçe: İstanbul'da ışık; I ı İ i",
    "Ελληνικά: πού είναι η γάτα; ΣΊΣΥΦΟΣ σίσυφος",
    "Русский: где находится библиотека? Ёжик",
    "Українська: їжак і ґанок",
    "中文:这张图片里有什么?两只猫和一只狗。",
    "繁體中文:請問圖書館在哪裡?",
    "日本語:これは何の写真ですか?カタカナとひらがな。",
    "한국어: 이 사진에는 무엇이 있습니까?",
    "العربية: أين المكتبة؟ مَرْحَبًا",
    "עברית: איפה הספרייה? שָׁלוֹם",
    "فارسی: کتابخانه کجاست؟ می\u200cخواهم",
    "हिन्दी: पुस्तकालय कहाँ है? क्षत्रिय",
    "বাংলা: গ্রন্থাগার কোথায়?",
    "தமிழ்: நூலகம் எங்கே?",
    "ไทย: ห้องสมุดอยู่ที่ไหน",
    "Tiếng Việt: thư viện ở đâu?",
    "ქართული: სად არის ბიბლიოთეკა?",
    "Հայերեն: որտե՞ղ է գրադարանը",
    "አማርኛ: ቤተ መጻሕፍቱ የት ነው?",
    "English und Deutsch 和中文 и русский together",
    unicodedata.normalize("NFD", "café, naïve, Ångström, Tiếng Việt"),
    unicodedata.normalize("NFD", "한국어 が ぱ"),
    "e\u0301\u0323 and e\u0323\u0301 are one letter; \u212b is \u00c5; \ufb01 stays",
    "\U0001f600\U0001f603 \u2764\ufe0f \u2764",
    f"family {FAMILY} flag {RAINBOW_FLAG} thumb {THUMB}",
    "\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 flags, keycap 1\ufe0f\u20e3",
    "\U0001d7d8\U0001d4d0 \U00020000\U0002a6d6 far planes, \U0001f9ff",
    "\x00\x01\x07\x1b[31mred\x1b[0m\x7f\x85",
    "private \ue000 and unassigned \U0003fffd and \ufffd",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "GATTACAGATTACA qwrtpsdfghjklzxcvbnm",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n",
    "<|image_pad|>" * 5 + "<|video_pad|><|vision_pad|>",
    "text<|im_end|>text  <|im_start|>  text",
    "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
    "<|quad_start|>(1,2),(3,4),(5,6),(7,8)<|quad_end|>",
    "cafe<|im_end|>\u0301 mark after a special token",
    "almost special: <|im_end| <im_end> <|im_end |> <|IM_END|> <|fim_prefix|> <tool_call>",
    "I'<|im_end|>m and <<|im_end|>>",
)


def main() -> None:
    """Record every string and write the file."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Qwen2Tokenizer.from_pretrained(build_qwen_tokenizer(Path(name)))
    recorded = []
    for text in STRINGS:
        special = tokenizer.encode(text)
        plain = tokenizer.encode(text, split_special_tokens=True)
        assert max(plain, default=0) < LEARNED_TOKENS, text
        for ids in (special, plain):
            decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text), text
        recorded.append({"text": text, "special": special, "plain": plain})
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    about = json.dumps({"vocabulary": WHEEL, "versions": versions})
    # One string a line, so that a difference can be read.
    lines = ",\n".join(json.dumps(entry) for entry in recorded)
    RECORDED_STRINGS.write_text(f'{{"about": {about}, "strings": [\n{lines}\n]}}\n', "utf-8")
    size = RECORDED_STRINGS.stat().st_size
    print(f"{RECORDED_STRINGS.name}: {len(recorded)} strings, {size} bytes")


if __name__ == "__main__":
    main()
