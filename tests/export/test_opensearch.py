import hashlib
import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nblib.export.opensearch import export_opensearch, token_strings
from nblib.export.sentence_transformers import LONGEST_QUERY, export_sentence_transformers
from nblib.export.verify import row_diff, verify_opensearch, verify_sentence_transformers
from nblib.files import ROOT, read_json, sha256_file
from nblib.model.padding import pad


def test_reloaded_in_a_fresh_process_they_equal_ours(tiny):
    rows = verify_opensearch(tiny.zips, tiny.encoder, tiny.idf, tiny.texts, tiny.queries)
    expected = [("document", 1), ("document", 8), ("query", 1), ("score", 8)]
    assert [(r["side"], r["batch"]) for r in rows] == expected
    assert all(r["ok"] for r in rows), rows


def document_module(zips):
    with zipfile.ZipFile(zips["doc"]) as archive:
        return torch.jit.load(io.BytesIO(archive.read("tiny-doc-1.2.3.pt")))


@pytest.mark.parametrize("length", [3, 5, 9, 24, 64, 512])
@pytest.mark.parametrize("batch", [1, 8])
def test_any_length_and_batch(english, length, batch):
    """The trace saw 2 x 9; the model has 512 positions."""
    traced = document_module(english.zips)
    rng = np.random.default_rng(length)
    sizes = [length, *rng.integers(3, length + 1, batch - 1)]
    ids, mask = pad([rng.integers(5, english.encoder.vocab_size, n).tolist() for n in sizes], 0)
    with torch.inference_mode():
        found = traced({"input_ids": ids, "attention_mask": mask})["output"]
        torch.testing.assert_close(found, english.encoder(ids, mask), atol=1e-5, rtol=0)


def test_layout_and_configuration(english):
    for side, inner, length in (("doc", "tiny-doc-1.2.3.pt", 24), ("query", "idf.json", LONGEST_QUERY)):
        with zipfile.ZipFile(english.zips[side]) as archive:
            assert archive.namelist() == [inner, "tokenizer.json", "LICENSE"]  # at the root: no folder
            assert "Apache License" in archive.read("LICENSE").decode()
            cut = json.loads(archive.read("tokenizer.json"))["truncation"]
        assert cut == {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
        config = read_json(english.zips[f"{side}_config"])
        content = english.zips[side].read_bytes()
        assert config["model_content_size_in_bytes"] == len(content)
        assert config["model_content_hash_value"] == hashlib.sha256(content).hexdigest()
        assert config["function_name"] == {"doc": "SPARSE_ENCODING", "query": "SPARSE_TOKENIZE"}[side]
        assert (config["model_format"], config["version"]) == ("TORCH_SCRIPT", "1.2.3")


def test_queries_are_cut_where_training_cut_them(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.encoder, "query_max_length", 6)
    zips = export_opensearch(tiny.encoder, tiny.idf, tmp_path / "zips", "tiny", "1.0.0", 24)
    cuts = []
    for side in ("doc", "query"):
        with zipfile.ZipFile(zips[side]) as archive:
            cuts.append(json.loads(archive.read("tokenizer.json"))["truncation"]["max_length"])
    assert cuts == [24, 6]
    folder = export_sentence_transformers(tiny.encoder, tiny.idf, tmp_path / "st", 24)
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder), device="cpu")
    assert 0 < model.encode_query(" ".join(tiny.queries * 9)).coalesce().indices().shape[1] <= 6
    texts = (tiny.texts, tiny.queries, 24)
    rows = verify_opensearch(zips, tiny.encoder, tiny.idf, *texts)
    rows += verify_sentence_transformers(folder, tiny.encoder, tiny.idf, *texts)
    assert all(row["ok"] for row in rows), rows


def test_idf_names_every_token(tiny):
    with zipfile.ZipFile(tiny.zips["query"]) as archive:
        weights = json.loads(archive.read("idf.json"))
    assert set(weights) == set(tiny.encoder.tokenizer.get_vocab())  # WordPiece decodes to its own pieces
    assert weights["[CLS]"] == weights["[UNK]"] == 0
    for token, i in tiny.encoder.tokenizer.get_vocab().items():
        assert weights[token] == pytest.approx(tiny.idf[i], abs=1e-6)


def test_same_bytes_twice_and_no_path_of_this_machine(english, tmp_path):
    again = export_opensearch(english.encoder, english.idf, tmp_path, "tiny", "1.2.3")
    assert [sha256_file(again[k]) for k in again] == [sha256_file(english.zips[k]) for k in again]
    with (
        zipfile.ZipFile(again["doc"]) as outer,
        zipfile.ZipFile(io.BytesIO(outer.read("tiny-doc-1.2.3.pt"))) as pt,
    ):
        for name in pt.namelist():
            assert not any(p.encode() in pt.read(name) for p in (str(ROOT), sys.prefix, sys.base_prefix)), (
                name
            )


