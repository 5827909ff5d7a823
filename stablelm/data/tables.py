"""Tables, a document a row: Parquet by row group, Arrow (IPC files, streams, Feather 2) by record batch.

Only the columns of text, id, address and label are read. Strings may be plain, large, views, dictionaries
or bytes; what is not UTF-8 is that row's fault. A local Arrow file is mapped, so a piece of it skips to
its batches without reading the others. An Arrow stream must end with its end mark: without it nobody can
tell a whole stream from one that was cut between two batches."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from stablelm.config import InputError
from stablelm.data.documents import AGAIN, Document, Intake, first_line
from stablelm.data.inputs import InputFile, Span, opened

_BATCH_BYTES, _FEWEST, _MOST = 1 << 20, 16, 1024  # of rows that are held at once
_FILE, _FEATHER_1, _END = b"ARROW1", b"FEA1", b"\xff\xff\xff\xff\0\0\0\0"


def read_table(span: Span, intake: Intake) -> Iterator[Document]:
    """The documents of a Parquet or Arrow file, or of a part of it."""
    _require_pyarrow(span.file.shown)
    if not span.file.size:
        intake.entry.empty = True
        return
    yield from (_parquet if span.file.format == "parquet" else _arrow)(span, intake)


def cut_table(file: InputFile, target: int) -> list[Span]:
    """Spans of about `target` bytes; one for a file that cannot be opened, whose reading will say why."""
    _require_pyarrow(file.shown)
    import pyarrow

    try:
        sizes = _group_sizes(file) if file.format == "parquet" else _batch_sizes(file)
    except (pyarrow.ArrowException, OSError):
        sizes = []
    spans: list[Span] = []
    begin = row = first = filled = 0
    for number, (rows, size) in enumerate(sizes, 1):
        row, filled = row + rows, filled + size
        if filled >= target and number < len(sizes):
            spans.append(Span(file, begin, number, first, filled))
            begin, first, filled = number, row, 0
    if not spans:
        return [Span(file, size=file.size)]
    return [*spans, Span(file, begin, len(sizes), first, filled)]


def row_documents(batch: Any, first: int, names: Sequence[str], intake: Intake) -> Iterator[Document]:
    """The documents of a `pyarrow.RecordBatch` or one-chunk table of which `first` rows of the file come
    before.

    `names`: all columns of the file, for messages."""
    entry, key = intake.entry, intake.source.text_key
    texts = _texts(batch, key)
    entry.read += batch.num_rows
    if texts is None:
        if batch.num_rows:
            intake.missing(first + 1, list(names), batch.num_rows)
        return
    entry.read_bytes += _bytes(texts)
    values = _as_bytes(texts).to_pylist()
    others = [name for name in _columns(batch.schema.names, intake) if name != key]
    fields: list[Any] = [_values(batch.column(name)) for name in others]
    for row, value in enumerate(values):
        number, size = first + row + 1, len(value) if isinstance(value, bytes) else 0
        try:
            text = value.decode() if isinstance(value, bytes) else value
            record = {name: _decoded(column[row]) for name, column in zip(others, fields, strict=True)}
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1:,} of the text, id, address or label"
            intake.not_utf8(number, error.object, error.start, place, size)
            continue
        if document := intake.record({**record, key: text}, number, size):
            yield document


def _parquet(span: Span, intake: Intake) -> Iterator[Document]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with opened(span.file) as handle:
        try:
            table = ParquetFile(handle, page_checksum_verification=True)
            names = table.schema_arrow.names
        except (pyarrow.ArrowException, OSError) as error:
            return _unreadable(f"not a Parquet file ({first_line(error)})", intake)
        intake.entry.empty = table.metadata.num_rows == 0
        columns, number = _columns(names, intake), span.first
        for group in range(span.start, span.end if span.end >= 0 else table.metadata.num_row_groups):
            about = table.metadata.row_group(group)
            left = about.num_rows
            rows = _BATCH_BYTES * left // max(1, about.total_byte_size)
            try:
                for batch in table.iter_batches(
                    max(_FEWEST, min(_MOST, rows)), row_groups=[group], columns=columns
                ):
                    before, number, left = number, number + batch.num_rows, left - batch.num_rows
                    yield from row_documents(batch, before, names, intake)
            except (pyarrow.ArrowException, OSError) as error:
                _unreadable(f"the row cannot be read ({first_line(error)})", intake, number + 1, left)
                number += left


def _arrow(span: Span, intake: Intake) -> Iterator[Document]:
    import pyarrow

    with opened(span.file) as handle:
        number = span.first
        try:
            table = _open_arrow(span.file, handle)
            names = table.schema.names
        except (pyarrow.ArrowException, OSError) as error:
            return _unreadable(f"not an Arrow file ({first_line(error)})", intake)
        columns = _columns(names, intake)
        batches = _batches(table, span.start, span.end)
        try:
            for batch in batches:
                rows = _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)
                batch, rows = batch.select(columns), max(_FEWEST, min(_MOST, rows))
                for start in range(0, batch.num_rows, rows):
                    part = batch.slice(start, rows)
                    before, number = number, number + part.num_rows
                    yield from row_documents(part, before, names, intake)
        except (pyarrow.ArrowException, OSError) as error:
            return _unreadable(
                f"the rows from here on cannot be read ({first_line(error)})", intake, number + 1
            )
        intake.entry.empty = span.whole and number == 0
        if not hasattr(table, "num_record_batches") and span.end < 0 and not _ends(handle):
            _unreadable("the stream ends here, without its end mark: it was cut off", intake, number + 1)


def _unreadable(what: str, intake: Intake, number: int | None = None, count: int = 1) -> None:
    intake.entry.read += count
    intake.fault(number, "unreadable", what, AGAIN, count)


def _open_arrow(file: InputFile, handle: Any) -> Any:
    """A reader of the file or stream format."""
    import pyarrow

    magic = handle.read(6)
    handle.seek(0)
    if magic.startswith(_FEATHER_1):
        raise pyarrow.ArrowInvalid("Feather version 1; write it again as version 2 or Parquet")
    source = pyarrow.PythonFile(handle, mode="r") if file.remote else pyarrow.memory_map(file.location)
    return (pyarrow.ipc.open_file if magic == _FILE else pyarrow.ipc.open_stream)(source)


def _batches(table: Any, start: int, end: int) -> Iterator[Any]:
    """Record batches `start` to `end` (−1: the last) of a file or stream."""
    if hasattr(table, "num_record_batches"):
        for number in range(start, end if end >= 0 else table.num_record_batches):
            yield table.get_batch(number)
        return
    for number, batch in enumerate(table):
        if number >= start:
            yield batch
        if number + 1 == end:
            return


def _ends(handle: Any) -> bool:
    handle.seek(-len(_END), 2)
    return bool(handle.read() == _END)


def _group_sizes(file: InputFile) -> list[tuple[int, int]]:
    """Of each row group: rows, and bytes on the disk."""
    from pyarrow.parquet import ParquetFile

    with opened(file) as handle:
        about = ParquetFile(handle).metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        return [
            (group.num_rows, sum(group.column(i).total_compressed_size for i in range(group.num_columns)))
            for group in groups
        ]


def _batch_sizes(file: InputFile) -> list[tuple[int, int]]:
    """Of each record batch: rows, and about its share of the file.

    A broken batch ends the list before it, so that the last span meets the fault."""
    import pyarrow

    found: list[tuple[int, int]] = []
    with opened(file) as handle:
        table = _open_arrow(file, handle)
        with contextlib.suppress(pyarrow.ArrowException, OSError):
            found.extend((batch.num_rows, batch.nbytes) for batch in _batches(table, 0, -1))
    total = max(1, sum(size for _, size in found))
    return [(rows, file.size * size // total) for rows, size in found]


def _columns(names: Sequence[str], intake: Intake) -> list[str]:
    """The columns that the recipe's keys lead into."""
    source = intake.source
    keys = (source.text_key, source.id_key, source.url_key, *source.label_key)
    return [name for name in names if any(key == name or key.startswith(f"{name}.") for key in keys)]


