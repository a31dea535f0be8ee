"""An index on disk: whole or absent, and what is wrong with a folder is said."""

import json
import mmap
import tracemalloc
import weakref

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from nblib.search.inverted import InvertedIndex
from tests.search.plain import random_reps


@pytest.fixture
def folder(tmp_path):
    d = random_reps(30, 8, 0.5, 1, True)
    InvertedIndex.write(tmp_path / "index", [d[:20], d[20:]])
    return tmp_path / "index"


def change(path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_files_are_mapped_not_read(folder):
    index = InvertedIndex.open(folder, verify=True)
    holder = index.shards[1].weights
    while isinstance(holder.base, np.ndarray):
        holder = holder.base
    assert isinstance(holder.base, mmap.mmap)
    held = sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert 0 < held - index.index_bytes < 6 * 256  # the headers of six files
    assert index.n_postings * 8 + 2 * 9 * 8 == index.index_bytes


def test_the_query_of_another_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match="queries have 9 terms and the index 8"):
        InvertedIndex.open(folder).search(csr_matrix((1, 9)), 1)


def test_blocks_of_unlike_vocabulary_leave_the_old_index(folder):
    with pytest.raises(ValueError, match="shard 1 has 9 terms, the first one 8"):
        InvertedIndex.write(folder, [csr_matrix((3, 8)), csr_matrix((3, 9))])
    assert InvertedIndex.open(folder, verify=True).n_docs == 30
    assert [path.name for path in folder.parent.iterdir()] == ["index"]


def test_a_block_is_let_go_before_the_next_is_made(tmp_path):
    made = []

    def blocks():
        for seed in range(3):
            assert all(block() is None for block in made)
            block = random_reps(20, 8, 0.5, seed, True)
            made.append(weakref.ref(block))
            yield block
            del block

    InvertedIndex.write(tmp_path / "index", blocks())
    assert len(made) == 3


def test_memory_of_a_build_is_that_of_a_shard(tmp_path):
    block = random_reps(2000, 500, 0.1, 1, True)
    postings = 8 * block.nnz  # bytes of a shard's

    def peak(shards):
        tracemalloc.start()
        InvertedIndex.write(tmp_path / "index", (block.copy() for _ in range(shards)))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(1)  # what is imported and compiled at the first use counts for neither
    few, many = peak(2), peak(12)
    assert few > postings and many - few < 0.2 * postings


def test_a_build_that_dies_leaves_nothing(tmp_path):
    def blocks():
        yield random_reps(5, 8, 0.5, 2, True)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        InvertedIndex.write(tmp_path / "index", blocks())
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no whole index"):
        InvertedIndex.open(tmp_path / "index")


def test_nothing_to_index_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no documents"):
        InvertedIndex.write(tmp_path / "index", [])
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no index"):
        InvertedIndex.write(tmp_path, [csr_matrix((1, 1))])
    assert (tmp_path / "thesis.tex").exists()


def test_a_missing_part_is_named(folder):
    (folder / "shard-00001.weights.npy").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00001.weights.npy.*write the index again"):
        InvertedIndex.open(folder)


@pytest.mark.parametrize("name", ["indptr", "documents", "weights"])
def test_a_cut_file_is_named(folder, name):
    path = folder / f"shard-00000.{name}.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"shard-00000.{name}.npy: damaged"):
        InvertedIndex.open(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"shard-00000.{name}.npy: damaged"):
        InvertedIndex.open(folder)


def test_a_file_of_another_shard_or_kind_is_refused(folder):
    weights = folder / "shard-00000.weights.npy"
    np.save(weights, np.load(weights)[:-1])
    with pytest.raises(ValueError, match="shard 0: sizes differ from meta.json"):
        InvertedIndex.open(folder)
    np.save(weights, np.load(weights).astype(np.float64))
    with pytest.raises(ValueError, match="holds float64, not float32"):
        InvertedIndex.open(folder)


def test_a_changed_byte_is_found(folder):
    change(folder / "shard-00000.documents.npy", -1)
    InvertedIndex.open(folder)
    with pytest.raises(ValueError, match="documents.npy: damaged, its checksum differs"):
        InvertedIndex.open(folder, verify=True)
    change(folder / "shard-00001.indptr.npy", -8)  # is found without reading the lists
    with pytest.raises(ValueError, match="shard 1: sizes differ"):
        InvertedIndex.open(folder)


def test_another_version_is_refused(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(ValueError, match="want 'nblib inverted index' version 1.*version 99"):
        InvertedIndex.open(folder)
