"""Files from the network: resumed where they broke off, checked, tried on one mirror after another."""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

from nblib.data.lines import DataError
from nblib.files import atomic_folder
from nblib.run.progress import report

CHUNK = 1 << 18
PASSING = (408, 429, 500, 502, 503, 504)  # answers that may be another one in a moment
TEXTS = ("corpus.jsonl", "queries.jsonl")
ATTEMPTS = 3  # in a row without a new byte


def fetch(
    urls: Iterable[str],
    target: str | Path,
    md5: str,
    size: int,
    *,
    attempts: int = ATTEMPTS,
    wait_s: float = 0.5,
    timeout_s: float = 60.0,
) -> str:
    """Fetch a file from the first mirror that has it; a broken download goes on where it stopped.

    What has come so far waits in `target`.part, also for a later call, and goes on from any mirror, since all
    of them must offer the same bytes.

    Args:
        urls: mirrors in the order in which they are tried.
        target: is written only when size and md5 agree.
        md5: of the whole file, 32 hex digits.
        size: bytes of the whole file.
        attempts: per mirror, in a row without a new byte.
        wait_s: before an attempt; doubles with each that brought nothing.
        timeout_s: without a byte.

    Returns:
        The URL it came from.

    Raises:
        DataError: no mirror gave the file; says what was wrong with each.
    """
    target, reasons = Path(target), []
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for url in urls:
        try:
            _from_mirror(url, part, md5, size, attempts, wait_s, timeout_s)
        except DataError as error:
            reasons.append(f"{url}: {error}")
            continue
        os.replace(part, target)
        return url
    raise DataError("; ".join(reasons) or f"no mirror is known for {target.name}")


def _from_mirror(
    url: str, part: Path, md5: str, size: int, attempts: int, wait_s: float, timeout_s: float
) -> None:
    """Fill `part` from one mirror and check it. Raises DataError."""
    resumed = part.exists()
    _download(url, part, size, attempts, wait_s, timeout_s)
    with open(part, "rb") as handle:
        found = hashlib.file_digest(handle, "md5").hexdigest()
    if found == md5:
        return
    part.unlink()
    if not resumed:
        raise DataError(f"its md5 is {found}, not {md5}")
    _from_mirror(url, part, md5, size, attempts, wait_s, timeout_s)  # the fault may be in the older half


def _download(url: str, part: Path, size: int, attempts: int, wait_s: float, timeout_s: float) -> None:
    """Append to `part` until it has `size` bytes. Raises DataError when no more comes."""
    failures = 0
    if _bytes(part) > size:
        part.unlink()
    while (before := _bytes(part)) != size:
        try:
            _append(url, part, size, timeout_s)
            reason = f"the connection ended after {_bytes(part):,} of {size:,} bytes"
        except urllib.error.HTTPError as error:
            if error.code not in PASSING:
                raise DataError(f"HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if _bytes(part) == size:
            return
        failures = 0 if _bytes(part) > before else failures + 1
        if failures == attempts:
            raise DataError(reason)
        time.sleep(wait_s * 2**failures)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, size: int, timeout_s: float) -> None:
    """Ask for what `part` lacks and write it as it comes; a server that sends all begins anew.

    Raises:
        DataError: the server offers a file of another size.
    """
    have = _bytes(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        partial = answer.status == 206
        total = answer.headers["Content-Range" if partial else "Content-Length"]
        offered = (total or "").rpartition("/")[2]
        if offered.isdigit() and int(offered) != size:
            raise DataError(f"it offers {int(offered):,} bytes, not {size:,}")
        with open(part, "ab" if partial else "wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                report(f"download {part.name.removesuffix('.part')} (kB)", out.tell() // 1000, size // 1000)


def unpack_beir(archive: str | Path, folder: str | Path) -> None:
    """Unpack corpus, queries and qrels of a BEIR zip into a folder, which appears when it is whole.

    Raises:
        DataError: not a zip, or a file of BEIR's layout is not in it.
    """
    try:
        with zipfile.ZipFile(archive) as packed, atomic_folder(folder) as tmp:
            for member in packed.namelist():
                inside = Path(*Path(member).parts[1:])  # the zip holds one folder
                if inside.as_posix() in TEXTS or (inside.parent == Path("qrels") and inside.suffix == ".tsv"):
                    _unpack(packed, member, tmp / inside)
            lacking = [n for n in (*TEXTS, "qrels") if not (tmp / n).exists()]
            if lacking:
                raise DataError(f"{archive} lacks {', '.join(lacking)}; it is no set in BEIR's layout")
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is not a whole zip ({error}); delete it and fetch it again") from error


def _unpack(packed: zipfile.ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with packed.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, CHUNK)
