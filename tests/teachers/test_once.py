import multiprocessing

import numpy as np
import pytest
from scipy import sparse

from nblib.teachers import once, texts_key

from . import workers


def start(target, *args) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    return process


def run_two(target, *args) -> None:
    """Run two processes to their end and leave none behind."""
    running = [start(target, rank, 2, *args) for rank in range(2)]
    try:
        for process in running:
            process.join(120)
        assert [process.exitcode for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()


def test_a_key_knows_order_and_borders():
    keys = {texts_key(*parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], [["ab"], ["c"]], [["a", "b"]])}
    keys |= {
        texts_key(["a", "b"], []),
        texts_key(["b", "a"], []),
        texts_key([], ["a", "b"]),
        texts_key(["a\0b"]),
    }
    assert len(keys) == 9
    assert texts_key(["a\0b", "c"]) != texts_key(["a", "b\0c"])
    assert texts_key(["\ud800"]) != texts_key(["?"])  # half a surrogate pair, as JSON may hold it


@pytest.mark.parametrize("cached", [True, False])
def test_the_rows_come_in_order(tmp_path, monkeypatch, cached):
    monkeypatch.setattr(once, "CHUNK", 4)
    seen, done = [], []

    def compute(rows, tick):
        seen.append((rows.start, rows.stop))
        tick(1)
        return np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]

    file = tmp_path / "x" if cached else None
    got = once.compute_once(file, 10, once.ARRAY, compute, done.append)
    assert got[:, 0].tolist() == list(range(10)) and got.dtype == np.float32
    assert seen == [(0, 4), (4, 8), (8, 10)]
    assert done[-1] == 10 and [d for d in done if d not in (0, 4, 8, 10)] == [1, 5, 9]
    assert isinstance(got, np.memmap) == cached
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"] * cached


def test_sparse_rows_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "CHUNK", 4)
    rows = sparse.random(10, 30, density=0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(5))
    got = once.compute_once(tmp_path / "x", 10, once.CSR, lambda part, tick: rows[part])
    assert got.dtype == np.float32 and (got != rows).nnz == 0
    again = once.compute_once(tmp_path / "x", 10, once.CSR, lambda part, tick: pytest.fail("is there"))
    assert (again != rows).nnz == 0


def test_nothing_to_compute_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no text"):
        once.compute_once(tmp_path / "x", 0, once.ARRAY, None)


@pytest.mark.parametrize("how", ["group", "torchrun"])
def test_two_processes_share_the_chunks(tmp_path, how):
    if how == "group":
        run_two(workers.in_group, str(tmp_path / "meeting"), tmp_path / "cache" / "x", tmp_path)
    else:
        run_two(workers.as_torchrun, tmp_path / "cache" / "x", tmp_path)
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in range(2))
    assert np.array_equal(first, second)
    assert first[:, 0].tolist() == list(range(workers.N))
    assert first[:, 1].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1], "every other chunk of two"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["x.npy"]


def test_a_killed_run_keeps_its_chunks(tmp_path, monkeypatch):
    file = tmp_path / "x"
    killed = start(workers.rows_and_ranks, file, 4)
    killed.join(120)
    assert killed.exitcode == -9
    parts = tmp_path / "x.parts-2"
    assert sorted(path.name for path in parts.iterdir()) == ["000000.npy", "000001.npy"]
    (parts / ".000002.npy.abc.tmp").write_bytes(b"torn")
    np.save(parts / "000001.npy", np.array([[2, 77], [3, 77]]))  # a mark that only reuse can carry over
    monkeypatch.setattr(once, "CHUNK", 2)
    got = workers.rows_and_ranks(file)
    assert got[:, 0].tolist() == list(range(workers.N))
    assert got[:, 1].tolist() == [0, 0, 77, 77] + [0] * 7
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_process_that_never_comes_is_named(tmp_path, monkeypatch):
    for name, value in {"CHUNK": 2, "STALL_S": 0.3}.items():
        monkeypatch.setattr(once, name, value)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TimeoutError, match="5 missing in .*x.parts-2: are all 2 processes alive"):
        once.compute_once(tmp_path / "x", 20, once.ARRAY, lambda rows, tick: np.zeros((2, 1)))


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [once.own_device(device) for device in ("cuda", "cpu", "cuda:0")] == ["cuda:3", "cpu", "cuda:0"]
    monkeypatch.delenv("LOCAL_RANK")
    assert once.own_device("cuda") == "cuda"


def test_teachers_of_two_processes_score_as_those_of_one(dense_folder, ours, cross_folder, tmp_path):
    names = str(dense_folder("cosine")), str(ours), str(cross_folder)
    out = tmp_path / "out"
    out.mkdir()
    run_two(workers.prepare_ensemble, names, tmp_path / "two", out)
    first, second = (np.load(out / f"{rank}.npy") for rank in range(2))
    single = start(workers.prepare_ensemble, 0, 1, names, tmp_path / "one", out)
    single.join(120)
    alone = np.load(out / "0.npy")
    assert np.array_equal(first, second)
    assert np.allclose(first, alone, atol=1e-5) and np.isfinite(alone).all()
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )
