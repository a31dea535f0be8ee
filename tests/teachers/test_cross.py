import shutil

import numpy as np
import pytest
import torch

from nblib import teachers
from nblib.teachers import cross

from .conftest import DOCUMENTS, LENGTH, QUERIES

PAIRS = [(2, 2), (0, 0), (0, 3), (1, 1), (0, 0)]


def test_logits_of_the_named_pairs_and_nan_elsewhere(cross_folder, tmp_path):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(cross_folder), device="cpu", max_length=LENGTH)
    texts = [(QUERIES[q], DOCUMENTS[d]) for q, d in PAIRS]
    want = model.predict(texts, activation_fn=torch.nn.Identity())
    assert not ((want >= 0) & (want <= 1)).all(), "a sigmoid would pass unseen"
    assert np.ptp(want) > 0.01
    teacher = teachers.CrossTeacher(str(cross_folder), LENGTH)
    teacher.prepare(QUERIES, DOCUMENTS, tmp_path, pairs=PAIRS)
    got = teacher.scores(np.arange(3), np.arange(5)).numpy()
    for (q, d), score in zip(PAIRS, want, strict=True):
        assert got[q, d] == pytest.approx(score, abs=1e-5)
    assert np.isnan(got).sum() == 15 - 4


def test_long_pairs_are_cut(cross_folder):
    long = [DOCUMENTS[1] * 20]
    teacher = teachers.CrossTeacher(str(cross_folder), LENGTH)
    teacher.prepare(QUERIES, long, pairs=[(1, 0)])
    cut = teachers.CrossTeacher(str(cross_folder), 8)
    cut.prepare(QUERIES, long, pairs=[(1, 0)])
    assert teacher.scores([1], [0]) != cut.scores([1], [0])


def test_the_cache_is_read_and_no_entry_serves_another_input(cross_folder, tmp_path, monkeypatch):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(cross_folder, folder)

    def entries(queries=QUERIES, documents=DOCUMENTS, length=LENGTH, pairs=PAIRS) -> int:
        teachers.CrossTeacher(str(folder), length).prepare(queries, documents, cache, pairs=pairs)
        return len(list(cache.glob("cross-*.npy")))

    assert entries() == 1
    with monkeypatch.context() as patch:
        patch.setattr(cross, "_open", lambda *a: pytest.fail("should be read from the cache"))
        assert entries() == 1
        assert entries(pairs=PAIRS[::-1]) == 1, "the order of pairs decides nothing"
    assert entries(pairs=PAIRS[:2]) == 2
    assert entries(length=8) == 3
    assert entries(queries=QUERIES[::-1]) == 4
    assert entries(documents=[*DOCUMENTS[:4], "other"]) == 5
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert entries() == 6


def test_pairs_are_needed(cross_folder):
    with pytest.raises(ValueError, match="pass pairs=training_pairs"):
        teachers.CrossTeacher(str(cross_folder), LENGTH).prepare(QUERIES, DOCUMENTS)


def test_progress_counts_up_to_the_number_of_texts(cross_folder):
    seen = []
    teachers.CrossTeacher(str(cross_folder), LENGTH).prepare(
        QUERIES, DOCUMENTS, progress=seen.append, pairs=PAIRS
    )
    assert seen[-1] == len(QUERIES) + len(DOCUMENTS) and seen == sorted(seen)


def test_classifiers_and_backbones_are_refused(tiny_backbone, cross_folder, splade, tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny_backbone), num_labels=3, device="cpu").save(str(tmp_path / "nli"))
    with pytest.raises(ValueError, match="gives 3 labels per pair"):
        teachers.CrossTeacher(str(tmp_path / "nli"), LENGTH)
    CrossEncoder(str(tiny_backbone), num_labels=2, device="cpu").save(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="gives 2 labels per pair"):
        teachers.CrossTeacher(str(tmp_path / "two"), LENGTH)
    with pytest.raises(ValueError, match="masked LM, not a cross-encoder"):
        teachers.CrossTeacher(str(tiny_backbone), LENGTH)
    with pytest.raises(ValueError, match="SparseEncoder, not a cross-encoder.*sparse teacher"):
        teachers.CrossTeacher(str(splade), LENGTH)
    shutil.copytree(cross_folder, tmp_path / "headless")
    shutil.copy(tiny_backbone / "model.safetensors", tmp_path / "headless")
    with pytest.raises(ValueError, match="lacks weights of its head.*classifier"):
        teachers.CrossTeacher(str(tmp_path / "headless"), LENGTH)
