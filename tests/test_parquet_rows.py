"""Parquet files of every simple type, damaged ones, and the numbers that cannot be relied on."""

import datetime as dt
import io
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import CHINESE, GOOD, codes, read, the_policy
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from insurer_agent.intake import parquet_rows
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.profile import Profile

PLACE = {
    "document_number": 2,
    "insured_amount": 4,
    "issued_on": 5,
    "product": 3,
    "policy_number": 0,
    "document_type": 1,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parquet") / "policies.dat"


def table(count: int = 1, **columns: pa.Array) -> pa.Table:
    arrays = [pa.array([cell] * count) for cell in GOOD]
    for name, array in columns.items():
        arrays[PLACE[name]] = array
    return pa.table(dict(zip(CHINESE, arrays, strict=True)))


def stored(data: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(data, out, **options)
    return out.getvalue()


DAYS = (
    pa.array([dt.date(2026, 11, 4)], pa.date32()),
    pa.array([dt.date(2026, 11, 4)], pa.date64()),
    pa.array([dt.datetime(2026, 11, 4, 23, 59)], pa.timestamp("s")),  # noqa: DTZ001 - the type has no zone
    pa.array([dt.datetime(2026, 11, 4, 1)], pa.timestamp("ms")),  # noqa: DTZ001 - as above
    pa.array([1793750400000000001], pa.timestamp("ns")),
    pa.array([dt.datetime(2026, 11, 3, 20, tzinfo=dt.UTC)], pa.timestamp("us", "America/New_York")),
    pa.array([20261104], pa.int32()),
    pa.array(["2026年11月4日"]),
    pa.array(["2026/11/4"]).dictionary_encode(),
    pa.array([b"20261104"], pa.binary()),
)


@pytest.mark.parametrize("days", DAYS, ids=lambda array: str(array.type))
def test_days_of_every_type(file: Path, days: pa.Array) -> None:
    assert the_policy(read(file, stored(table(issued_on=days)))).issued_on == dt.date(2026, 11, 4)


AMOUNTS = (
    pa.array([Decimal("5000000.50")], pa.decimal128(18, 2)),
    pa.array([Decimal("5000000.500000")], pa.decimal128(38, 6)),
    pa.array([Decimal("5000000.5")], pa.decimal256(50, 1)),
    pa.array([5000000.5], pa.float64()),
    pa.array(["5,000,000.50"], pa.large_string()),
    pa.array(["500.00005万"]),
)


@pytest.mark.parametrize("amounts", AMOUNTS, ids=lambda array: str(array.type))
def test_amounts_of_every_type(file: Path, amounts: pa.Array) -> None:
    assert the_policy(read(file, stored(table(insured_amount=amounts)))).amount == 500_000_050


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint32(), pa.uint64()])
def test_whole_numbers_are_exact_however_long(file: Path, kind: pa.DataType) -> None:
    assert the_policy(read(file, stored(table(insured_amount=pa.array([5_000_000], kind))))).amount == 500_000_000
    number = pa.array([110101194903070014], pa.int64())
    assert isinstance(the_policy(read(file, stored(table(document_number=number)))), PolicyRow)


@pytest.mark.parametrize(
    ("column", "array", "code"),
    [
        ("insured_amount", pa.array([0.1 + 0.2], pa.float64()), "number-lost-digits"),
        ("insured_amount", pa.array([float("nan")], pa.float64()), "number-lost-digits"),
        ("insured_amount", pa.array([16777216.0], pa.float32()), "number-lost-digits"),
        ("insured_amount", pa.array([0.005], pa.float64()), "amount-not-whole-fen"),
        ("insured_amount", pa.array([-5]), "amount-not-positive"),
        ("insured_amount", pa.array([Decimal("0.001")]), "amount-not-whole-fen"),
        ("insured_amount", pa.array([None], pa.int64()), "amount-empty"),
        ("insured_amount", pa.array([True]), "amount-not-a-number"),
        ("insured_amount", pa.array([[5]]), "cell-type"),
        ("insured_amount", pa.array([{"yuan": 5}]), "cell-type"),
        ("document_number", pa.array([1.10101194903070014e17], pa.float64()), "number-lost-digits"),
        ("issued_on", pa.array([2**62], pa.timestamp("ms")), "no-such-day"),
        ("issued_on", pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "no-such-day"),
        ("issued_on", pa.array([46333]), "date-ambiguous"),
        ("product", pa.array(["x" * 5000]), "cell-too-long"),
        ("product", pa.array(["x\0"]), "encoding"),
        ("policy_number", pa.array([b"\xff\xfe"], pa.binary()), "encoding"),
    ],
)
def test_what_a_cell_does_not_tell_for_certain_is_refused(file: Path, column: str, array: pa.Array, code: str) -> None:
    (row,) = read(file, stored(table(**{column: array})))
    assert isinstance(row, RejectedRow)
    assert row.code == code


