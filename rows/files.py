"""
Reads whole tables as people keep them: CSV, TSV, JSON, JSON lines, parquet, and folders of `datasets`.

Any encoding and any delimiter is read, and a broken row does not end the reading. `rows.table` finds questions,
answers and images in a table. Large data sets are read row by row, see `rows.readers`.
"""

import csv
import io
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.readers import check_row, import_table_library, load_splits, parse_json


# Longest first: UTF-32 begins with the bytes of UTF-16.
BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of the image folders of `datasets`
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
ARCHIVES = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")


@dataclass
class RawRow:
    """
    A row as the file has it.

    Attributes:
        number (`int`): of its line, entry or row in the file, from 1.
        values (`dict`): by column.
        error (`str`, *optional*): why the row cannot be read; it has no values then.
    """

    number: int
    values: dict = field(default_factory=dict)
    error: str | None = None


@dataclass
class Table:
    """
    What a file holds.

    Attributes:
        path (`Path`): of the file.
        unit (`str`): what its numbers count: line, entry or row.
        columns (`list[str]`): in the order of the file. A CSV file may have a name twice.
        rows (`list[RawRow]`): without blank ones.
        notices (`list[str]`): what was guessed about the file.
    """

    path: Path
    unit: str
    columns: list[str]
    rows: list[RawRow]
    notices: list[str] = field(default_factory=list)


def read_file(path: str | Path) -> Table:
    """
    Read a table: a `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet` file, or a folder of `datasets`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, in an unknown encoding, not valid as a whole, or without rows. A broken
            row is no error: it says in `error` what is wrong.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no table {path}: no such file.")
    if path.is_dir():
        return _read_folder(path)
    suffix = path.suffix.lower()
    if suffix in SPREADSHEETS:
        raise ValueError(f"{path} is a spreadsheet. Save the sheet as CSV (in Excel: CSV UTF-8) and give that file.")
    if suffix in ARCHIVES:
        raise ValueError(f"{path} is compressed. Unpack it and give the file inside.")
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is of no kind that can be read: expected {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    if suffix == ".parquet":
        table = _read_parquet(path)
    else:
        text, notices = decode(path.read_bytes(), path)
        table = _read_json(text, path) if "json" in suffix else read_delimited(text, path)
        table.notices[:0] = notices
    return _check_not_empty(table)


def decode(data: bytes, path: Path) -> tuple[str, list[str]]:
    """
    Return the text of a file and notices about a guessed encoding.

    UTF-8 with or without byte order mark, UTF-16 and UTF-32 are recognized; what is none of them is taken for
    Windows-1252, which Excel writes in western Europe and America.

    Raises:
        ValueError: if the bytes are no text of these.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None and data[:2000].count(0) > len(data[:2000]) // 4:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        text, notices = data.decode(encoding or "utf-8"), []
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise ValueError(f"{path} is not valid {encoding}, as it begins: {error}. Save it as UTF-8.") from error
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is in an unknown encoding, expected UTF-8. Save it as UTF-8.") from None
        example = re.findall(r"\w*[^\x00-\x7f]\w*", text)[0]
        notices = [
            f"{path.name} is not UTF-8 and was read as Windows-1252, for example {example!r}. If letters are wrong,"
            " save it as UTF-8."
        ]
    if "\0" in text:
        raise ValueError(f"{path} holds bytes that are no text. Save it as text in UTF-8.")
    return text, notices


def read_delimited(text: str, path: Path) -> Table:
    """
    Read the rows of a CSV or TSV file, whose first row names the columns.

    The delimiter is the one that gives the first row most fields: commas, semicolons (Excel in Europe), tabs or bars.
    A line `sep=;` before the first row is understood. Fields are stripped, blank lines are skipped.

    Raises:
        ValueError: if quotation marks do not match, with the line where the row begins.
    """
    first_line = 1
    if match := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):
        delimiter, text, first_line = match[1], text[match.end() :], 2
    else:
        preferred = "\t" if path.suffix.lower() == ".tsv" else ","
        delimiter = max(DELIMITERS, key=lambda mark: (len(_first_record(text, mark)), mark == preferred))
    records = _read_records(text, delimiter, path, first_line)
    _, header = next(records, (0, []))
    header = _drop_empty_end(header)
    rows = [_make_row(number, _drop_empty_end(record, len(header)), header, delimiter) for number, record in records]
    return Table(path, "line", header, rows)


def _first_record(text: str, delimiter: str) -> list[str]:
    try:
        lines = io.StringIO(text, newline="")
        return next(
            (record for record in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if any(record)), []
        )
    except csv.Error:
        return []


