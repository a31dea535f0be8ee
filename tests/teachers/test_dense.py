import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from nblib import teachers
from nblib.backbones import EMBEDDED
from nblib.teachers import dense

from .conftest import DOCUMENTS, LENGTH, QUERIES

ROWS = np.array([1, 0]), np.array([2, 1, 0])


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_scores_are_those_of_sentence_transformers(dense_folder, tmp_path, similarity):
    from sentence_transformers import SentenceTransformer

    folder = dense_folder(similarity)
    teacher = teachers.DenseTeacher(str(folder), LENGTH)
    teacher.prepare(QUERIES, DOCUMENTS, tmp_path)
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = LENGTH
    want = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    got = teacher.scores(*ROWS)
    assert got.dtype == torch.float32
    assert torch.allclose(got, want[[1, 0]][:, [2, 1, 0]], atol=1e-4)
    if similarity == "dot":
        assert want.max() > 2  # else the test could not tell it from the cosine


def test_the_embedded_model_knows_what_it_reads(tmp_path):
    teacher = teachers.DenseTeacher(EMBEDDED, max_length=64)
    teacher.prepare(QUERIES, DOCUMENTS, tmp_path)
    assert teacher.scores(np.arange(3), np.arange(5)).argmax(dim=1).tolist() == [0, 1, 2]
    model = teachers.load_dense(EMBEDDED, 64)
    want = model.similarity(model.encode(QUERIES), model.encode(DOCUMENTS))
    assert torch.allclose(teacher.scores(*ROWS), want[[1, 0]][:, [2, 1, 0]], atol=1e-5)


def test_the_cache_is_mapped_and_spares_the_model(dense_folder, tmp_path, monkeypatch):
    name = str(dense_folder("cosine"))
    first = teachers.dense_embeddings(name, DOCUMENTS, LENGTH, "document", tmp_path)
    monkeypatch.setattr(dense, "_open", lambda *a: pytest.fail("should be read from the cache"))
    again = teachers.dense_embeddings(name, DOCUMENTS, LENGTH, "document", tmp_path)
    assert isinstance(again, np.memmap) and np.array_equal(first, again)
    assert np.linalg.norm(again, axis=1) == pytest.approx(np.ones(len(DOCUMENTS)), abs=1e-5)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"], "no chunks are left"


def test_a_process_gets_the_place_of_the_embeddings(dense_folder, tmp_path):
    teacher = teachers.DenseTeacher(str(dense_folder("cosine")), LENGTH)
    teacher.prepare(QUERIES, DOCUMENTS * 50, tmp_path)
    packed = pickle.dumps(teacher)
    assert len(packed) < 2000 < teacher.d_reps.nbytes
    assert torch.equal(pickle.loads(packed).scores(*ROWS), teacher.scores(*ROWS))


def test_no_entry_serves_another_input(dense_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(dense_folder("cosine"), folder)
    cache = tmp_path / "cache"

    def entries(texts=DOCUMENTS, length=LENGTH, side="document") -> int:
        teachers.dense_embeddings(str(folder), texts, length, side, cache)
        return len(list(cache.glob("dense-*.npy")))

    assert [entries(), entries()] == [1, 1]
    assert entries(length=8) == 2
    assert entries(side="query") == 3
    assert entries(texts=DOCUMENTS[:2]) == 4
    assert entries(texts=DOCUMENTS[::-1]) == 5
    assert entries(texts=[DOCUMENTS[0] + " ", *DOCUMENTS[1:]]) == 6
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert entries() == 7
    config = folder / "config_sentence_transformers.json"
    settings = json.loads(config.read_text()) | {"prompts": {"query": "", "document": "text: "}}
    config.write_text(json.dumps(settings))
    assert entries() == 8


def test_the_key_of_a_hub_model_is_its_commit(dense_folder, tmp_path, monkeypatch):
    """A cache as the hub's own library leaves it; the same name moves on to another commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--some--model"
    (repo / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(dense_folder("cosine"), repo / "snapshots" / commit)
        (repo / "refs" / "main").write_text(commit)
        model = teachers.models.find_model("some/model", teachers.models.DENSE)
        assert model.identity == f"some/model@{commit}"
        teachers.dense_embeddings("some/model", DOCUMENTS, LENGTH, "document", tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_weights_that_lie_twice_are_fetched_once(tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    for file in ("model.safetensors", "3_Dense/model.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    files = ["pytorch_model.bin", "2_Dense/pytorch_model.bin", "3_Dense/pytorch_model.bin"]
    ignored = teachers.models.twice_there(tmp_path)
    assert list(filter_repo_objects(files, allow_patterns="*.bin", ignore_patterns=ignored)) == [files[1]]


@pytest.mark.parametrize("kind", ["splade", "ours", "masked_lm", "cross_folder"])
def test_another_kind_of_model_is_refused(kind, request):
    place = "cross-encoder" if kind == "cross_folder" else "sparse teacher"
    with pytest.raises(ValueError, match=f"not a dense teacher.*{place}"):
        teachers.DenseTeacher(str(request.getfixturevalue(kind)), LENGTH)


def test_an_unknown_model_is_refused_with_the_cure():
    with pytest.raises(OSError, match="HF_HOME.*no-such/model|no-such/model.*HF_HOME"):
        teachers.DenseTeacher("no-such/model", LENGTH)
    with pytest.raises(OSError, match="cannot load"):
        teachers.DenseTeacher("not a name", LENGTH)
    with pytest.raises(ValueError, match="neither modules.json nor config.json"):
        teachers.DenseTeacher("tests/data", LENGTH)


def test_a_static_model_has_no_length_to_cut(tmp_path, tiny_backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    static = StaticEmbedding(tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    assert teachers.dense_embeddings(str(tmp_path / "static"), QUERIES, 8, "query").shape == (3, 8)


def test_embeddings_that_are_not_finite_are_refused(tmp_path, dense_folder):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(dense_folder("cosine"), folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: torch.full_like(w, float("nan")) for name, w in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite"):
        teachers.dense_embeddings(str(folder), DOCUMENTS, LENGTH, "document")