def test_text_that_is_not_utf8_costs_its_row(file: Path) -> None:
    raw = pa.array([b"A-1", b"\xff\xff", b"A-3"], pa.binary())
    bent = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    assert codes(read(file, stored(table(3, policy_number=bent)))) == {1: "read", 2: "encoding", 3: "read"}


def test_rows_are_numbered_over_batches_and_row_groups_and_blank_ones_count(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "ROWS_A_BATCH", 3)
    numbers = [f"N-{number}" if number % 4 else None for number in range(1, 11)]
    columns = [pa.array([None if number is None else cell for number in numbers], pa.string()) for cell in GOOD]
    data = pa.table(dict(zip(CHINESE, [pa.array(numbers), *columns[1:]], strict=True)))
    rows = read(file, stored(data, row_group_size=4))
    assert [(row.row, row.policy_number) for row in rows if isinstance(row, PolicyRow)] == [
        (number, f"N-{number}") for number in (1, 2, 3, 5, 6, 7, 9, 10)
    ]


def test_columns_are_named_by_a_profile_too(file: Path) -> None:
    data = table().rename_columns(["n", *CHINESE[1:6], "was"])
    profile = Profile(columns={"policy_number": "n"}, constants={"event": "issue"})
    assert codes(read(file, stored(data), profile)) == {1: "read"}


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "none"])
def test_compressed_files(file: Path, codec: str) -> None:
    assert codes(read(file, stored(table(2), compression=codec))) == {1: "read", 2: "read"}


def test_a_long_text_that_a_dictionary_repeats_takes_its_memory_once(file: Path) -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (1 << 20)]))
    file.write_bytes(stored(table(2000, product=array), compression="zstd", store_schema=False))
    code = (
        "import sys, resource; from pathlib import Path; from formats import codes, read;"
        "assert set(codes(read(Path(sys.argv[1]))).values()) == {'cell-too-long'};"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, check=True, cwd=Path(__file__).parent, text=True
    )
    # KiB. The texts one by one are two gigabytes; what this process has itself is counted in.
    assert int(done.stdout) < 1 << 20


def test_rows_that_say_they_are_too_large_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(stored(table(10)))
    monkeypatch.setattr(parquet_rows, "MAX_BATCH_BYTES", 10)  # one row at a time
    assert set(codes(read(file)).values()) == {"read"}
    monkeypatch.setattr(parquet_rows, "MAX_ROW_BYTES", 10)
    with pytest.raises(FileRejected, match="parquet-too-large"):
        read(file)


def test_a_file_that_says_it_is_too_large_is_not_unpacked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "MAX_ROW_GROUP_BYTES", 10)
    with pytest.raises(FileRejected, match="parquet-too-large"):
        read(file, stored(table()))


WHOLE = stored(table(50), use_dictionary=False)


@given(place=st.integers(4, len(WHOLE) - 1), junk=st.binary(max_size=4), cut=st.integers(0, 6))
@deterministic(500)
def test_a_bent_file_is_read_or_rejected(file: Path, place: int, junk: bytes, cut: int) -> None:
    try:
        rows = read(file, WHOLE[:place] + junk + WHOLE[place + cut :])
    except FileRejected as rejected:
        assert rejected.code in ("parquet-damaged", "parquet-too-large", "column-missing", "column-repeated")  # noqa: PT017
        return
    assert all(row.row >= 1 for row in rows)


@given(st.binary(max_size=200))
@deterministic(200)
def test_any_bytes_behind_the_mark_are_rejected(file: Path, junk: bytes) -> None:
    with pytest.raises(FileRejected, match="parquet-damaged"):
        read(file, b"PAR1" + junk + b"PAR1")
