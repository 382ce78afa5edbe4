"""The 145 bad inputs by their numbers: the table that `test_bad_inputs.py` walks.

1-40 URLs, 41-51 `data:` URLs, 52-73 pictures, 74-83 video, 84-93 text, 94-102 options,
103-113 schemas and tools, 114-127 HTTP, 128-145 faults.
"""

from __future__ import annotations

from tests.server.bad_faults import FAULTS
from tests.server.bad_http import HTTP
from tests.server.bad_media import MEDIA
from tests.server.bad_options import OPTIONS
from tests.server.bad_text import TEXT
from tests.server.cases import Row

NUMBERS = range(1, 146)

TABLES: tuple[dict[int, Row], ...] = (MEDIA, TEXT, OPTIONS, HTTP, FAULTS)

BAD_INPUTS: dict[int, Row] = {number: row for table in TABLES for number, row in table.items()}
