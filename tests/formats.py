"""Policies in every format, for the tests of the bulk import."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from openpyxl import Workbook

from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import read_policies
from insurer_agent.intake.profile import Profile

CHINESE = ("保单号", "证件类型", "证件号码", "险种", "保额", "承保日期", "业务类型")
GOOD = ("A-1", "身份证", "110101194903070014", "意外险", "5000000", "2026-11-03", "承保")
PRODUCTS = frozenset({"accident", "group_accident"})
MAXIMUM = 2**47
DEFAULT = Profile()
Rows = list[PolicyRow | RejectedRow]

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def read(path: Path, content: bytes | None = None, profile: Profile = DEFAULT) -> Rows:
    if content is not None:
        path.write_bytes(content)
    return list(read_policies(path, products=PRODUCTS, maximum=MAXIMUM, profile=profile))


def codes(rows: Rows) -> dict[int, str]:
    """Say of each row what became of it: the code of its rejection, or "read"."""
    return {row.row: row.code if isinstance(row, RejectedRow) else "read" for row in rows}


def the_policy(rows: Rows) -> PolicyRow:
    (row,) = rows
    assert isinstance(row, PolicyRow), row
    return row


def changed(**cells: object) -> tuple[object, ...]:
    """Return a good row, other in the cells that are named by our columns."""
    names = ("policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event")
    assert set(cells) <= set(names)
    return tuple(cells.get(name, good) for name, good in zip(names, GOOD, strict=True))


def csv_bytes(*rows: Sequence[str], encoding: str = "utf-8", delimiter: str = ",", end: str = "\n") -> bytes:
    return "".join(delimiter.join(row) + end for row in rows).encode(encoding)


def workbook(*rows: Sequence[object], title: str = "明细") -> Workbook:
    book = Workbook()
    sheet = book.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    return book


def saved(book: Workbook) -> bytes:
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def sheet_xml(*rows: str, after: str = "") -> str:
    """Return a sheet whose rows are given as the XML of their cells."""
    inside = "".join(f'<row r="{number}">{row}</row>' for number, row in enumerate(rows, 1))
    return f"<worksheet {MAIN}><sheetData>{inside}</sheetData>{after}</worksheet>"


def text_cells(*values: object) -> str:
    return "".join(f'<c t="inlineStr"><is><t>{value}</t></is></c>' for value in values)


def package(sheet: str | bytes, parts: Mapping[str, str | bytes] | None = None, workbook_inside: str = "") -> bytes:
    """Return the smallest workbook around a sheet, with other parts beside or in place of its own."""
    whole: dict[str, str | bytes] = {
        "_rels/.rels": f'<Relationships><Relationship Id="r" Type="{RELS}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>",
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{RELS}">{workbook_inside}'
        '<sheets><sheet name="S" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships><Relationship Id="rId1" Type="{RELS}/worksheet"'
        ' Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{RELS}/sharedStrings" Target="/xl/sharedStrings.xml"/>'
        f'<Relationship Id="rId3" Type="{RELS}/styles" Target="styles.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": sheet,
    } | dict(parts or {})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in whole.items():
            archive.writestr(name, content)
    return out.getvalue()
