"""Files that differ in encoding, delimiter, header and words come to the same; profiles say what cannot be seen."""

import datetime as dt
import os
from pathlib import Path

import pytest
from formats import CHINESE, GOOD, MAXIMUM, changed, codes, csv_bytes, read, the_policy
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from insurer_agent.intake.amounts import Unit
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import read_policies
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.vocabulary import COLUMNS, DOCUMENT_TYPES, EVENTS, PRODUCTS, column_of, squash
from protocol.identity import DocumentType
from transport.settings import SettingsError

ROOT = Path(__file__).parent.parent
ENGLISH = ("Policy No.", "ID Type", "ID Number", "Product Name", "Sum Insured (RMB)", "Issue Date", "Event Type")
ENCODINGS = {"utf-8": "utf-8", "marked": "utf-8-sig", "gb18030": "gb18030"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts") / "policies.dat"


def refusal(file: Path, content: bytes, profile: Profile | None = None) -> str:
    with pytest.raises(FileRejected) as rejected:
        read(file, content, profile or Profile())
    assert "110101" not in str(rejected.value)
    return rejected.value.code


def strings(**cells: str) -> list[str]:
    return [str(cell) for cell in changed(**cells)]


@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    above=st.lists(st.sampled_from(["2026年11月承保明细", "", "制表：王,共1页", "a;b;c", '"x"', "\t"]), max_size=5),
    order=st.permutations(range(9)),
    english=st.booleans(),
)
@deterministic(300)
def test_a_layout_is_found_out(
    file: Path, encoding: str, delimiter: str, end: str, above: list[str], order: list[int], *, english: bool
) -> None:
    header = [*(ENGLISH if english else CHINESE), "投保人证件号码", "备注"]
    cells = [*GOOD, "110101199003070011", "无"]
    text = [end.join([*above, *[delimiter.join(row[place] for place in order) for row in (header, cells)], ""])]
    policy = the_policy(read(file, "".join(text).encode(ENCODINGS[encoding])))
    assert (policy.policy_number, policy.insured.number, policy.amount) == ("A-1", "110101194903070014", 500_000_000)
    assert policy.row == len(above) + 2


def test_ascii_headers_and_a_body_that_shows_its_encoding_late(file: Path) -> None:
    rows = [["A-1", "resident_id", "110101194903070014", "accident", "5", "2026-11-03", "issue"]] * 400
    english = ["policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event"]
    read_all = read(file, csv_bytes(english, *rows, list(GOOD), encoding="gb18030"))
    assert set(codes(read_all).values()) == {"read"}


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ("保额", Unit.YUAN),
        ("保额（元）", Unit.YUAN),
        ("保险金额(万元)", Unit.WAN),
        ("保额/万元", Unit.WAN),
        ("保额（单位：万元）", Unit.WAN),
        ("Sum Insured (RMB)", Unit.YUAN),
        ("sum_insured_wan", Unit.WAN),
    ],
)
def test_a_header_says_what_its_amounts_count(file: Path, header: str, unit: Unit) -> None:
    content = csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], strings(insured_amount="12"))
    assert the_policy(read(file, content)).amount == 1200 * 10**unit.value


@pytest.mark.parametrize("header", ["保额（美元）", "Sum Insured (USD)", "保额(千元)", "投保人", "生效日期"])
def test_a_header_of_another_unit_or_meaning_is_not_taken_for_ours(file: Path, header: str) -> None:
    assert column_of(header) is None
    assert refusal(file, csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], list(GOOD))) == "column-missing"


def test_a_remark_in_brackets_is_no_part_of_a_header() -> None:
    assert column_of("证件号码（必填）") == ("document_number", None)
    assert column_of("承保日期(YYYY-MM-DD)") == ("issued_on", None)
    assert column_of("* Policy_No.:") == ("policy_number", None)


def test_two_columns_of_one_meaning_are_the_profiles_to_choose_from(file: Path) -> None:
    content = csv_bytes([*CHINESE, "险种名称"], [*GOOD, "团体意外险"])
    assert refusal(file, content) == "column-repeated"
    assert the_policy(read(file, content, Profile(columns={"product": "险种名称"}))).product == "group_accident"


