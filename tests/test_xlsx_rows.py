"""Workbooks as spreadsheet programs and programmers write them, and as attackers do."""

import datetime as dt
import io
import resource
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from formats import CHINESE, GOOD, changed, codes, package, read, saved, sheet_xml, text_cells, the_policy, workbook
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.utils.datetime import CALENDAR_MAC_1904
from strategies import deterministic

from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rows import MAX_CELL_CHARACTERS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xlsx") / "policies.dat"  # the name says nothing


def one(file: Path, **cells: object) -> PolicyRow | RejectedRow:
    (row,) = read(file, saved(workbook(CHINESE, changed(**cells))))
    return row


def refusal(file: Path, content: bytes, profile: Profile | None = None) -> str:
    with pytest.raises(FileRejected) as rejected:
        read(file, content, profile or Profile())
    assert "110101" not in str(rejected.value)
    return rejected.value.code


@pytest.mark.parametrize(
    ("cells", "amount", "day"),
    [
        ({}, 500_000_000, (2026, 11, 3)),
        ({"insured_amount": 5_000_000}, 500_000_000, (2026, 11, 3)),
        ({"insured_amount": 300000.5}, 30_000_050, (2026, 11, 3)),
        ({"insured_amount": 1.1}, 110, (2026, 11, 3)),
        ({"insured_amount": 0.29}, 29, (2026, 11, 3)),
        ({"insured_amount": "1.2亿"}, 12_000_000_000, (2026, 11, 3)),
        ({"issued_on": dt.date(2026, 11, 4)}, 500_000_000, (2026, 11, 4)),
        ({"issued_on": dt.datetime(2026, 11, 4, 23, 59, 59)}, 500_000_000, (2026, 11, 4)),  # noqa: DTZ001
        ({"issued_on": 46333}, 500_000_000, (2026, 11, 7)),  # a day that was formatted as a number
        ({"issued_on": 20261104}, 500_000_000, (2026, 11, 4)),
    ],
)
def test_numbers_and_days_of_cells(
    file: Path, cells: dict[str, object], amount: int, day: tuple[int, int, int]
) -> None:
    row = one(file, **cells)
    assert isinstance(row, PolicyRow), row
    assert (row.amount, row.issued_on) == (amount, dt.date(*day))


def test_days_of_the_1904_system(file: Path) -> None:
    book = workbook(CHINESE, changed(issued_on=dt.date(2026, 11, 4)), changed(issued_on=44871))
    book.epoch = CALENDAR_MAC_1904
    rows = read(file, saved(book))
    assert [row.issued_on for row in rows if isinstance(row, PolicyRow)] == [dt.date(2026, 11, 4), dt.date(2026, 11, 7)]


def test_a_chinese_editions_own_date_format_is_one(file: Path) -> None:
    cells = [*(f'<c t="inlineStr"><is><t>{value}</t></is></c>' for value in GOOD)]
    cells[5] = '<c s="1"><v>46333</v></c>'
    styles = '<styleSheet><cellXfs><xf numFmtId="0"/><xf numFmtId="31"/></cellXfs></styleSheet>'
    content = package(sheet_xml(text_cells(*CHINESE), "".join(cells)), {"xl/styles.xml": styles})
    assert the_policy(read(file, content)).issued_on == dt.date(2026, 11, 7)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        ({"document_number": 440305198807141127}, "number-lost-digits"),
        ({"document_number": 4.403051988071411e17}, "number-lost-digits"),
        ({"document_number": 440305198807141000}, "number-lost-digits"),
        ({"document_number": "4.40305E+17"}, "number-lost-digits"),
        ({"document_number": 12345678, "document_type": "护照"}, "number-lost-digits"),
        ({"document_number": 12345678, "document_type": "台胞证"}, "number-lost-digits"),
        ({"policy_number": "1.23457E+12"}, "number-lost-digits"),
        ({"policy_number": 1234567890123456}, "number-lost-digits"),
        ({"insured_amount": 100 / 3}, "number-lost-digits"),
        ({"insured_amount": 1e300}, "number-lost-digits"),
        ({"insured_amount": 0.001}, "amount-not-whole-fen"),
        ({"insured_amount": -5}, "amount-not-positive"),
        ({"insured_amount": dt.date(2026, 11, 3)}, "amount-not-a-number"),
        ({"insured_amount": True}, "amount-not-a-number"),
        ({"insured_amount": "=1+1"}, "formula-without-value"),
        ({"insured_amount": "#N/A"}, "cell-error"),
        ({"issued_on": 60}, "date-ambiguous"),
        ({"issued_on": 3.5}, "date-ambiguous"),
        ({"issued_on": "3/11/2026"}, "date-ambiguous"),
        ({"policy_number": None}, "policy-number-empty"),
        ({"product": "x" * (MAX_CELL_CHARACTERS + 1)}, "cell-too-long"),
    ],
)
def test_what_a_cell_does_not_tell_for_certain_is_refused(file: Path, cells: dict[str, object], code: str) -> None:
    row = one(file, **cells)
    assert isinstance(row, RejectedRow)
    assert row.code == code