def _texts(batch: Any, key: str) -> Any:
    """The column of the texts, also from within structures; None if there is none."""
    import pyarrow
    import pyarrow.compute

    names = batch.schema.names
    name = next((name for name in names if key == name), None) or next(
        (name for name in names if key.startswith(f"{name}.")), None
    )
    if name is None:
        return None
    column = batch.column(name)
    column = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    if name == key:
        return column
    try:
        return pyarrow.compute.struct_field(column, key[len(name) + 1 :].split("."))
    except (pyarrow.ArrowException, TypeError):
        return None


def _as_bytes(column: Any) -> Any:
    """The column's strings as their bytes; other types as they are."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string(column.type) or types.is_binary(column.type):
        return column.cast(pyarrow.binary())
    if any(
        getattr(types, f"is_{kind}")(column.type) for kind in ("large_string", "string_view", "binary_view")
    ):
        return column.cast(pyarrow.large_binary())
    return column


def _bytes(column: Any) -> int:
    """The bytes of all strings of a column, counted by Arrow."""
    import pyarrow.compute

    column = _as_bytes(column)
    kinds = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    if not any(kind(column.type) for kind in kinds):
        return 0
    return int(pyarrow.compute.sum(pyarrow.compute.binary_length(column)).as_py() or 0)


def _values(column: Any) -> Any:
    """The column's values; as Arrow's own cells, where one of them is no UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column


def _decoded(value: Any) -> Any:
    value = value.as_py() if hasattr(value, "as_py") else value
    return value.decode() if isinstance(value, bytes) else value


def _require_pyarrow(shown: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f'{shown}: reading tables needs `pip install "stablelm[data]"`.') from None