def test_every_word_means_one_thing_and_what_it_means_exists() -> None:
    assert set(EVENTS.values()) == {"issue", "cancel", "amend"}
    assert set(DOCUMENT_TYPES.values()) == {kind.value for kind in DocumentType}
    assert set(PRODUCTS.values()) == {"accident", "group_accident", "term_life"}
    assert all(word == squash(word) and word for table in (COLUMNS, EVENTS, PRODUCTS, DOCUMENT_TYPES) for word in table)


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "file-empty"), (b"\n\n", "file-empty"), (b"\xff\xfea\0", "header-malformed")]
)
def test_files_without_a_header(file: Path, content: bytes, code: str) -> None:
    assert refusal(file, content) == code


def test_a_header_too_far_down_is_not_found_unless_a_profile_says_where(file: Path) -> None:
    content = csv_bytes(*[["titel"]] * 40, list(CHINESE), list(GOOD))
    assert refusal(file, content) == "column-missing"
    assert codes(read(file, content, Profile(header_row=41))) == {42: "read"}
    assert refusal(file, content, Profile(header_row=44)) == "header-missing"
    assert refusal(file, content, Profile(header_row=40)) == "column-missing"


@pytest.mark.parametrize(("header", "yuan"), [("本次保额（万元）", 50_000), ("本次保额(元)", 5), ("本次保额", 5)])
def test_a_unit_is_understood_in_a_header_that_a_profile_names(file: Path, header: str, yuan: int) -> None:
    content = csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], strings(insured_amount="5"))
    assert the_policy(read(file, content, Profile(columns={"insured_amount": header}))).amount == yuan * 100


@pytest.mark.parametrize(
    "header",
    [
        "本次保额（千元）",
        "本次保额(美元)",
        "Cover (USD)",
        "本次保额（千元）(含附加)",
        "Cover (HK$) net",
        "Cover (K)",
        "保额x(百万)",
        "Cover (RMB million) x",
        "本次保额【欧元】起",
        "Cover (in 000s)",
    ],
)
def test_a_unit_that_is_not_read_is_refused_in_a_header_that_a_profile_names(file: Path, header: str) -> None:
    content = csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], strings(insured_amount="5"))
    named = {"insured_amount": header}
    assert refusal(file, content, Profile(columns=named)) == "column-unit"
    assert the_policy(read(file, content, Profile(columns=named, amount_unit=Unit.YUAN))).amount == 500


def test_rows_above_the_header_are_rejected_and_titles_are_not(file: Path) -> None:
    content = csv_bytes(["明细"], list(GOOD), ["制表", "王", "", "", "", "", ""], list(CHINESE), list(GOOD))
    assert codes(read(file, content)) == {2: "row-above-header", 5: "read"}
    assert codes(read(file, content, Profile(header_row=4))) == {2: "row-above-header", 5: "read"}
    constants = {"document_type": "身份证", "product": "意外险", "issued_on": "2026-11-03", "event": "承保"}
    short = csv_bytes(["A-0", "x", "5"], ["保单号", "证件号码", "保额"], ["A-1", "110101194903070014", "5"])
    assert codes(read(file, short, Profile(constants=constants))) == {1: "row-above-header", 3: "read"}


@pytest.mark.parametrize(
    "above",
    [
        "单位：万元",
        "金额单位：万元",
        "单位,万元",
        "（单位：人民币千元）",
        "单位：元 保费单位：万元",
        "Unit: USD",
        "in thousands",
    ],
)
def test_a_unit_above_the_header_is_not_passed_over(file: Path, above: str) -> None:
    content = f"明细\n{above}\n".encode() + csv_bytes(list(CHINESE), strings(insured_amount="5"))
    assert refusal(file, content) == "column-unit"
    assert the_policy(read(file, content, Profile(amount_unit=Unit.WAN))).amount == 5_000_000