@pytest.mark.parametrize(
    ("number_format", "taken"),
    [
        ("General", True),
        ("#,##0.00", True),
        ('_ "¥"* #,##0.00_ ;_ "¥"* -#,##0.00_ ;_ "¥"* "-"??_ ;_ @_ ', True),
        ("[$¥-804]#,##0.00;[Red]-0", True),
        ('0.00"元"', True),
        ('"RMB" 0', True),
        ("0%", False),
        ('0.00"万"', False),
        ("0亿", False),
        ("#,##0,", False),
        ('0.0,,"M"', False),
        ('0!.0,"万"', False),
        ("0\\.0000", False),
        ('"$"#,##0_);("$"#,##0)', False),
        ("[$€-2] 0", False),
        ("[$¥-411]0", False),
        ("[$HKD] 0", False),
    ],
)
def test_an_amount_that_is_shown_as_another_is_not_taken_at_face_value(
    file: Path, number_format: str, *, taken: bool
) -> None:
    book = workbook(CHINESE, changed(insured_amount=500))
    book.active["E2"].number_format = number_format
    assert codes(read(file, saved(book))) == {2: "read" if taken else "number-format"}


def test_numbers_that_have_kept_all_digits_are_taken(file: Path) -> None:
    assert isinstance(one(file, document_number=110101490307001), PolicyRow)  # 15 digits, of the first generation
    row = one(file, policy_number=100200300)
    assert isinstance(row, PolicyRow)
    assert row.policy_number == "100200300"


def test_of_a_formula_its_kept_value_is_taken(file: Path) -> None:
    formula = "<c><f>2*2500000</f><v>5000000</v></c>"
    text = '<c t="str"><f>A1&amp;"1"</f><v>A-9</v></c>'
    cells = [text, *[text_cells(value) for value in GOOD[1:4]], formula, *[text_cells(value) for value in GOOD[5:]]]
    policy = the_policy(read(file, package(sheet_xml(text_cells(*CHINESE), "".join(cells)))))
    assert (policy.policy_number, policy.amount) == ("A-9", 500_000_000)


def test_merged_cells_are_refused_where_they_matter_and_only_there(file: Path) -> None:
    book = workbook(["2026年11月承保明细"], CHINESE, [*GOOD, "x"], [*changed(policy_number=None)], GOOD)
    book.active.merge_cells("A1:G1")
    book.active.merge_cells("A3:A4")
    book.active.merge_cells("H3:H5")
    assert codes(read(file, saved(book))) == {3: "read", 4: "cell-merged", 5: "read"}


def test_hidden_rows_count_and_hidden_sheets_do_not(file: Path) -> None:
    book = workbook(CHINESE, GOOD, GOOD)
    book.active.row_dimensions[2].hidden = True
    words = book.create_sheet("字典")
    words.append(["身份证"])
    words.sheet_state = "hidden"
    book.create_sheet("空")
    assert codes(read(file, saved(book))) == {2: "read", 3: "read"}


def test_a_workbook_of_several_sheets_needs_a_name(file: Path) -> None:
    book = workbook(CHINESE, GOOD, title="一月")
    second = book.create_sheet("二月")
    for row in ([], CHINESE, changed(policy_number="B-1")):
        second.append(row)
    content = saved(book)
    assert refusal(file, content) == "sheet-unclear"
    assert refusal(file, content, Profile(sheet="三月")) == "sheet-missing"
    assert the_policy(read(file, content, Profile(sheet="二月"))).policy_number == "B-1"


def test_a_hidden_sheet_that_may_hold_policies_is_not_passed_over(file: Path) -> None:
    book = workbook(CHINESE, GOOD, title="一月")
    hidden = book.create_sheet("二月")
    for row in (["明细"], CHINESE, GOOD):
        hidden.append(row)
    hidden.sheet_state = "hidden"
    content = saved(book)
    assert refusal(file, content) == "sheet-unclear"
    assert codes(read(file, content, Profile(sheet="一月"))) == {2: "read"}


