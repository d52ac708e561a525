"""The rows of a Parquet file, in batches.

A file has no row for its header, so its first row is number 1. A 64-bit floating-point number is taken as the decimal
of at most 15 significant digits that it stands for, and is unusable if there is none; a 32-bit one always is,
as it cannot tell 16777216.00 from 16777217.00. Columns of other than the simple types are not read.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.rows import (
    MAX_CELL_CHARACTERS,
    Cell,
    Number,
    RawRow,
    Unusable,
    decimal_cell,
    is_blank,
    lost_digits,
    number_cell,
)

ROWS_A_BATCH = 2000
MAX_COLUMNS = 1024
MAX_ROW_GROUP_BYTES = 1 << 30
"""Uncompressed bytes that one row group may say it has, in all columns."""
MAX_BATCH_BYTES = 64 << 20
"""Bytes of the rows of a batch, by what their row group says of its size."""
MAX_ROW_BYTES = 8 << 20
"""Bytes that a row may have in the mean of a row group; cells that are read have at most some kilobytes."""
MAX_FOOTER_BYTES = 64 << 20

_READ_BYTES = 64 * 1024
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - timestamps without a zone are of no zone
_TICKS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_DAY_SECONDS = 86_400


class ParquetRows:
    """A Parquet file; see `rows.Source`. The header is row 0. Raises FileRejected, parquet-damaged or -too-large."""

    ragged = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0
        self._count = 0

    def fraction(self) -> float | None:
        """Return how much has been read, 0 to 1."""
        return self._done / self._count if self._count else None

    def rows(self) -> Iterator[RawRow]:
        """Yield the header, then the rows that are not blank."""
        with self._path.open("rb") as file, _refuse_damage():
            parquet = _opened(file)
            rows_a_batch = _rows_a_batch(parquet.metadata)
            # Text stays in dictionaries: a few bytes of a file can repeat a long text in every row.
            parquet = _opened(file, [field.path for field in _texts(parquet.schema)])
            schema = parquet.schema_arrow
            self._count, self._done = parquet.metadata.num_rows, 0
            yield RawRow(0, tuple(schema.names))
            for batch in parquet.iter_batches(rows_a_batch, use_threads=False):
                columns = [_cells(column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    self._done += 1
                    if not is_blank(cells):
                        yield RawRow(self._done, cells)


def _opened(file: BinaryIO, dictionaries: list[str] | None = None) -> pq.ParquetFile:
    file.seek(0)
    return pq.ParquetFile(
        file,
        read_dictionary=dictionaries,
        buffer_size=_READ_BYTES,
        pre_buffer=False,
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=MAX_FOOTER_BYTES // 64,
    )


def _texts(schema: pq.ParquetSchema) -> list[pq.ColumnSchema]:
    columns = [schema.column(place) for place in range(len(schema))]
    return [
        column
        for column in columns
        if column.physical_type == "BYTE_ARRAY"
        and column.path == column.name
        and column.max_repetition_level == 0
        and column.logical_type.type in ("STRING", "NONE")
    ]


def _rows_a_batch(metadata: pq.FileMetaData) -> int:
    """Return how many rows to take at a time; raise FileRejected, parquet-too-large."""
    rows = ROWS_A_BATCH
    if metadata.num_columns > MAX_COLUMNS:
        raise FileRejected("parquet-too-large", f"the file has more than {MAX_COLUMNS} columns")
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        size = sum(max(0, group.column(column).total_uncompressed_size) for column in range(metadata.num_columns))
        if size > MAX_ROW_GROUP_BYTES:
            raise FileRejected("parquet-too-large", "a row group is larger than 1 GiB; write smaller ones")
        if size > MAX_ROW_BYTES * max(1, group.num_rows):
            raise FileRejected("parquet-too-large", f"the file has rows of more than {MAX_ROW_BYTES >> 20} MiB")
        rows = min(rows, max(1, MAX_BATCH_BYTES * group.num_rows // max(1, size)))
    return rows


@contextmanager
def _refuse_damage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged() from None
    except (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, MemoryError):
        raise _damaged() from None


def _damaged() -> FileRejected:
    return FileRejected("parquet-damaged", "the file is damaged or of a kind of Parquet that is not understood")


def _cells(column: pa.Array) -> list[Cell]:
    if pa.types.is_dictionary(column.type):
        # Only what occurs, and that once.
        places = column.indices.to_pylist()
        used = sorted({place for place in places if place is not None})
        values = dict(zip(used, _cells(column.dictionary.take(pa.array(used, pa.int64()))), strict=True))
        return ["" if place is None else values[place] for place in places]
    for fits, storage, cell in _READERS:
        if fits(column.type):
            # Days and moments as the integers that they are: not all that the types hold are years that Python knows.
            values = column if storage is None else column.cast(storage)
            return ["" if value is None else cell(value, column.type) for value in values.to_pylist()]
    return [Unusable("", IntakeError("cell-type", "column has a type that is not read"))] * len(column)


def _text(value: bytes, _: pa.DataType) -> Cell:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return Unusable("", IntakeError("encoding", "a cell is not UTF-8 text"))
    if len(text) > MAX_CELL_CHARACTERS:
        fault = IntakeError("cell-too-long", f"a cell is longer than {MAX_CELL_CHARACTERS} characters")
        return Unusable(text[:MAX_CELL_CHARACTERS], fault)
    return Unusable("", IntakeError("encoding", "a cell is not text")) if "\0" in text else text


def _moment(seconds: int, *, zoned: bool) -> Cell:
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return Unusable("", IntakeError("no-such-day", "no such day"))
    if zoned:
        return moment.replace(tzinfo=dt.UTC)
    return moment.date() if moment.time() == dt.time() else moment


_READERS: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType | None, Callable[[Any, pa.DataType], Cell]], ...] = (
    # Text as bytes: it need not be the UTF-8 that the file says it is, and that is the fault of one row.
    (pa.types.is_string, pa.binary(), _text),
    (pa.types.is_large_string, pa.large_binary(), _text),
    (pa.types.is_binary, None, _text),
    (pa.types.is_large_binary, None, _text),
    (pa.types.is_integer, None, lambda value, _: Number(str(value))),
    (pa.types.is_decimal, None, lambda value, _: decimal_cell(value, str(value))),
    (pa.types.is_float64, None, lambda value, _: number_cell(value, repr(value))),
    (pa.types.is_floating, None, lambda value, _: Unusable(repr(value), lost_digits())),
    (pa.types.is_date32, pa.int32(), lambda value, _: _moment(value * _DAY_SECONDS, zoned=False)),
    (pa.types.is_date64, pa.int64(), lambda value, _: _moment(value // _TICKS["ms"], zoned=False)),
    (
        pa.types.is_timestamp,
        pa.int64(),
        lambda value, kind: _moment(value // _TICKS[kind.unit], zoned=kind.tz is not None),
    ),
    (pa.types.is_boolean, None, lambda value, _: str(value)),
)
"""What tells a type, what its values are taken as, and what makes a cell of one."""
