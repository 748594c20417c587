"""The first sheet of an `.xlsx` file as rows of text: a ZIP of XML, read without a library.

ECMA-376, part 1, section 18: cells hold numbers, text of their own (`inlineStr`), or the number of
a text that is shared (`s`).
"""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from deepseek.errors import DataError

SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
MAX_BYTES = 256 << 20
"""Of a part, unpacked."""


def read_spreadsheet(path: Path) -> list[list[str]]:
    """Return the cells of the first sheet; those that are missing are "".

    Raises:
        DataError: it is no such file, or larger than 256 MiB when unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sheet = _parse(archive, "xl/worksheets/sheet1.xml", path)
            has_shared = "xl/sharedStrings.xml" in archive.namelist()
            shared = _parse(archive, "xl/sharedStrings.xml", path) if has_shared else []
            texts = [_text_of(entry) for entry in shared]
            rows = [
                {_column(cell): _value(cell, texts) for cell in row}
                for row in sheet.iter(f"{SPACE}row")
            ]
    except (OSError, zipfile.BadZipFile, KeyError, ElementTree.ParseError, LookupError) as error:
        raise DataError(
            f"{path} is no .xlsx file: {error}", fix="give the original file"
        ) from error
    width = max((max(row, default=-1) for row in rows), default=-1) + 1
    return [[row.get(column, "") for column in range(width)] for row in rows]


def _parse(archive: zipfile.ZipFile, name: str, path: Path) -> ElementTree.Element:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise DataError(f"{path}: {name} is larger than 256 MiB", fix="give a smaller file")
    content = archive.read(name)
    if b"<!DOCTYPE" in content:  # entities that grow when they are read
        raise DataError(f"{path}: {name} defines entities", fix="save it anew as .xlsx")
    return ElementTree.fromstring(content)


def _text_of(entry: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in entry.iter(f"{SPACE}t"))


def _column(cell: ElementTree.Element) -> int:
    """Return the number of a column from 0: that of `AB7` is 27."""
    letters = re.match("[A-Z]{1,3}", cell.attrib["r"])
    number = 0
    for letter in letters[0] if letters else "A":
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, texts: list[str]) -> str:
    kind = cell.get("t")
    if kind == "inlineStr":
        return _text_of(cell)
    value = cell.findtext(f"{SPACE}v") or ""
    return texts[int(value)] if kind == "s" else value