@pytest.mark.parametrize(
    ("above", "header"), [("单位：元", "保额"), ("单位:人民币元", "保额"), ("单位：万元", "保额（万元）")]
)
def test_a_unit_above_that_is_the_columns_does_no_harm(file: Path, above: str, header: str) -> None:
    content = f"{above}\n".encode() + csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], strings(insured_amount="5"))
    assert the_policy(read(file, content)).amount == (5_000_000 if "万" in header else 500)


@pytest.mark.parametrize("number", ["4.40305E+17", "1E+12", "440.3E+15", "4.40305e17", '=""', "''1", "=A1"])
@pytest.mark.parametrize("column", ["policy_number", "document_number"])
def test_what_a_spreadsheet_has_left_of_a_number_is_refused(file: Path, column: str, number: str) -> None:
    (row,) = read(file, csv_bytes(list(CHINESE), strings(**{column: number})))
    assert isinstance(row, RejectedRow)


def test_marks_of_text_are_no_part_of_a_number(file: Path) -> None:
    for mark in ('="{}"', "'{}"):
        number, document = mark.format("00123"), mark.format("110101194903070014")
        policy = the_policy(
            read(file, csv_bytes(list(CHINESE), strings(policy_number=number, document_number=document)))
        )
        assert (policy.policy_number, policy.insured.number) == ("00123", "110101194903070014")


def test_a_resident_id_that_ends_in_zeros_has_lost_digits_in_text(file: Path) -> None:
    truly = next(f"{number}000" for number in range(440305198807140, 440305198807160) if check_digit(number) == "0")
    file.write_bytes(csv_bytes(list(CHINESE), strings(document_number=truly)))
    for says_so, told in ((False, {2: "number-lost-digits"}), (True, {2: "read"})):
        profile = Profile(document_numbers_are_text=says_so)
        assert codes(list(read_policies(file, products=None, maximum=MAXIMUM, profile=profile))) == told