def test_prune_drops_the_small_weights(english, tmp_path):
    zips = export_opensearch(english.encoder, english.idf, tmp_path, "tiny", "1.2.3", prune_ratio=0.5)
    rows = verify_opensearch(
        zips, english.encoder, english.idf, english.texts, english.queries, prune_ratio=0.5
    )
    assert all(r["ok"] for r in rows), rows
    exact = english.encoder.encode_documents(english.texts)
    assert (exact.data < 0.5 * exact.max()).any(), "nothing to drop: the test would say nothing"
    ids, mask = pad(english.encoder.tokenize(english.texts), 0)
    with torch.inference_mode():
        reps = document_module(zips)({"input_ids": ids, "attention_mask": mask})["output"]
    for row in reps:
        assert row[row > 0].min() > 0.5 * row.max()


def test_a_changed_weight_is_noticed(english):
    idf = english.idf.copy()
    idf[english.encoder.tokenizer(english.queries[0])["input_ids"][1]] += 0.01
    rows = verify_opensearch(
        english.zips, english.encoder, idf, english.texts, english.queries, batch_sizes=[8]
    )
    assert {r["side"]: r["ok"] for r in rows} == {"document": True, "query": False, "score": False}


def test_row_diff_by_hand():
    exact = np.array([[1.0, 0.2, 0.6, 0.0]], dtype=np.float32)
    from scipy.sparse import csr_matrix

    assert row_diff([{0: 1.0, 2: 0.6}], csr_matrix(exact), prune_ratio=0.5) == 0
    assert row_diff([{0: 1.0, 2: 0.6}], csr_matrix(exact)) == pytest.approx(0.2)
    assert row_diff([{0: 1.0}], csr_matrix(exact), prune_ratio=0.5) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="0 rows came back for 1"):
        row_diff([], csr_matrix(exact))


def metaspace() -> Tokenizer:
    vocab = {"<unk>": 0, "▁서울": 1, "서울": 2, "▁": 3, "역": 4}
    core = Tokenizer(models.Unigram([(t, -1.0) for t in vocab], unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens(["<unk>"])
    return core


def test_sentencepiece_pieces_collide():
    with pytest.raises(ValueError, match="token_format='TOKEN_ID'") as error:
        token_strings(metaspace(), [0], 5)
    assert "'▁서울' (id 1), '서울' (id 2) -> '서울'" in str(error.value)
    assert "'▁' (id 3) -> ''" in str(error.value) and "WordPiece" in str(error.value)


def test_byte_level_pieces_collide():
    vocab = {"a": 0, "ì": 1, "í": 2}  # two lone bytes of Hangul: each decodes to U+FFFD
    core = Tokenizer(models.BPE(vocab, []))
    core.decoder = decoders.ByteLevel()
    with pytest.raises(ValueError, match="2 tokens do not decode one-to-one.*'ì'.*'í'"):
        token_strings(core, [], 3)


def test_a_special_token_must_be_marked():
    core = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, "a"))
    with pytest.raises(ValueError, match=r"\['\[PAD\]'\] must be added tokens"):
        token_strings(core, [0], 2)


def test_colliding_backbone_goes_by_id(english, tmp_path):
    encoder = english.encoder
    core = encoder.tokenizer.backend_tokenizer
    core.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.Fuse()])  # '##s' and 's' collide
    try:
        with pytest.raises(ValueError, match="do not decode one-to-one"):
            export_opensearch(encoder, english.idf, tmp_path, "tiny", "1.2.3")
        assert not list(tmp_path.iterdir())
        zips = export_opensearch(encoder, english.idf, tmp_path, "tiny", "1.2.3", token_format="TOKEN_ID")
        rows = verify_opensearch(zips, encoder, english.idf, english.texts, english.queries)
        assert [r["ok"] for r in rows] == [True, True]
        assert read_json(zips["query_ids"])["7"] == pytest.approx(english.idf[7], abs=1e-6)
    finally:
        core.decoder = decoders.WordPiece(prefix="##")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name 'a b'"),
        ({"version": "../1"}, "version"),
        ({"prune_ratio": 1.0}, "prune_ratio 1.0"),
    ],
)
def test_bad_arguments(english, tmp_path, change, message):
    arguments = {"name": "tiny", "version": "1.0.0"} | change
    with pytest.raises(ValueError, match=message):
        export_opensearch(english.encoder, english.idf, tmp_path, **arguments)


def test_embedded_weights(minilm, tmp_path):
    """The real vocabulary and depth, all the way through both exports."""
    idf = np.linspace(0.1, 9, minilm.vocab_size).astype(np.float32)
    idf[minilm.special_ids] = 0
    texts = ["Read a comma-separated file into a table.", "Short.", "The inverse of a matrix, if it has one."]
    queries = ["the mean [CLS] of a frame", "서울"]
    folder = export_sentence_transformers(minilm, idf, tmp_path / "st")
    rows = verify_sentence_transformers(folder, minilm, idf, texts, queries)
    zips = export_opensearch(minilm, idf, tmp_path, "minilm", "1.0.0")
    rows += verify_opensearch(zips, minilm, idf, texts, queries)
    assert len(rows) == 12 and all(r["ok"] for r in rows), rows
