"""nblib.files: what is written is whole or absent, on a full disk too."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nblib.files import (
    ROOT,
    at_root,
    atomic_file,
    atomic_folder,
    read_json,
    remove_leftovers,
    sha256_file,
    sha256_paths,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_paths_are_taken_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert at_root("outputs/lab") == ROOT / "outputs/lab"
    assert at_root(tmp_path / "x") == tmp_path / "x"
    assert at_root("~/x") == Path.home() / "x"


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.txt") as tmp:
        tmp.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_failing_folder_keeps_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "model") as tmp:
        (tmp / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as tmp:
        (tmp / "weights").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["model"] and (tmp_path / "model/weights").read_text() == "old"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "model") as tmp:
            (tmp / name).write_text(name)
    assert names(tmp_path / "model") == ["second"]


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "a" / ".model.x1.tmp").mkdir(parents=True)
    (tmp_path / "a" / ".model.x1.tmp" / "half").write_text("h")
    (tmp_path / ".b.json.x2.tmp").write_text("h")
    (tmp_path / "a" / "kept.tmp").write_text("k")
    remove_leftovers(tmp_path)
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "kept.tmp"]


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"말": 0.5})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "말": 0.5\n}\n'
    assert read_json(tmp_path / "a.json") == {"말": 0.5}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", [float("nan")])
    assert read_json(tmp_path / "a.json") == {"말": 0.5}
    (tmp_path / "b.json").write_text('{\n "a": 1,\n}')
    with pytest.raises(ValueError, match=r"b\.json, line 3"):
        read_json(tmp_path / "b.json")


def test_hashes_do_not_depend_on_the_place(tmp_path):
    for place in ("one", "two"):
        write_text(tmp_path / place / "sub/a.txt", "abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "one/sub/a.txt") == abc
    assert sha256_paths([tmp_path / "one"]) == sha256_paths([tmp_path / "two"])
    write_text(tmp_path / "two/sub/b.txt", "")
    assert sha256_paths([tmp_path / "one"]) != sha256_paths([tmp_path / "two"])


FILL = """
import sys
from pathlib import Path
from nblib.files import atomic_folder, write_json
out = Path(sys.argv[1])
def text():
    write_json(out / "metrics.json", ["x" * 1000] * 500)
def folder():
    with atomic_folder(out / "model") as tmp:
        for i in range(9):
            (tmp / f"{i}.bin").write_bytes(bytes(90_000))
for write in (text, folder):
    try:
        write()
    except OSError as error:
        print(error.strerror)
"""


def fill(folder: Path, limit: int | None) -> list[str]:
    """Write 500 kB as a file, then 810 kB as a folder, into a place that holds less; returns the errors."""

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FILL, folder]
    got = subprocess.run(command, env=env, capture_output=True, text=True, preexec_fn=limited)
    assert got.returncode == 0, got.stderr
    return got.stdout.splitlines()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs; the size limit of a process is tested beside it")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_no_half_written_artifact(small_disk):
    write_text(small_disk / "metrics.json", "[]\n")
    assert fill(small_disk, None) == ["No space left on device"] * 2
    assert names(small_disk) == ["metrics.json"] and read_json(small_disk / "metrics.json") == []


def test_a_limit_of_file_size_leaves_no_half_written_artifact(tmp_path):
    write_text(tmp_path / "metrics.json", "[]\n")
    assert fill(tmp_path, 80_000) == ["File too large"] * 2
    assert names(tmp_path) == ["metrics.json"] and read_json(tmp_path / "metrics.json") == []