def check_digit(first_fifteen: int) -> str:
    """Return the last character of a resident id (GB 11643) whose sequence number ends in 00."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[
        sum(int(digit) * weight for digit, weight in zip(f"{first_fifteen}00", weights, strict=True)) % 11
    ]


def test_a_product_of_too_many_bytes_is_a_row_rejected(file: Path) -> None:
    file.write_bytes(csv_bytes(list(CHINESE), strings(product="险" * 22), list(GOOD)))
    rows = list(read_policies(file, products=None, maximum=MAXIMUM))
    assert codes(rows) == {2: "product-unknown", 3: "read"}


@pytest.mark.parametrize("header", ["本次保额（万元）(含附加)", "本次保额万元(税前)"])
def test_a_unit_before_a_remark_is_understood(file: Path, header: str) -> None:
    content = csv_bytes([*CHINESE[:4], header, *CHINESE[5:]], strings(insured_amount="5"))
    assert the_policy(read(file, content, Profile(columns={"insured_amount": header}))).amount == 5_000_000


def test_a_byte_order_mark_is_believed_before_the_profile(file: Path) -> None:
    content = csv_bytes(list(CHINESE), list(GOOD), encoding="utf-8-sig")
    assert codes(read(file, content, Profile(encoding="gb18030"))) == {2: "read"}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRejected, match="file-kind"):
        read(tmp_path / "pipe")


def test_excels_own_first_line_and_a_sum_below_do_no_harm(file: Path) -> None:
    content = b"sep=;\n" + csv_bytes(list(CHINESE), list(GOOD), ["合计", "", "", "", "5000000", "", ""], delimiter=";")
    assert codes(read(file, content)) == {3: "read", 4: "event-unknown"}


# --- profiles ------------------------------------------------------------------------------------------------------


def profile(tmp_path: Path, text: str) -> Profile:
    written = tmp_path / "profile.toml"
    written.write_text(text, encoding="utf-8")
    return Profile.load(written)


def test_the_sample_profile_reads_what_it_describes(file: Path, tmp_path: Path) -> None:
    told = profile(tmp_path, (ROOT / "deploy" / "import-profile.toml").read_text(encoding="utf-8"))
    rows = (
        ["保单明细"],
        ["保单号", "保额", "承保日期"],  # of an older layout, and not the header
        ["合同编号", "证件类型", "证件号码", "险种", "本次保额", "生效日期", "保单号"],
        ["A-1", "户口簿", "110101194903070014", "别的", "500", "4/11/2026", "x"],
    )
    policy = the_policy(read(file, csv_bytes(*rows, encoding="gb18030", delimiter=";"), told))
    assert (policy.policy_number, policy.product, policy.amount) == ("A-1", "accident", 500_000_000)
    assert policy.issued_on == dt.date(2026, 11, 4)
    assert policy.insured.document_type is DocumentType.RESIDENT_ID


def test_a_profiles_words_come_before_the_well_known(file: Path, tmp_path: Path) -> None:
    told = profile(tmp_path, '[products]\n"意外险" = "group_accident"\n[events]\n"续保" = "issue"\n')
    content = csv_bytes(list(CHINESE), strings(event="续保"), strings(product="accident"))
    rows = read(file, content, told)
    assert [row.product for row in rows if isinstance(row, PolicyRow)] == ["group_accident", "accident"]
    assert codes(read(file, content)) == {2: "event-unknown", 3: "read"}


def test_a_profile_of_excel_days_reads_them_in_text(file: Path, tmp_path: Path) -> None:
    told = profile(tmp_path, 'date_format = "serial-1904"\n')
    assert the_policy(read(file, csv_bytes(list(CHINESE), strings(issued_on="44871")), told)).issued_on == dt.date(
        2026, 11, 7
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('encoding = "latin-1"', "encoding"),
        ('delimiter = "x"', "delimiter"),
        ('date_format = "%d"', "date_format"),
        ('amount_unit = "fen"', "amount_unit"),
        ("header_row = 0", "header_row"),
        ("colums = {}", "colums"),
        ('[columns]\nname = "x"', "columns"),
        ('[columns]\nproduct = "x"\n[constants]\nproduct = "y"', "constants"),
        ('[constants]\ninsured_amount = "5"', "constants"),
        ('[events]\n"x" = "renew"', "events"),
        ('[document_types]\n"x" = "visa"', "document_types"),
        ("not toml", "not TOML"),
    ],
)
def test_a_profile_that_cannot_be_used_says_where(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        profile(tmp_path, text)


TOML = (
    "[columns]",
    "[constants]",
    "[events]",
    "product",
    "event",
    "=",
    '"issue"',
    '"x"',
    "5",
    "\n",
    "[",
    "]",
    ".",
    "{",
    "}",
)


@given(st.lists(st.sampled_from([*TOML, "header_row", "encoding", "2026-11-03", "#", "'", "true", "nan"]), max_size=16))
@deterministic(400)
def test_any_profile_is_understood_or_refused(file: Path, pieces: list[str]) -> None:
    file.write_text(" ".join(pieces), encoding="utf-8")
    try:
        assert isinstance(Profile.load(file), Profile)
    except SettingsError:
        return


PIECES = st.sampled_from(
    [b'"', b",", b";", b"\t", b"\n", b"\r\n", b"\0", b"\xff", b"\x81", "保单号".encode("gb18030"), "万".encode()]
)


@given(
    content=st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join),
    encoding=st.sampled_from([None, "utf-8", "gb18030"]),
    delimiter=st.sampled_from([None, ",", ";", "|"]),
    header=st.sampled_from(
        [b"", csv_bytes(list(CHINESE)), csv_bytes(list(CHINESE), encoding="gb18030", delimiter=";")]
    ),
)
@deterministic(600)
def test_any_bytes_are_read_or_rejected(
    file: Path, content: bytes, encoding: str | None, delimiter: str | None, header: bytes
) -> None:
    try:
        rows = read(file, header + content, Profile(encoding=encoding, delimiter=delimiter))
    except FileRejected:
        return
    numbers = [row.row for row in rows]
    assert numbers == sorted(set(numbers))
