import json
import time

import pytest

from nblib.run import progress
from nblib.run.progress import clock, line, report, track


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("_started", "_last_shown", "_written"):
        monkeypatch.setattr(progress, name, {})


def test_clock():
    assert [clock(s) for s in (7, 59.6, 754, 3750)] == ["0:07", "1:00", "12:34", "1:02:30"]


def test_time_left_counts_from_where_a_resumed_loop_began():
    state = {"label": "train", "done": 250, "total": 450, "started": 1000.0, "from": 200}
    assert line(state, now=1100.0) == "train 250/450, 6:40 left"  # 50 steps in 100 s, 200 to go


def test_track_writes_the_file_and_yields_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_PROGRESS_DIR", str(tmp_path))
    assert list(track([4, 5, 6], "encode")) == [4, 5, 6]
    state = json.loads((tmp_path / "progress.json").read_text())
    assert (state["label"], state["done"], state["total"]) == ("encode", 3, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]


def test_track_of_unknown_length(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_PROGRESS_DIR", str(tmp_path))
    assert sum(track(iter(range(4)), "read")) == 6
    assert json.loads((tmp_path / "progress.json").read_text())["done"] == 4


def test_at_most_two_writes_a_second(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_PROGRESS_DIR", str(tmp_path))
    seen, end = set(), time.monotonic() + 0.8
    step = 0
    while time.monotonic() < end:
        report("train", step, 10**9)
        seen.add(json.loads((tmp_path / "progress.json").read_text())["done"])
        step += 1
    assert step > 20 and len(seen) == 2


def test_without_the_runner_a_line_is_printed_now_and_then(monkeypatch, capsys):
    monkeypatch.delenv("NBLIB_PROGRESS_DIR", raising=False)
    list(track(range(1000), "quick loop"))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "PRINT_EVERY_S", 0.0)
    report("slow loop", 1, 4)
    assert capsys.readouterr().out == "slow loop 1/4\n"


def test_a_full_disk_does_not_stop_the_loop(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_PROGRESS_DIR", str(tmp_path / "file/below"))
    (tmp_path / "file").write_text("no folder")
    assert list(track([1, 2], "train")) == [1, 2]
