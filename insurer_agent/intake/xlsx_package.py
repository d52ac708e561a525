"""An XLSX workbook as the ZIP archive that it is: its parts, within limits, and what stands in them beside the rows.

openpyxl's own reader holds a row's whole tree in memory, and all of a shared string, however large a hostile or broken
file makes them; and it gives up the digits of numbers and which formulas have no value. So the parts are read here,
event by event, by defusedxml, which knows no entities; openpyxl tells which number formats are dates.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.sax import SAXException
from xml.sax.handler import ContentHandler

from defusedxml.common import DefusedXmlException
from defusedxml.sax import make_parser
from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format

from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.number_format import shows_another_number

MAX_PARTS = 10_000
MAX_BYTES = 2 << 30
"""Decompressed bytes of all parts together; a sheet of 1,048,576 rows has some 500 MB."""
MAX_SMALL_PART_BYTES = 16 << 20
MAX_SHARED_BYTES = 256 << 20
"""Decompressed bytes of the shared strings, which are held in memory."""
MAX_ITEMS = 100_000
MAX_TOKEN_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_SHEETS = 1000

_READ_BYTES = 64 * 1024
# Number formats without a definition of their own that are dates in East Asian editions (ECMA-376, 18.8.30).
_EAST_ASIAN_DATES = frozenset({*range(27, 37), *range(50, 59)})
_RELATIONSHIP = re.compile(r"/(worksheet|sharedStrings|styles|officeDocument)$")


class Parts:
    """The parts of a workbook; raises FileRejected, xlsx-too-large, where they are larger than the limits."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        infos = archive.infolist()
        self._sizes = {info.filename: info.file_size for info in infos}
        # What a part says of its size is what zipfile reads of it at most, so the sum bounds the work.
        if len(infos) > MAX_PARTS or sum(info.file_size for info in infos) > MAX_BYTES:
            raise FileRejected("xlsx-too-large", "the workbook is too large when it is unpacked; save it as CSV")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
            raise damaged()

    def size(self, name: str) -> int:
        """Return a part's decompressed size in bytes."""
        return self._sizes[name]

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a part's bytes."""
        with self._archive.open(name) as part:
            while chunk := part.read(_READ_BYTES):
                yield chunk

    def parse(self, name: str, handler: ContentHandler, most: int = MAX_SMALL_PART_BYTES) -> None:
        """Have a handler told of a whole part, of `most` bytes at most; nothing if there is no such part."""
        if name not in self._sizes:
            return
        if self._sizes[name] > most:
            raise FileRejected("xlsx-too-large", "a part of the workbook is too large; save the sheet as CSV")
        for _ in parsed(self.chunks(name), handler):
            pass

    def related(self, name: str) -> list[tuple[str, str, str]]:
        """Return kind, id and part of what a part relates to."""
        folder, file = posixpath.split(name)
        found: list[tuple[str, str, str]] = []

        def start(element: str, attributes: dict[str, str]) -> None:
            kind = _RELATIONSHIP.search(attributes.get("Type", ""))
            if element == "Relationship" and kind and len(found) < MAX_ITEMS:
                target = posixpath.join("/", folder, attributes.get("Target", ""))
                found.append((kind[1], attributes.get("Id", ""), posixpath.normpath(target).lstrip("/")))

        self.parse(posixpath.join(folder, "_rels", f"{file}.rels"), Elements(start))
        return found


class Nested(ContentHandler):
    """Refuses elements that are nested deeper than any spreadsheet program nests them."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: ANN401, ARG002, N802 - the name and type are SAX's
        """Count a start."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise damaged()

    def endElement(self, name: str) -> None:  # noqa: ARG002, N802 - as above
        """Count an end."""
        self._depth -= 1


class Elements(Nested):
    """Tells of the starts of elements, by names and attributes without their prefixes."""

    def __init__(self, start: Callable[[str, dict[str, str]], None]) -> None:
        super().__init__()
        self._start = start

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: ANN401, N802 - the name and type are SAX's
        """Tell of a start."""
        super().startElement(name, attrs)
        self._start(local(name), {local(key): value for key, value in attrs.items()})


def parsed(chunks: Iterator[bytes], handler: ContentHandler) -> Iterator[None]:
    """Have a handler told of XML chunk by chunk; entities and document types are refused."""
    parser = make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(handler)
    place, unfinished = None, 0
    for chunk in chunks:
        parser.feed(chunk)
        # The parser holds a tag or comment in memory until it ends; text it tells of piece by piece.
        now = parser.getLineNumber(), parser.getColumnNumber()
        place, unfinished = now, unfinished + len(chunk) if now == place else 0
        if unfinished > MAX_TOKEN_BYTES:
            raise damaged()
        yield
    parser.close()
    yield


