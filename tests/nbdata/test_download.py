"""Downloads against a real server on this machine that breaks, lies and comes back."""

import hashlib
import zipfile

import pytest

from nblib.data.download import fetch, unpack_beir
from nblib.data.lines import DataError
from tests.nbdata.server import serving

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()


def get(target, *urls, **options):
    settings = {"md5": MD5, "size": len(CONTENT), "wait_s": 0.0, "timeout_s": 5.0} | options
    return fetch(urls, target, **settings)


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    with serving({"/a.zip": CONTENT}, {"/a.zip": ["cut", "cut"]}) as server:
        assert get(tmp_path / "a.zip", f"{server.url}/a.zip") == f"{server.url}/a.zip"
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["", "bytes=5120-", "bytes=7680-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_what_an_earlier_call_left_is_not_fetched_again(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:10_000])
    with serving({"/a.zip": CONTENT}) as server:
        get(tmp_path / "a.zip", f"{server.url}/a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.asked == [("/a.zip", "bytes=10000-")]


def test_a_server_without_ranges_begins_anew(tmp_path):
    with serving({"/a.zip": CONTENT}, {"/a.zip": ["cut", "whole"]}) as server:
        get(tmp_path / "a.zip", f"{server.url}/a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT and len(server.asked) == 2


def test_a_busy_server_is_asked_again_and_a_404_is_not(tmp_path):
    with serving({"/a.zip": CONTENT}, {"/a.zip": ["503", "503"]}) as server:
        get(tmp_path / "a.zip", f"{server.url}/none.zip", f"{server.url}/a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/none.zip", "/a.zip", "/a.zip", "/a.zip"]


def test_a_mirror_with_wrong_bytes_is_left_for_the_next(tmp_path):
    with serving({"/bad.zip": CONTENT, "/good.zip": CONTENT}, {"/bad.zip": ["garble"]}) as server:
        assert get(tmp_path / "a.zip", f"{server.url}/bad.zip", f"{server.url}/good.zip").endswith(
            "/good.zip"
        )
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.asked == [("/bad.zip", ""), ("/good.zip", "")]  # the next begins anew


def test_a_wrong_old_half_is_thrown_away(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 500)
    with serving({"/a.zip": CONTENT}) as server:
        get(tmp_path / "a.zip", f"{server.url}/a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=500-", ""]


def test_an_old_part_that_is_too_long_is_thrown_away(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"x")
    with serving({"/a.zip": CONTENT}) as server:
        get(tmp_path / "a.zip", f"{server.url}/a.zip")
    assert server.asked == [("/a.zip", "")]


def test_a_file_of_another_size_is_refused_before_it_is_fetched(tmp_path):
    with (
        serving({"/a.zip": CONTENT + b"more"}) as server,
        pytest.raises(DataError, match=r"10,244 bytes, not 10"),
    ):
        get(tmp_path / "a.zip", f"{server.url}/a.zip")
    assert not (tmp_path / "a.zip").exists() and not (tmp_path / "a.zip.part").exists()


def test_every_mirror_is_named_with_its_reason(tmp_path):
    faults = {"/bad.zip": ["garble"], "/down.zip": ["503"] * 9, "/cut.zip": ["cut"] * 99}
    names = ["none", "bad", "down"]
    with serving({f"/{name}.zip": CONTENT for name in ("bad", "down")}, faults) as server:
        urls = [f"{server.url}/{name}.zip" for name in names]
        with pytest.raises(DataError) as caught:
            get(tmp_path / "a.zip", *urls, attempts=2)
    said = str(caught.value)
    assert (
        f"{urls[0]}: HTTP 404" in said and f"{urls[1]}: its md5 is" in said and f"{urls[2]}: HTTP 503" in said
    )
    with pytest.raises(DataError, match="refused"):  # the server is gone
        get(tmp_path / "a.zip", urls[0], attempts=2)


def test_only_the_files_of_a_set_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/../../out.tsv", "notes.txt"):
            packed.writestr(f"a/{name}", name)
    unpack_beir(tmp_path / "a.zip", tmp_path / "sets" / "a")
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["a.zip", "sets/a/corpus.jsonl", "sets/a/qrels/test.tsv", "sets/a/queries.jsonl"]


@pytest.mark.parametrize("kept", [[], ["corpus.jsonl"], ["corpus.jsonl", "queries.jsonl"]])
def test_a_zip_that_holds_no_set_leaves_nothing(tmp_path, kept):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ["readme", *kept]:
            packed.writestr(f"a/{name}", name)
    with pytest.raises(DataError, match="lacks .*qrels"):
        unpack_beir(tmp_path / "a.zip", tmp_path / "a")
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a whole zip"):
        unpack_beir(tmp_path / "b.zip", tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip"]
