"""Every system end to end on a few documents, the cache, missing models, and the data sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from nblib import systems
from nblib.backbones import load_tokenizer
from nblib.cost import COST
from nblib.encoded import cached
from nblib.experiment import load_eval_set, load_eval_sets
from nblib.files import at_root
from nblib.idf import load_idf
from nblib.model.encoder import NeuralSparseEncoder
from tests.steps import QUERIES, TEXTS, all_systems, run


def test_every_system_gives_a_full_result(trained, tmp_path):
    for system in all_systems(trained, tmp_path):
        result = run(system, TEXTS, QUERIES, k=5)
        assert result.index.shape == result.scores.shape == (3, 5)
        assert (np.diff(result.scores, axis=1) <= 0).all(), system.name
        # A rank's score is the inner product of the two reps.
        if system.name == "dense":
            full = result.q_reps @ result.d_reps.T
        else:
            full = (result.q_reps @ result.d_reps.to_csr().T).toarray()
        for i, row in enumerate(result.index):
            hits = row[row >= 0]
            assert result.scores[i, : len(hits)] == pytest.approx(full[i, hits], rel=1e-5)
        assert set(result.cost) <= set(COST)
        assert 0 < result.cost["query_ms_p50"] <= result.cost["query_ms_p99"]
        assert result.cost["encode_docs_per_s"] > 0
        assert ("flops" in result.cost) == (system.name != "dense")
        if system.name in ("bm25", "bm25-tokens", "dense"):
            assert result.index[:, 0].tolist() == [1, 2, 3], system.name


def test_idf_bag_scores_by_hand(trained, tmp_path):
    (system,) = all_systems(trained, tmp_path, ["idf-bag"])
    result = run(system, TEXTS, ["file table file"], k=5)
    tokenizer = load_tokenizer(trained["model_dir"] + "/artifacts/final_model")
    idf = load_idf(trained["idf_dir"] + "/artifacts/idf.json", tokenizer)
    words = {t: idf[i] for i in tokenizer("file table")["input_ids"] for t in [tokenizer.decode([i])]}
    both = sum(words.values())  # special tokens weigh 0; "file" counts once though the query says it twice
    assert result.scores[0, 0] == pytest.approx(both, rel=1e-6)
    assert result.index[0, 0] == 2  # the only document with both
    assert sorted(result.index[0][result.index[0] >= 0].tolist()) == [0, 2, 4]


def test_the_cut_hides_the_end_of_a_document(trained):
    tokenizer = load_tokenizer(trained["model_dir"] + "/artifacts/final_model")
    texts = ["table " * 30 + "figure", "figure"]
    for length, found in ((10, [1]), (64, [0, 1])):
        system = systems.bm25_tokens(tokenizer, length)
        index = run(system, texts, ["figure"], k=2).index[0]
        assert sorted(index[index >= 0].tolist()) == found


def test_documents_are_encoded_once(trained, tmp_path, capsys):
    (system,) = all_systems(trained, tmp_path, ["finetuned"])
    first = run(system, TEXTS, QUERIES, k=3)
    (file,) = tmp_path.glob("*.npz")
    stamp = file.stat().st_mtime_ns
    second = run(all_systems(trained, tmp_path, ["finetuned"])[0], TEXTS, QUERIES, k=3)
    assert file.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.index, second.index)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert second.cost["encode_docs_per_s"] == pytest.approx(first.cost["encode_docs_per_s"])

    run(system, TEXTS[:-1], QUERIES, k=3)  # another corpus: another file
    assert len(list(tmp_path.glob("*.npz"))) == 2

    file.write_bytes(file.read_bytes()[:100])  # a torn file is not trusted
    third = run(system, TEXTS, QUERIES, k=3)
    assert "encoding again" in capsys.readouterr().out
    np.testing.assert_array_equal(first.scores, third.scores)


def test_bf16_reps_are_near_and_kept_apart(trained, tmp_path):
    reps = [
        all_systems(trained, tmp_path, ["finetuned"], p)[0].index(TEXTS)[0].to_csr() for p in ("fp32", "bf16")
    ]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert 0 < abs(reps[0] - reps[1]).max() < 0.05 * reps[0].max()


def test_queries_are_cut_where_training_cut_them(trained, tmp_path):
    folder = Path(trained["model_dir"]) / "artifacts" / "final_model"
    idf = Path(trained["idf_dir"]) / "artifacts" / "idf.json"
    whole = systems.learned_sparse("x", folder, idf, 32, 2, tmp_path).index(TEXTS)[1](TEXTS[2:3])
    encoder = NeuralSparseEncoder.load(folder)
    encoder.query_max_length = 4  # [CLS], two tokens, [SEP]
    encoder.save_pretrained(tmp_path / "short")
    short = systems.learned_sparse("x", tmp_path / "short", idf, 32, 2, tmp_path)
    assert short.index(TEXTS)[1](TEXTS[2:3]).nnz == 2 < whole.nnz
    assert short.query_length == 4
    encoder.query_side = "siamese"
    encoder.save_pretrained(tmp_path / "siamese")
    encode = systems.learned_sparse("x", tmp_path / "siamese", idf, 32, 2, tmp_path).index(TEXTS)[1]
    want = encoder.encode_documents(TEXTS[2:3], max_length=4)
    assert abs(encode(TEXTS[2:3]) - want).max() < 1e-5


def test_cache_keys_differ_by_model_and_length(tmp_path):
    reps = np.ones((2, 3), dtype=np.float32)
    for version in (["a", "32"], ["b", "32"], ["a", "64"]):
        cached(tmp_path, version, ["x", "y"], lambda texts: reps)
    cached(tmp_path, ["a", "32"], ["xy", ""], lambda texts: reps)
    assert len(list(tmp_path.glob("*.npz"))) == 4
    held, _ = cached(tmp_path, ["a", "32"], ["x", "y"], lambda texts: pytest.fail("encoded again"))
    np.testing.assert_array_equal(held, reps)


def test_a_missing_model_names_the_step_before_anything_is_encoded(trained, tmp_path):
    folders = trained | {"pretrain_dir": str(tmp_path / "none")}
    with pytest.raises(FileNotFoundError, match="'pretrained' needs .*none.*run 03_pretrain first"):
        systems.check_inputs(["finetuned", "pretrained"], folders)
    assert set(systems.check_inputs(["finetuned", "idf-bag"], folders)) == {
        "idf_dir",
        "model_dir",
        "tokenizer",
    }
    with pytest.raises(FileNotFoundError, match="run 02_idf first"):
        systems.check_inputs(["idf-bag"], trained | {"idf_dir": str(tmp_path)})
    assert systems.check_inputs(["bm25"], folders) == {}


def test_the_tokenizer_comes_from_either_model(trained, tmp_path):
    only_03 = trained | {"model_dir": str(tmp_path / "none")}
    found = systems.check_inputs(["bm25-tokens"], only_03)["tokenizer"]
    assert found == at_root(trained["pretrain_dir"]) / "artifacts" / "final_model"


def test_folders_of_a_model_and_of_weights_may_be_given_themselves(trained, tmp_path):
    model = Path(trained["model_dir"]) / "artifacts" / "final_model"
    weights = Path(trained["idf_dir"]) / "artifacts" / "idf.json"
    for idf_dir in (weights, weights.parent):
        folders = trained | {"model_dir": str(model), "idf_dir": str(idf_dir)}
        found = systems.check_inputs(["finetuned"], folders)
        assert found == {"idf_dir": weights, "model_dir": model}


# --- data sets and tables


def small_set(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "T" if i == 0 else "", "text": t} for i, t in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    queries = [{"_id": f"q{i}", "text": t} for i, t in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(r) + "\n" for r in queries))
    lines = ["query-id\tcorpus-id\tscore", "q0\td1\t1", "q1\td2\t1", "q2\td3\t1", "q2\td0\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_set_is_found_by_name_or_by_path(tmp_path):
    small_set(tmp_path / "step" / "artifacts" / "tiny")
    by_name = load_eval_set("tiny", str(tmp_path / "step"), "test")
    by_path = load_eval_set(str(tmp_path / "step" / "artifacts" / "tiny"), "elsewhere", "test")
    assert by_name == by_path
    assert by_name.texts[0] == "T " + TEXTS[0] and by_name.texts[1:] == TEXTS[1:]
    assert by_name.query_ids == ["q0", "q1", "q2"] and by_name.queries == QUERIES
    with pytest.raises(FileNotFoundError, match="'tinny'.*it holds tiny"):
        load_eval_set("tinny", str(tmp_path / "step"), "test")
    with pytest.raises(FileNotFoundError, match="run 01_data_prep first"):
        load_eval_set("tiny", str(tmp_path / "empty"), "test")
    with pytest.raises(ValueError, match="no split 'dev'; it has: test"):
        load_eval_set("tiny", str(tmp_path / "step"), "dev")


def test_a_sample_of_queries_takes_its_judgements_along(tmp_path):
    folder = str(small_set(tmp_path / "tiny"))
    sample = load_eval_set(folder, "", "test", max_queries=2, seed=1)
    assert len(sample.query_ids) == 2 and list(sample.qrels) == sample.query_ids
    assert sample == load_eval_set(folder, "", "test", max_queries=2, seed=1)
    assert len(load_eval_set(folder, "", "test", max_queries=9).query_ids) == 3


def test_two_sets_of_one_name_are_refused(tmp_path):
    one, other = small_set(tmp_path / "a" / "tiny"), small_set(tmp_path / "b" / "tiny")
    with pytest.raises(ValueError, match="two data sets are called tiny"):
        load_eval_sets([str(one), str(other)], "", "test", 0, 1, "", tmp_path)
