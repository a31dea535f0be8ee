import json
import shutil

import numpy as np
import pytest
import torch

from nblib import teachers
from nblib.backbones import EMBEDDED
from nblib.bags import query_matrix
from nblib.export.sentence_transformers import export_sentence_transformers
from nblib.idf import load_idf
from nblib.model.encoder import NeuralSparseEncoder
from nblib.teachers import sparse

from .conftest import DOCUMENTS, LENGTH, QUERIES

ALL = np.arange(len(QUERIES)), np.arange(len(DOCUMENTS))


def prepared(folder, cache=None, length=LENGTH, **options) -> teachers.SparseTeacher:
    teacher = teachers.SparseTeacher(str(folder), length, **options)
    teacher.prepare(QUERIES, DOCUMENTS, cache)
    return teacher


@pytest.fixture(scope="session")
def our_scores(ours) -> torch.Tensor:
    """What the encoder and the weights of `ours` give, without any teacher."""
    encoder = NeuralSparseEncoder.load(ours)
    q_reps = query_matrix(QUERIES, encoder.tokenizer, load_idf(ours.parent / "idf.json", encoder.tokenizer))
    scores = torch.from_numpy((q_reps @ encoder.encode_documents(DOCUMENTS).T).toarray())
    assert scores.unique().numel() > 8, "scores too much alike to compare anything by them"
    return scores


def test_a_sparse_encoder_scores_as_in_its_library(splade, tmp_path):
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(splade), device="cpu")
    model.max_seq_length = LENGTH
    want = model.similarity(model.encode_query(QUERIES), model.encode_document(DOCUMENTS))
    teacher = prepared(splade, tmp_path)
    got = teacher.scores(np.array([2, 0]), np.array([4, 1, 1]))
    assert got.dtype == torch.float32
    assert torch.allclose(got, want[[2, 0]][:, [4, 1, 1]], rtol=1e-4, atol=1e-4)
    assert want.std() > 1


def test_the_routes_of_a_router_are_told_apart(ours, our_scores, tmp_path):
    encoder = NeuralSparseEncoder.load(ours)
    idf = load_idf(ours.parent / "idf.json", encoder.tokenizer)
    folder = export_sentence_transformers(encoder, idf, tmp_path / "model", LENGTH)
    (folder / "sparse_config.json").unlink()  # else it is opened as one of ours
    teacher = prepared(folder)
    assert teacher.model.kind == teachers.models.SPARSE
    assert torch.allclose(teacher.scores(*ALL), our_scores, rtol=1e-4, atol=1e-4)


def test_one_of_ours(ours, our_scores, tmp_path):
    beside = prepared(ours).scores(*ALL)
    assert torch.allclose(beside, our_scores, rtol=1e-4, atol=1e-4)
    shutil.copytree(ours, tmp_path / "alone")
    shutil.copy(ours.parent / "idf.json", tmp_path / "alone")
    assert torch.equal(prepared(tmp_path / "alone").scores(*ALL), beside)
    (tmp_path / "alone" / "idf.json").rename(tmp_path / "weights.json")
    with pytest.raises(ValueError, match="no idf.json.*02_idf"):
        prepared(tmp_path / "alone")
    given = prepared(tmp_path / "alone", idf_path=tmp_path / "weights.json")
    assert torch.equal(given.scores(*ALL), beside)
    with pytest.raises(FileNotFoundError, match="none.json"):
        prepared(ours, idf_path=tmp_path / "none.json")


def test_one_of_ours_pools_and_asks_as_its_config_says(ours, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ours, folder)
    config = json.loads((folder / "sparse_config.json").read_text())
    config["pooling"] |= {"activation": "log1p_relu"}
    (folder / "sparse_config.json").write_text(json.dumps(config | {"query_side": "siamese"}))
    reps = NeuralSparseEncoder.load(ours, LENGTH).encode_documents(QUERIES + DOCUMENTS).log1p()
    want = torch.from_numpy((reps[:3] @ reps[3:].T).toarray())
    assert torch.allclose(prepared(folder).scores(*ALL), want, rtol=1e-4)


