"""An address in a compiled kernel -> the line of its source, by the library's DWARF 4 table."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Row:
    address: int = 0
    file: int = 1
    line: int = 1


class _Reader:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> str:
        end = self.data.index(0, self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def leb128(self, signed: bool = False) -> int:
        value = shift = 0
        while True:
            byte = self.take("B")
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - (1 << shift) if signed and byte & 64 else value


def find_line(library: Path, address: int) -> str:
    """Where an instruction comes from: "source:12", or nothing if the table does not say."""
    reader = _Reader(_section(library.read_bytes(), ".debug_line"))
    while reader.at < len(reader.data):
        found = _search_unit(reader, address)
        if found:
            return found
    return ""


def _section(elf: bytes, wanted: str) -> bytes:
    """A section of a 64-bit little-endian ELF file; empty if it has none of that name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * i) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        if _Reader(elf, names + name).text() == wanted:
            return elf[offset : offset + length]
    return b""


def _search_unit(reader: _Reader, address: int) -> str:
    """Run one unit's line program, and leave the reader behind it."""
    end = reader.take("I") + reader.at
    version = reader.take("H")
    program = reader.take("I") + reader.at
    step = reader.take("B")
    if version != 4:
        reader.at = end
        return ""
    reader.at += 2  # operations an instruction, default of is_stmt
    line_base, line_range, opcode_base = reader.take("b"), reader.take("B"), reader.take("B")
    lengths = [reader.take("B") for _ in range(opcode_base - 1)]
    while reader.text():  # folders
        pass
    files = [""]
    while name := reader.text():
        files.append(name)
        for _ in range(3):  # folder, time, length
            reader.leb128()
    reader.at = program
    row, last, found = _Row(), _Row(), ""
    while reader.at < end:
        opcode, emitted, ended = reader.take("B"), False, False
        if opcode >= opcode_base:
            advance, change = divmod(opcode - opcode_base, line_range)
            row.address += step * advance
            row.line += line_base + change
            emitted = True
        elif opcode == 0:
            length = reader.leb128()
            after = reader.at + length
            extended = reader.take("B")
            if extended == 2:
                row.address = reader.take("Q")
            emitted = ended = extended == 1
            reader.at = after
        elif opcode == 1:
            emitted = True
        elif opcode == 2:
            row.address += step * reader.leb128()
        elif opcode == 3:
            row.line += reader.leb128(signed=True)
        elif opcode == 4:
            row.file = reader.leb128()
        elif opcode == 8:
            row.address += step * ((255 - opcode_base) // line_range)
        elif opcode == 9:
            row.address += reader.take("H")
        else:
            for _ in range(lengths[opcode - 1]):
                reader.leb128()
        if emitted:
            if last.address <= address < row.address and last.address:
                found = f"{files[last.file]}:{last.line}"
            last = _Row() if ended else _Row(row.address, row.file, row.line)
            row = _Row() if ended else row
    reader.at = end
    return found
