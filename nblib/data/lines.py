"""Text files read line by line, and what is said about a line that cannot be used."""

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_DOWNLOAD = "`python -m nblib run --profile quick` needs no data set: it uses the embedded api-docs"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NOT_UTF8 = "save the file as UTF-8 (for instance: iconv -f CP949 -t UTF-8 old > new)"


class DataError(ValueError):
    """Data that cannot be used; the message names file, line, reason and cure."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file. kind: "bad" or "duplicate" (a row is dropped), "bom" (it is stripped),
    "absent" (a judgement stays although the corpus lacks its document).
    """

    file: str
    line: int
    reason: str
    kind: str = "bad"

    def __str__(self) -> str:
        where = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{where}: {self.reason}"


class Checker:
    """Raise at the first bad row or write it down, as the caller asked.

    Args:
        path: the file that is read.
        strict: raise DataError at a bad row; else drop it and go on.
        problems: takes a Problem for each row that was dropped; duplicates are only ever written down.
    """

    def __init__(self, path: str | Path, strict: bool, problems: list[Problem] | None):
        self.path, self.strict = Path(path), strict
        self.problems = [] if problems is None else problems

    def bad(self, line: int, reason: str, kind: str = "bad") -> None:
        """Report a row. Raises DataError if strict."""
        problem = Problem(str(self.path), line, reason, kind)
        if self.strict:
            raise DataError(str(problem))
        self.problems.append(problem)

    def duplicate(self, line: int, first: int) -> None:
        """Write down a row that repeats the one on line `first`."""
        self.problems.append(Problem(str(self.path), line, f"the same row as line {first}", "duplicate"))

    def absent(self, line: int, doc: str) -> None:
        """Write down a judgement that stays although the corpus lacks its document."""
        reason = f'the corpus lacks document "{doc}"; the judgement stays'
        self.problems.append(Problem(str(self.path), line, reason, "absent"))


def with_gz(path: str | Path) -> Path:
    """Find a file, or the same with .gz added.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(path)
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing, and so is {path.name}.gz")


def read_lines(check: Checker) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of each line of a UTF-8 file, plain or .gz, that is not blank.

    Raises:
        DataError: a compressed file that is cut off; if strict also a byte order mark or bytes not in UTF-8.
    """
    opener = gzip.open if check.path.suffix == ".gz" else open
    number = 0
    try:
        with opener(check.path, "rb") as handle:
            for number, raw in enumerate(handle, 1):
                if number == 1:
                    if raw.startswith(UTF16):
                        check.bad(1, f"wrong encoding: UTF-16, the whole file is left out; {NOT_UTF8}")
                        return
                    raw = _without_bom(raw, check)
                text = _decode(raw, number, check)
                if text and not text.isspace():
                    yield number, text.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{check.path}, after line {number}: not a whole .gz file ({error}); fetch it again"
        ) from error


def _without_bom(raw: bytes, check: Checker) -> bytes:
    if not raw.startswith(codecs.BOM_UTF8):
        return raw
    check.bad(
        1, "starts with a byte order mark (BOM); save it as UTF-8 without BOM, or set strict=False", "bom"
    )
    return raw[len(codecs.BOM_UTF8) :]


def _decode(raw: bytes, number: int, check: Checker) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        check.bad(number, f"wrong encoding: {byte} is not UTF-8; {NOT_UTF8}")
        return None


def read_objects(check: Checker) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON Lines file; broken lines go to `check`."""
    for number, text in read_lines(check):
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            where = f" (column {error.colno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
            check.bad(number, f"broken JSON{where}; write one whole JSON object per line")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            check.bad(number, f"a JSON {type(value).__name__}, not an object; write {{...}} on each line")


class RowError(Exception):
    """A reason why the row at hand cannot be used."""


def text_field(row: dict[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    """Take a text out of a row.

    Raises:
        RowError: missing, not a text, empty, or holding half of a surrogate pair.
    """
    if field not in row:
        raise RowError(f'field "{field}" is missing (found: {", ".join(map(str, row)) or "nothing"}); add it')
    return checked_text(row[field], field, may_be_empty=may_be_empty)


def checked_text(value: Any, field: str, *, may_be_empty: bool = False) -> str:
    """Check that a value is a text that can be used. Raises RowError as text_field does."""
    if not isinstance(value, str):
        raise RowError(f'field "{field}" is {json.dumps(value)[:40]}, not a text; put it in quotes')
    if not may_be_empty and not value.strip():
        raise RowError(f'field "{field}" is empty; give it a text or leave the row out')
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise RowError(
                f'field "{field}" holds half a surrogate pair ({half}); write the character out'
            ) from None
    return value


def number_field(value: Any, field: str) -> float:
    """Check that a value is a finite number. Raises RowError if not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f'"{field}" holds {json.dumps(value)[:40]}, not a number; write it without quotes')
    if not math.isfinite(value):
        raise RowError(f'"{field}" holds {value}; scores must be finite, so repair or leave out the row')
    return float(value)