def _read_records(text: str, delimiter: str, path: Path, first_line: int):
    """Yield the line where each record begins, and its stripped fields. Blank records are skipped."""
    limit = csv.field_size_limit(sys.maxsize)  # images in base64 are longer than the default
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = first_line
    try:
        for record in reader:
            record = [value.strip() for value in record]
            if any(record):
                yield start, record
            start = first_line + reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}: the quotation marks do not match in the row that begins in line {start} ({error}). A text with a"
            ' quotation mark stands in quotation marks, and the inner one is written twice: "a 5"" pipe".'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _drop_empty_end(record: list[str], length: int = 0) -> list[str]:
    """Return a record without empty fields beyond `length`: spreadsheets write them for formatted cells."""
    while len(record) > length and not record[-1]:
        record = record[:-1]
    return record


def _make_row(number: int, record: list[str], header: list[str], delimiter: str) -> RawRow:
    if len(record) != len(header):
        error = f"it has {len(record)} fields, expected {len(header)} ({', '.join(header)})"
        if len(record) > len(header):
            error += f"; a text with {DELIMITERS.get(delimiter, repr(delimiter))} has to stand in quotation marks"
        return RawRow(number, error=error)
    return RawRow(number, dict(zip(reversed(header), reversed(record), strict=True)))  # the first of two columns stays


def _read_json(text: str, path: Path) -> Table:
    """Read a JSON list or JSON lines, whichever the file holds, whatever its name."""
    beginning = text.lstrip()[:1]
    if beginning == "[":
        return _read_list(text, path)
    if beginning == "{" and _holds_one_object(text):
        keys = ", ".join(map(repr, list(json.loads(text))[:8]))
        raise ValueError(
            f"{path} holds one object with the keys {keys}, expected a list of rows, or one row a line. From pandas:"
            " to_json(path, orient='records')."
        )
    rows = [_read_line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(rows) > 1 and all(row.error is not None for row in rows):
        raise ValueError(
            f"{path} has no line that is a row (line {rows[0].number}: {rows[0].error}). Expected one JSON object a"
            " line, as `jq -c` writes them, or a list of objects."
        )
    return Table(path, "line", _list_columns(rows), rows)


def _holds_one_object(text: str) -> bool:
    """
    Return whether the text is one object that is no row: over several lines, or of lists and objects alone.

    On one line, an object with a text or number is a row, and so is a conversation.
    """
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if "\n" in text.strip():
        return True
    is_chat = isinstance(entry.get("messages", entry.get("conversations")), list)
    return bool(entry) and not is_chat and all(isinstance(value, (list, dict)) for value in entry.values())


def _read_list(text: str, path: Path) -> Table:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON: {error}. (One row a line is read, too, without a `[`.)"
        ) from error
    rows = [_to_row(number, entry) for number, entry in enumerate(entries, 1)]
    return Table(path, "entry", _list_columns(rows), rows)


def _read_line(number: int, line: str) -> RawRow:
    try:
        return _to_row(number, parse_json(line))
    except RowError as error:
        return RawRow(number, error=str(error))


def _to_row(number: int, entry) -> RawRow:
    try:
        return RawRow(number, check_row(entry))
    except RowError as error:
        return RawRow(number, error=str(error))


def _list_columns(rows: list[RawRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _read_parquet(path: Path) -> Table:
    invalid = import_table_library("pyarrow").ArrowInvalid
    try:
        return _from_arrow(import_table_library("pyarrow.parquet").read_table(path), path)
    except invalid as error:
        raise ValueError(f"{path} is no parquet file that can be read: {error}") from error


def _from_arrow(table, path: Path) -> Table:
    """Return the rows of an arrow table. Classes of `datasets` become their names, images stay as they are stored."""
    datasets = import_table_library("datasets")
    kinds = datasets.Features.from_arrow_schema(table.schema)
    labels = {name: kind for name, kind in kinds.items() if type(kind) is datasets.ClassLabel}
    rows = table.to_pylist()
    for row in rows:
        for name, kind in labels.items():
            if row[name] is not None and row[name] >= 0:  # -1 stands for an unknown class
                row[name] = kind.int2str(row[name])
            else:
                row[name] = None
    return Table(path, "row", table.column_names, [RawRow(number, row) for number, row in enumerate(rows, 1)])


def _read_folder(path: Path) -> Table:
    """Read a folder of `datasets`: one of `save_to_disk`, or images with a metadata file."""
    for name in METADATA_NAMES:
        if (path / name).is_file():
            return read_file(path / name)
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        # The arrow format keeps `datasets` from decoding images.
        return _check_not_empty(_from_arrow(load_splits(path)[None].with_format("arrow")[:], path))
    if (path / "dataset_dict.json").is_file():
        splits = sorted(file.parent.name for file in path.glob("*/state.json"))
        raise ValueError(f"{path} holds several splits: {', '.join(splits)}. Give one of them: {path / splits[0]}")
    tables = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    raise ValueError(
        f"{path} is a folder, expected a table or a folder of `datasets.save_to_disk`."
        + (f" In it are: {', '.join(tables[:5])}." if tables else " There is no table in it.")
    )


def _check_not_empty(table: Table) -> Table:
    if not table.rows:
        raise ValueError(f"{table.path} holds no rows" + (", only the names of columns." if table.columns else "."))
    return table