@pytest.mark.parametrize("part", ["xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/workbook.xml"])
def test_elements_that_are_nested_too_deep_are_damage(file: Path, part: str) -> None:
    deep = "<a>" * 65 + "</a>" * 65
    whole = sheet_xml(text_cells(*CHINESE), text_cells(*GOOD))
    assert codes(read(file, package(whole))) == {2: "read"}
    start, end = whole.split("</worksheet>")
    nested = {"xl/worksheets/sheet1.xml": f"{start}{deep}</worksheet>{end}"}.get(part, f"<x>{deep}</x>")
    assert refusal(file, package(whole, {part: nested})) == "xlsx-damaged"


def test_so_many_sheets_are_refused(file: Path) -> None:
    names = "".join(f'<sheet name="S{one}" sheetId="{one}" r:id="rId1"/>' for one in range(1001))
    book = f'<workbook xmlns:r="r"><sheets>{names}</sheets></workbook>'
    content = package(sheet_xml(text_cells(*CHINESE), text_cells(*GOOD)), {"xl/workbook.xml": book})
    assert refusal(file, content) == "xlsx-too-large"


def test_rows_keep_the_numbers_that_the_program_shows(file: Path) -> None:
    rows = [["标题"], [], [], CHINESE, [], GOOD, [], changed(product="?"), [None, None, " "]]
    assert codes(read(file, saved(workbook(*rows)))) == {6: "read", 8: "product-unknown"}


def test_shared_strings_with_runs_and_phonetic_hints(file: Path) -> None:
    strings = "<sst><si><r><t>意外</t></r><r><t>险</t></r><rPh sb='0' eb='1'><t>yiwai</t></rPh></si></sst>"
    cells = text_cells(*GOOD[:3]) + '<c t="s"><v>0</v></c>' + text_cells(*GOOD[4:])
    content = package(sheet_xml(text_cells(*CHINESE), cells), {"xl/sharedStrings.xml": strings})
    assert the_policy(read(file, content)).product == "accident"


def test_workbooks_of_strict_and_prefixed_kinds(file: Path) -> None:
    sheet = sheet_xml(text_cells(*CHINESE), text_cells(*GOOD))
    prefixed = sheet.replace("<", "<x:").replace("<x:/", "</x:").replace("xmlns=", "xmlns:x=")
    assert codes(read(file, package(prefixed))) == {2: "read"}
    assert codes(read(file, package(sheet, workbook_inside='<workbookPr date1904="false"/>'))) == {2: "read"}


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 100, package("<worksheet><sheetData>")])
def test_damage_is_a_rejection(file: Path, content: bytes) -> None:
    assert refusal(file, content) == "xlsx-damaged"


@pytest.mark.parametrize(
    "sheet",
    [
        sheet_xml('<c r="1A"><v>1</v></c>'),
        sheet_xml("<c><v>one</v></c>"),
        sheet_xml('<c t="s"><v>7</v></c>'),
        sheet_xml('<c t="s"><v>-1</v></c>'),
        sheet_xml('<c s="x"><v>1</v></c>'),
        '<worksheet><sheetData><row r="2"/><row r="1"/></sheetData></worksheet>',
        '<worksheet><sheetData><row r="9999999"/></sheetData></worksheet>',
    ],
)
def test_what_no_spreadsheet_program_writes_is_a_rejection(file: Path, sheet: str) -> None:
    assert refusal(file, package(sheet)) == "xlsx-damaged"


def test_old_and_encrypted_workbooks_are_told_apart_from_text(file: Path) -> None:
    assert refusal(file, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600) == "file-kind"


# --- attacks -------------------------------------------------------------------------------------------------------

