"""A model by the wrong engine, or with parts of another, is refused in words before anything is encoded."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from nblib import systems
from nblib.backbones import EMBEDDED, embedded_folder, load_tokenizer, make_tiny_bert
from nblib.compatible import query_weights
from nblib.files import read_json, write_json
from nblib.idf import compute_idf_weights, load_idf
from nblib.model.encoder import NeuralSparseEncoder
from nblib.model.retriever import SparseRetriever
from tests.steps import TEXTS, all_systems


def model_of(trained):
    return Path(trained["model_dir"]) / "artifacts" / "final_model"


def idf_of(trained):
    return Path(trained["idf_dir"]) / "artifacts" / "idf.json"


def with_side(trained, folder, side, keep_weights=True):
    """Save the model as 04 does with this query side."""
    encoder = NeuralSparseEncoder.load(model_of(trained))
    encoder.query_side = side
    encoder.save_pretrained(folder)
    if keep_weights:
        idf = load_idf(idf_of(trained), encoder.tokenizer)
        SparseRetriever(encoder, idf, side).save_query_weights(folder / "idf.json")
    return folder


def test_a_sparse_model_is_refused_as_dense_teacher(trained, tmp_path):
    with pytest.raises(ValueError, match="not a dense teacher.*as 'finetuned', by model_dir"):
        systems.dense(str(model_of(trained)), 32, 2, tmp_path)


@pytest.mark.parametrize("system", ["finetuned", "pretrained"])
def test_a_dense_model_is_refused_as_sparse_system(trained, tmp_path, system):
    need = "model_dir" if system == "finetuned" else "pretrain_dir"
    folders = trained | {need: str(embedded_folder())}
    words = f"system '{system}': .* is a SentenceTransformer, not a model of 03 or 04.*dense_teacher"
    with pytest.raises(ValueError, match=words):
        all_systems(folders, tmp_path, [system])


def test_a_plain_masked_lm_is_refused(trained, tmp_path):
    bert = make_tiny_bert(tmp_path / "bert", TEXTS, vocab_size=200)
    with pytest.raises(ValueError, match="is a masked LM, .*run 03_pretrain with it as backbone"):
        all_systems(trained | {"model_dir": str(bert)}, tmp_path, ["finetuned"])


def test_weights_of_a_larger_vocabulary_are_refused(trained, tmp_path):
    """More than half of this tokenizer's tokens are in it, so the count alone would let it pass."""
    weights = read_json(idf_of(trained)) | {f"foreign{i}": 1.0 for i in range(3)}
    write_json(tmp_path / "idf.json", weights)
    with pytest.raises(ValueError, match="and 3 that it lacks, such as 'foreign0'; it was made for another"):
        all_systems(trained | {"idf_dir": str(tmp_path)}, tmp_path, ["idf-bag"])


def test_weights_of_as_many_but_other_tokens_are_refused(trained, tmp_path):
    weights = read_json(idf_of(trained))
    last, value = weights.popitem()
    write_json(tmp_path / "idf.json", weights | {"other": value})
    for system in ("idf-bag", "finetuned"):
        with pytest.raises(ValueError, match="'other'.*run 02_idf with the backbone's tokenizer"):
            all_systems(trained | {"idf_dir": str(tmp_path)}, tmp_path, [system])


def test_weights_of_fewer_tokens_take_the_default(trained, tmp_path):
    weights = read_json(idf_of(trained))
    last, _ = weights.popitem()
    write_json(tmp_path / "idf.json", weights)
    tokenizer = load_tokenizer(str(model_of(trained)))
    assert load_idf(tmp_path / "idf.json", tokenizer)[tokenizer.convert_tokens_to_ids(last)] == 1.0


def test_weights_of_another_real_tokenizer_are_refused(trained, tmp_path):
    compute_idf_weights(TEXTS, load_tokenizer(EMBEDDED), tmp_path / "idf.json")
    with pytest.raises(ValueError, match="it was made for another one"):
        all_systems(trained | {"idf_dir": str(tmp_path)}, tmp_path, ["finetuned"])


@pytest.mark.parametrize("side", ["binary", "learned-idf"])
def test_a_model_without_the_query_weights_it_was_trained_with_is_refused(trained, tmp_path, side):
    whole = with_side(trained, tmp_path / "whole", side)
    systems.learned_sparse("finetuned", whole, idf_of(trained), 32, 2, tmp_path)
    bare = with_side(trained, tmp_path / "bare", side, keep_weights=False)
    with pytest.raises(ValueError, match=f"query_side {side}, but the idf.json that 04 wrote there is gone"):
        systems.learned_sparse("finetuned", bare, idf_of(trained), 32, 2, tmp_path)


def test_idf_in_the_folder_of_a_binary_model_is_refused(trained, tmp_path):
    folder = with_side(trained, tmp_path / "binary", "binary")
    shutil.copyfile(idf_of(trained), folder / "idf.json")
    with pytest.raises(ValueError, match="trained with binary queries.*weights other than 1"):
        systems.learned_sparse("finetuned", folder, idf_of(trained), 32, 2, tmp_path)


def test_a_siamese_model_reads_no_weights(trained, tmp_path):
    folder = with_side(trained, tmp_path / "siamese", "siamese", keep_weights=False)
    system = systems.learned_sparse("finetuned", folder, tmp_path / "no idf.json", 32, 2, tmp_path)
    d_reps, encode, _ = system.index(TEXTS)
    np.testing.assert_allclose(encode(TEXTS).toarray(), d_reps.to_csr().toarray(), atol=1e-5)


def test_models_of_two_tokenizers_are_not_compared(trained, tmp_path):
    bert = make_tiny_bert(tmp_path / "bert", [text.upper() for text in reversed(TEXTS)], vocab_size=60)
    NeuralSparseEncoder(str(bert), max_length=32).save_pretrained(tmp_path / "other")
    folders = trained | {"model_dir": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="pretrain_dir .* and model_dir .*different tokenizers"):
        all_systems(folders, tmp_path, ["pretrained", "finetuned"])
    with pytest.raises(ValueError, match="different tokenizers"):
        all_systems(folders, tmp_path, ["bm25-tokens", "pretrained"])


def test_the_same_vocabulary_cut_by_other_rules_is_another_tokenizer(trained, tmp_path):
    shutil.copytree(model_of(trained), tmp_path / "cased")
    rules = read_json(tmp_path / "cased" / "tokenizer.json")
    rules["normalizer"]["lowercase"] = False
    write_json(tmp_path / "cased" / "tokenizer.json", rules)
    with pytest.raises(ValueError, match="different tokenizers"):
        all_systems(trained | {"model_dir": str(tmp_path / "cased")}, tmp_path, ["pretrained", "finetuned"])


def test_another_idf_than_in_training_is_said_and_taken(trained, tmp_path, capsys):
    """Only a model that notes its weights can say so; a learned or binary one brings its own."""
    tokenizer, model = load_tokenizer(str(model_of(trained))), model_of(trained)
    query_weights(idf_of(trained), model, tokenizer)
    assert capsys.readouterr().out == ""
    write_json(other := tmp_path / "idf.json", {t: w + 1.0 for t, w in read_json(idf_of(trained)).items()})
    idf = query_weights(other, model, tokenizer)
    assert f"NOTE {model} was trained with other IDF than {other}" in capsys.readouterr().out
    np.testing.assert_array_equal(idf, load_idf(other, tokenizer))
    query_weights(other, with_side(trained, tmp_path / "unnoted", "idf", False), tokenizer)
    query_weights(other, with_side(trained, tmp_path / "learned", "learned-idf"), tokenizer)
    assert capsys.readouterr().out == ""
