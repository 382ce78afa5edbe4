"""What was extracted, as JSON, CSV or a table.

A form has fields of its own and at most one list of things, such as a receipt's date and items. A
row is one of these things, with the form's own fields before it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from mlx_qwenvl.errors import OptionError

Style = Literal["json", "csv", "table"]
STYLES: Final = get_args(Style)
# Spreadsheets take text that begins so for a formula; what stands in a picture must not be one.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a value is text, a number, a truth value or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def table_of(data: Any) -> Table:
    """Lay extracted data out in rows.

    Raises:
        OptionError: It has two lists, which have no common rows.
    """
    if isinstance(data, list) and not _has_things(data):
        return Table(("value",), tuple((_cell(value),) for value in data))
    if not isinstance(data, (Mapping, list)):
        return Table(("value",), ((_cell(data),),))
    own: Mapping[str, Any] = data if isinstance(data, Mapping) else {"": data}
    flat = _flat(own)
    lists = [name for name, value in flat.items() if _has_things(value)]
    if len(lists) > 1:
        raise OptionError(
            f"the answer has {len(lists)} lists ({', '.join(lists)}); a table has room for one, "
            "take --as json"
        )
    alone = {name: _cell(value) for name, value in flat.items() if name not in lists}
    if not lists:
        return Table(tuple(alone), (tuple(alone.values()),))
    (name,) = lists
    things = [_flat(thing) if isinstance(thing, Mapping) else {"": thing} for thing in flat[name]]
    inner = list(dict.fromkeys(key for thing in things for key in thing))
    titles = [f"{name}.{key}".strip(".") for key in inner]
    rows = tuple((*alone.values(), *(_cell(thing.get(key)) for key in inner)) for thing in things)
    return Table((*alone, *titles), rows)


def written(data: Any, style: Style) -> str:
    """Extracted data as text without a line end behind it.

    Args:
        data: What `json.loads` gave.
        style: "json", "csv", or "table", which is Markdown's.

    Raises:
        OptionError: As `table_of`.
    """
    if style == "json":
        return json.dumps(data, ensure_ascii=False, indent=2)
    table = table_of(data)
    if style == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(_safe, table.columns))
        writer.writerows(map(_safe, row) for row in table.rows)
        return out.getvalue().removesuffix("\n")
    shown = [[_in_a_line(value) for value in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(table.columns))]
    shown.insert(1, ["-" * width for width in widths])
    lines = ([cell.ljust(n) for cell, n in zip(row, widths, strict=True)] for row in shown)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _flat(thing: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Fields of objects in objects, named by their path."""
    out: dict[str, Any] = {}
    for name, value in thing.items():
        path = f"{before}.{name}" if before else str(name)
        out |= _flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return out


def _has_things(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)


def _cell(value: Any) -> Any:
    """Lists of plain values in one cell; objects, which a table has no room for, as JSON."""
    if isinstance(value, list) and not any(isinstance(entry, (Mapping, list)) for entry in value):
        return "; ".join(str(_shown(entry)) for entry in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, Mapping)) else value


def _safe(value: Any) -> Any:
    """Text that no spreadsheet runs, with an apostrophe before it where it would."""
    if isinstance(value, bool) or value is None:
        return _shown(value)
    if not isinstance(value, str):
        return value
    # A lone carriage return would end the row: Python's writer does not put it into quotes.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if value.startswith(FORMULA) else text


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_a_line(value: Any) -> str:
    return " ".join(_shown(value).replace("|", "\\|").split())