def local(name: str) -> str:
    """Return a name without its prefix."""
    return name.rpartition(":")[2]


@dataclass(frozen=True)
class Sheet:
    """A worksheet and where it is."""

    name: str
    part: str
    hidden: bool


@dataclass(frozen=True)
class Workbook:
    """What the cells of a workbook need: its sheets, strings, the styles that are dates, and its date system."""

    sheets: tuple[Sheet, ...]
    strings: list[str]
    date_styles: frozenset[int]
    doubtful_styles: frozenset[int]
    from_1904: bool


def read_workbook(parts: Parts, most_characters: int) -> Workbook:
    """Read all but the rows; a shared string is cut to `most_characters` + 1."""
    name = next((part for kind, _, part in parts.related("") if kind == "officeDocument"), "xl/workbook.xml")
    related = parts.related(name)
    targets = {one: part for kind, one, part in related if kind == "worksheet"}
    by_kind = {kind: part for kind, _, part in related}
    sheets: list[Sheet] = []
    from_1904 = False

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal from_1904
        if element == "workbookPr":
            from_1904 = attributes.get("date1904") in ("1", "true")
        elif element == "sheet" and attributes.get("id") in targets:
            if len(sheets) == MAX_SHEETS:
                raise FileRejected("xlsx-too-large", f"the workbook has more than {MAX_SHEETS} sheets")
            hidden = attributes.get("state", "visible") != "visible"
            sheets.append(Sheet(attributes.get("name", ""), targets[attributes["id"]], hidden))

    parts.parse(name, Elements(start))
    strings = SharedStrings(most_characters)
    parts.parse(by_kind.get("sharedStrings", ""), strings, MAX_SHARED_BYTES)
    styles = _styles(parts, by_kind.get("styles", ""))
    return Workbook(tuple(sheets), strings.strings, *styles, from_1904)


def _styles(parts: Parts, name: str) -> tuple[frozenset[int], frozenset[int]]:
    """Return the places of the cell styles that show a number as a date, and of those that show another number."""
    formats: dict[int, str] = dict(BUILTIN_FORMATS)
    styles: list[int] = []
    inside = ""

    def start(element: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        if element in ("cellXfs", "cellStyleXfs", "dxfs"):
            inside = element
        elif element == "numFmt" and len(formats) < MAX_ITEMS:
            formats[int(attributes.get("numFmtId", "0"))] = attributes.get("formatCode", "")
        elif element == "xf" and inside == "cellXfs" and len(styles) < MAX_ITEMS:
            styles.append(int(attributes.get("numFmtId", "0")))

    parts.parse(name, Elements(start))
    dates = {one for one in set(styles) if _is_date(one, formats)}
    doubtful = {one for one in set(styles) - dates if shows_another_number(formats.get(one, ""))}
    return (
        frozenset(place for place, one in enumerate(styles) if one in dates),
        frozenset(place for place, one in enumerate(styles) if one in doubtful),
    )


def _is_date(number_format: int, formats: dict[int, str]) -> bool:
    if number_format not in formats:
        return number_format in _EAST_ASIAN_DATES
    return bool(is_date_format(formats[number_format]))


class SharedStrings(Nested):
    """Collects the strings of a workbook; phonetic hints are left out, and nothing is kept beyond a cell's length."""

    def __init__(self, most_characters: int) -> None:
        super().__init__()
        self.strings: list[str] = []
        self._most = most_characters + 1
        self._text: list[str] = []
        self._length = 0
        self._path: list[str] = []

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: ANN401, N802 - the name and type are SAX's
        """Note where we are."""
        super().startElement(name, attrs)
        self._path.append(local(name))
        if self._path[-1] == "si":
            self._text, self._length = [], 0

    def endElement(self, name: str) -> None:  # noqa: N802 - as above
        """Keep a string that is whole."""
        super().endElement(name)
        if self._path.pop() == "si":
            self.strings.append("".join(self._text))

    def characters(self, content: str) -> None:
        """Collect a string's pieces."""
        if self._path[-1] == "t" and "rPh" not in self._path and self._length < self._most:
            self._text.append(content[: self._most - self._length])
            self._length += len(content)


@contextmanager
def refuse_damage() -> Iterator[None]:
    """Raise FileRejected, xlsx-damaged, for all that a broken or hostile archive makes the libraries raise."""
    try:
        yield
    except (DefusedXmlException, SAXException, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, MemoryError):
        raise damaged() from None
    except (ValueError, LookupError, ArithmeticError, TypeError):  # UnicodeError and struct.error's kin among them
        raise damaged() from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise
        raise damaged() from None


def damaged() -> FileRejected:
    """Return the rejection of a workbook that cannot be understood."""
    return FileRejected("xlsx-damaged", "the workbook is damaged or holds what no spreadsheet program writes")