ENTITIES = (
    '<!DOCTYPE w [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    '<!DOCTYPE w [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE w SYSTEM "file:///etc/passwd">',
)


@pytest.mark.parametrize("head", ENTITIES)
@pytest.mark.parametrize(
    "part", ["xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/styles.xml", "xl/workbook.xml"]
)
def test_entities_and_document_types_are_refused_in_every_part(file: Path, head: str, part: str) -> None:
    reference = "&b;" if "ENTITY b" in head else ""
    assert (
        refusal(file, package(sheet_xml(text_cells(*CHINESE)), {part: f"{head}<w>{reference}</w>"})) == "xlsx-damaged"
    )


def bomb(size: int, start: bytes, piece: bytes, end: bytes, name: str = "xl/worksheets/sheet1.xml") -> bytes:
    """Return a workbook with a part of so many bytes, of one piece over and over."""
    out = io.BytesIO(package(sheet_xml(text_cells(*CHINESE))))
    other = io.BytesIO()
    with zipfile.ZipFile(out) as archive, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for info in archive.infolist():
            if info.filename != name:
                target.writestr(info, archive.read(info))
        with target.open(name, "w", force_zip64=True) as part:
            part.write(start)
            block = piece * (1 + (1 << 20) // len(piece))
            for _ in range(size // len(block)):
                part.write(block)
            part.write(end)
    return other.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "one attribute": lambda: bomb(8 << 20, b'<worksheet a="', b"a", b'"/>'),
    "one comment": lambda: bomb(8 << 20, b"<worksheet><!--", b"a", b"--></worksheet>"),
    "one text": lambda: bomb(
        8 << 20, b"<worksheet><sheetData><row><c t='str'><v>", b"a", b"</v></c></row></sheetData></worksheet>"
    ),
    "one row": lambda: bomb(
        2 << 20, b"<worksheet><sheetData><row>", b"<c><v>1</v></c>", b"</row></sheetData></worksheet>"
    ),
    "many strings": lambda: bomb(
        300 << 20, b"<sst>", b"<si><t>%s</t></si>" % (b"a" * 4000), b"</sst>", "xl/sharedStrings.xml"
    ),
    "many styles": lambda: bomb(
        24 << 20, b"<styleSheet><cellXfs>", b"<xf/>", b"</cellXfs></styleSheet>", "xl/styles.xml"
    ),
    "many sheets": lambda: bomb(
        24 << 20, b"<workbook><sheets>", b"<sheet/>", b"</sheets></workbook>", "xl/workbook.xml"
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_takes_little_memory(file: Path, kind: str) -> None:
    content = BOMBS[kind]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FileRejected):
            read(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB, expat's own memory too
    assert peak < 6 << 20
    assert grown < 24 << 10


def test_merged_cells_that_all_overlap_are_refused(file: Path) -> None:
    ranges = "".join(f'<mergeCell ref="A1:A{row}"/>' for row in range(2, 3000))
    content = package(sheet_xml(text_cells(*CHINESE), text_cells(*GOOD), after=f"<mergeCells>{ranges}</mergeCells>"))
    assert refusal(file, content) == "xlsx-damaged"


def test_a_bomb_that_lies_about_its_size_is_read_no_further_than_it_says(file: Path) -> None:
    content = package(sheet_xml(text_cells(*CHINESE), text_cells(*GOOD * 200)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.getinfo("xl/worksheets/sheet1.xml").file_size
    assert content.count(size.to_bytes(4, "little")) == 2
    lying = content.replace(size.to_bytes(4, "little"), (size // 2).to_bytes(4, "little"))
    assert refusal(file, lying) == "xlsx-damaged"


def test_an_archive_that_says_it_is_too_large_is_not_unpacked(file: Path) -> None:
    content = package(sheet_xml(text_cells(*CHINESE)), {"xl/media/big": b""})
    place = content.rindex(b"xl/media/big") - 46  # its entry in the directory at the archive's end
    lying = content[: place + 24] + (0xF0000000).to_bytes(4, "little") + content[place + 28 :]
    assert refusal(file, lying) == "xlsx-too-large"


# --- junk ----------------------------------------------------------------------------------------------------------

WHOLE = saved(workbook(CHINESE, GOOD, changed(insured_amount=5.5, issued_on=dt.date(2026, 11, 4)), GOOD))
PIECES = ("<row>", "</row>", "<c>", '<c t="s">', '<c t="n" s="1">', "</c>", "<v>", "</v>", "1", "46333", "-1", "1e5")
PIECES += (
    "<f>",
    "</f>",
    "<is>",
    "</is>",
    "<t>",
    "</t>",
    "A",
    '<row r="5">',
    '<c r="B2">',
    "&amp;",
    "&x;",
    "<!--",
    "\n",
)


@given(place=st.integers(0, len(WHOLE) - 1), junk=st.binary(max_size=6), cut=st.integers(0, 8))
@deterministic(400)
def test_a_bent_workbook_is_read_or_rejected(file: Path, place: int, junk: bytes, cut: int) -> None:
    try:
        rows = read(file, WHOLE[:place] + junk + WHOLE[place + cut :])
    except FileRejected:
        return
    assert all(2 <= row.row <= 4 for row in rows)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.booleans())
@deterministic(600)
def test_any_sheet_is_read_or_rejected(file: Path, inside: str, closed: bool) -> None:  # noqa: FBT001 - hypothesis fills it
    sheet = sheet_xml(
        text_cells(*CHINESE), text_cells(*GOOD) + (inside if not closed else ""), inside if closed else ""
    )
    try:
        read(file, package(sheet))
    except FileRejected:
        return


@given(st.binary(max_size=300))
@deterministic(300)
def test_any_bytes_behind_a_zips_mark_are_rejected(file: Path, junk: bytes) -> None:
    with pytest.raises(FileRejected):
        read(file, b"PK\x03\x04" + junk)


def test_a_workbook_without_a_sheet_is_empty(file: Path) -> None:
    assert refusal(file, saved(Workbook())) == "file-empty"