def test_an_opensearch_folder(masked_lm, ours, our_scores, tmp_path):
    """Weights as json and as text: queries are bags; without: a bi-encoder."""
    bi_encoder = prepared(masked_lm).scores(*ALL)
    reps = NeuralSparseEncoder(str(masked_lm), LENGTH).encode_documents(QUERIES + DOCUMENTS)
    assert torch.allclose(bi_encoder, torch.from_numpy((reps[:3] @ reps[3:].T).toarray()), rtol=1e-4)
    shutil.copytree(masked_lm, tmp_path / "doc")
    weights = json.loads((ours.parent / "idf.json").read_text())
    lines = "".join(f"{token}\t{weight}\n" for token, weight in weights.items())
    (tmp_path / "doc" / "query_token_weights.txt").write_text(lines)
    assert torch.allclose(prepared(tmp_path / "doc").scores(*ALL), our_scores, rtol=1e-4, atol=1e-4)
    (tmp_path / "doc" / "idf.json").write_text(json.dumps(dict.fromkeys(weights, 1.0)))
    assert not torch.allclose(prepared(tmp_path / "doc").scores(*ALL), our_scores), "idf.json comes first"
    (tmp_path / "doc" / "idf.json").unlink()
    (tmp_path / "doc" / "query_token_weights.txt").write_text("bread 2.0\n")
    with pytest.raises(ValueError, match="query_token_weights.txt: want a token, a tab"):
        prepared(tmp_path / "doc")


@pytest.mark.parametrize("layout", ["plain", "with idf", "SparseEncoder"])
def test_a_head_that_was_never_trained_is_refused(headless, tmp_path, layout):
    """peers.md 0.13: transformers would fill it with random numbers, and log it."""
    folder = tmp_path / "model"
    shutil.copytree(headless, folder)
    if layout == "with idf":
        (folder / "idf.json").write_text("{}")
    if layout == "SparseEncoder":
        from sentence_transformers import SparseEncoder

        SparseEncoder(str(folder), device="cpu").save(str(folder / "st"))
        shutil.copy(headless / "model.safetensors", folder / "st")
        folder = folder / "st"
    with pytest.raises(ValueError, match="lacks weights of its head.*cls.predictions.*random.*04_finetune"):
        teachers.SparseTeacher(str(folder), LENGTH)


def test_the_embedded_dense_model_is_no_sparse_teacher():
    with pytest.raises(ValueError, match="SentenceTransformer, not a sparse teacher.*dense teacher"):
        teachers.SparseTeacher(EMBEDDED, LENGTH)


def test_a_cross_encoder_is_no_sparse_teacher(cross_folder):
    with pytest.raises(ValueError, match="CrossEncoder, not a sparse teacher"):
        teachers.SparseTeacher(str(cross_folder), LENGTH)


def test_a_backbone_that_is_not_sparse_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="not trained to be sparse"):
        prepared(tiny_backbone)


def test_a_model_without_terms_is_refused(ours, tmp_path):
    encoder = NeuralSparseEncoder.load(ours)
    with torch.no_grad():
        encoder.decoder.bias.fill_(-1e4)
    encoder.save_pretrained(tmp_path / "dead")
    shutil.copy(ours.parent / "idf.json", tmp_path)
    with pytest.raises(ValueError, match="gives no document any term"):
        prepared(tmp_path / "dead")


def test_cosine_if_the_model_says_so(splade, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(splade, folder)
    file = folder / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    dot = prepared(splade)
    norms = [np.sqrt(reps.multiply(reps).sum(axis=1).A1) for reps in (dot.q_reps, dot.d_reps)]
    file.write_text(json.dumps(settings | {"similarity_fn_name": "cosine"}))
    want = dot.scores(*ALL) / torch.from_numpy(np.outer(*norms)).float()
    assert torch.allclose(prepared(folder).scores(*ALL), want, atol=1e-5)
    file.write_text(json.dumps(settings | {"similarity_fn_name": "euclidean"}))
    with pytest.raises(ValueError, match="compares by euclidean"):
        prepared(folder)


def test_the_cache_is_read_and_no_entry_serves_another_input(ours, tmp_path, monkeypatch):
    folder, cache = tmp_path / "m" / "final_model", tmp_path / "cache"
    shutil.copytree(ours, folder)
    shutil.copy(ours.parent / "idf.json", folder.parent)

    def entries(queries=QUERIES, documents=DOCUMENTS, length=LENGTH) -> int:
        teachers.SparseTeacher(str(folder), length).prepare(queries, documents, cache)
        return len(list(cache.glob("sparse-*.npz")))

    assert entries() == 2
    with monkeypatch.context() as patch:
        patch.setattr(sparse, "open_sparse", lambda *a: pytest.fail("should be read from the cache"))
        assert entries() == 2
        again = prepared(folder, cache).scores(*ALL)
    assert torch.equal(again, prepared(folder).scores(*ALL))
    assert entries(queries=QUERIES[::-1]) == 3
    assert entries(documents=DOCUMENTS[1:]) == 4
    assert entries(length=8) == 6
    weights = json.loads((folder.parent / "idf.json").read_text())
    (folder.parent / "idf.json").write_text(json.dumps(weights | {"bread": 9.0}))
    assert entries() == 8
    encoder = NeuralSparseEncoder.load(folder)
    with torch.no_grad():
        encoder.decoder.bias.add_(0.1)
    encoder.save_pretrained(folder)
    assert entries() == 10
