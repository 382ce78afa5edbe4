"""Answers of a given form: how it is described, what the model is told, and what is printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_qwenvl import OptionError
from mlx_qwenvl.extracting.form import Form, read_form
from mlx_qwenvl.extracting.table import table_of, written
from mlx_qwenvl.generate import main
from tests.command_lines import SHAPES

RECEIPT = {
    "date": "2026-11-28",
    "shop": {"name": "Bär | Sohn", "open": True},
    "items": [{"name": "Milk", "price": 1.5}, {"name": "Bread, white", "price": None}],
    "tags": ["food", "cash"],
}
RECEIPT_FORM = """
date date: when it was printed
total float, paid bool, currency EUR|USD
items {name, price float, count int}[]
tags[]
"""

# --- Reading a form -----------------------------------------------------------------------------


def test_a_list_of_fields_becomes_a_schema_that_accepts_such_data() -> None:
    schema = read_form(RECEIPT_FORM).schema
    jsonschema.Draft202012Validator.check_schema(schema)
    data: dict[str, Any] = {
        "date": "2026-11-28",
        "total": 3.5,
        "paid": True,
        "currency": "EUR",
        "items": [{"name": "Milk", "price": 1.5, "count": 2}],
        "tags": ["food"],
    }
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(data)
    for name, wrong in {
        "total": "3.5",
        "paid": "yes",
        "currency": "GBP",
        "items": [{"name": "Milk"}],
        "tags": "food",
        "date": None,
    }.items():
        assert not validator.is_valid(data | {name: wrong}), name
        assert not validator.is_valid({key: data[key] for key in data if key != name}), name
    assert not validator.is_valid(data | {"more": 1})


def test_a_schema_is_read_from_a_file_or_as_it_stands(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    path = tmp_path / "my schema.json"
    path.write_text(json.dumps(schema))
    assert read_form(str(path)) == read_form(json.dumps(schema)) == Form(schema)
    path.rename(tmp_path / "schema.txt")
    assert read_form(str(tmp_path / "schema.txt")) == Form(schema)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a field's name"),
        ("name text", "'text', expected str, int"),
        ("name, name", "names 'name' twice"),
        ("name str int", "expected a comma"),
        ("items {name", "expected a closing brace"),
        ("items {}", "expected a field's name"),
        ("name}", "expected the end"),
        ("color red|", "expected a word to choose"),
        ("a {" * 30, "more than 20 braces"),
        ("a[", "expected a comma"),
        ("no such file.json", "No such file"),
        ("{not json}", "is no JSON"),
        ("[1]", "expected a field's name"),
        ("{" * 100_000, "is no JSON"),
    ],
)
def test_what_is_no_form_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=None) as caught:
        read_form(text)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_schema_is_told_with_its_name(tmp_path: Path) -> None:
    for name, data in {"a.json": b"[1]", "b.json": b"\xff\xfe", "c.json": b" " * 300_000}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OptionError, match=name):
            read_form(str(tmp_path / name))


@given(st.text(alphabet="ab {}[]|:,\n", max_size=30))
def test_no_description_fails_otherwise_than_by_an_option_error(text: str) -> None:
    try:
        form = read_form(text)
    except OptionError:
        return
    jsonschema.Draft202012Validator.check_schema(form.schema)


def test_the_model_is_told_the_fields_and_what_they_mean() -> None:
    told = read_form(RECEIPT_FORM).question("Read it.").splitlines()
    assert told[0] == "Read it."
    assert "- date: when it was printed" in told
    assert "- currency (EUR or USD)" in told
    assert "  - price (number)" in told


# --- Printing -----------------------------------------------------------------------------------


def read_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_a_row_is_a_thing_with_the_forms_own_fields_before_it() -> None:
    assert read_csv(written(RECEIPT, "csv")) == [
        ["date", "shop.name", "shop.open", "tags", "items.name", "items.price"],
        ["2026-11-28", "Bär | Sohn", "true", "food; cash", "Milk", "1.5"],
        ["2026-11-28", "Bär | Sohn", "true", "food; cash", "Bread, white", ""],
    ]


def test_a_form_without_a_list_is_one_row() -> None:
    assert table_of({"a": 1, "b": {"c": "x"}}).rows == ((1, "x"),)
    assert table_of([]).rows == ()
    assert table_of([1, 2]).rows == ((1,), (2,))
    assert table_of("x").rows == (("x",),)


def test_two_lists_have_no_common_rows() -> None:
    with pytest.raises(OptionError, match="2 lists"):
        written({"a": [{"x": 1}], "b": [{"y": 1}]}, "csv")


def test_json_is_the_data_itself() -> None:
    assert json.loads(written(RECEIPT, "json")) == RECEIPT
    assert "Bär" in written(RECEIPT, "json")


def test_a_table_is_markdown_whose_columns_line_up() -> None:
    lines = written(RECEIPT, "table").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.replace("\\|", "").count("|") for line in lines] == [7] * 4
    assert set(lines[1]) == set("|- ")


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\r=1"])
def test_text_off_a_picture_is_no_formula_in_a_spreadsheet(text: str) -> None:
    _, row = read_csv(written({"a": text, "b": -2.5}, "csv"))
    assert row == [f"'{text}".replace("\r", "\n"), "-2.5"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_data_is_a_table_or_has_two_lists(data: Any) -> None:
    try:
        table = table_of(data)
    except OptionError as error:
        assert "lists" in str(error)
        return
    assert all(len(row) == len(table.columns) for row in table.rows)
    written(data, "csv")
    written(data, "table")


# --- The command --------------------------------------------------------------------------------


def ask(*arguments: str | Path) -> int:
    return main(["--model", "demo", "--image", str(SHAPES), *map(str, arguments)])


def printed(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    assert ask(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_schema_prints_the_answer_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, ["--schema", "color red|green|blue, big bool"])
    data = json.loads(out)
    assert data["color"] in ("red", "green", "blue") and isinstance(data["big"], bool)


def test_extract_prints_json_csv_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--extract", "color red|green|blue, big bool", "--temperature", "0"]
    data = json.loads(printed(capsys, fields))
    assert list(data) == ["color", "big"]
    rows = read_csv(printed(capsys, [*fields, "--as", "csv"]))
    assert rows == [["color", "big"], [data["color"], str(data["big"]).lower()]]
    assert data["color"] in printed(capsys, [*fields, "--as", "table"]).splitlines()[2]
    whole = json.loads(printed(capsys, [*fields, "--json"]))
    assert whole["data"] == data == json.loads(whole["text"])


def test_an_answer_that_was_cut_off_is_an_error_that_holds_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask("--extract", "name", "--max-tokens", "3") == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "cut off after 3 tokens" in err and "{" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--schema", "a", "--extract", "b"],
        ["--as", "csv"],
        ["--extract", "a", "--as", "csv", "--json"],
        ["--extract", "a nothing"],
        ["--extract", "a", "--as", "xml"],
        ["--draw", "nowhere/x.png"],
        ["--draw", "x.unknown"],
    ],
)
def test_wrong_usage_is_told_before_the_model_is_loaded(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["--model", "no such model", "--image", str(SHAPES), *arguments])
    except SystemExit as left:  # what argparse itself refuses
        code = int(str(left.code))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and len(err.splitlines()) == 1


def test_draw_saves_the_picture_and_says_where_nothing_was_pointed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drawn.jpg"
    path.write_bytes(b"old")
    assert ask("--draw", path) == 0
    out, err = capsys.readouterr()
    assert "circle" in out and "points at nothing" in err
    with Image.open(path) as drawn, Image.open(SHAPES) as original:
        assert (drawn.format, drawn.size) == ("JPEG", original.size)
    assert list(tmp_path.iterdir()) == [path]


def test_draw_needs_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "demo", "--draw", "x.png", "Hello!"]) == 2
    assert "no picture" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--schema", "--extract"])
def test_an_empty_form_is_refused_and_not_passed_over(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "no such model", "--image", str(SHAPES), option, ""]) == 2
    assert "expected a field's name" in capsys.readouterr().err
