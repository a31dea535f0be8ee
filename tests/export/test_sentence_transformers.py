import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from nblib.bags import query_matrix
from nblib.export.sentence_transformers import MUTED_BIAS, export_sentence_transformers
from nblib.export.verify import verify_sentence_transformers
from nblib.model.encoder import NeuralSparseEncoder


def test_reloaded_in_a_fresh_process_it_equals_ours(tiny):
    rows = verify_sentence_transformers(tiny.folder, tiny.encoder, tiny.idf, tiny.texts, tiny.queries)
    assert {(r["check"], r["side"], r["batch"]) for r in rows} == {
        *(("sentence_transformers", s, b) for s in ("document", "query", "score") for b in (1, 8)),
        ("max_seq_length", "both", 1),
        ("masked_lm", "document", 1),
    }
    assert all(r["ok"] for r in rows), rows


def test_special_tokens_are_silent_on_both_sides(tiny):
    plain = tiny.encoder.decoder_bias()[tiny.encoder.special_ids]
    assert (plain > 0).all(), "the encoder's own bias must stay as it was"
    model = SparseEncoder(str(tiny.folder), device="cpu")
    d_reps = model.encode_document(tiny.texts, convert_to_sparse_tensor=False)
    q_reps = model.encode_query(tiny.queries, convert_to_sparse_tensor=False)
    assert (d_reps > 0).any() and (q_reps > 0).any()
    assert (d_reps[:, tiny.encoder.special_ids] == 0).all()
    assert (q_reps[:, tiny.encoder.special_ids] == 0).all()


def test_a_repeated_query_token_counts_once(english):
    model = SparseEncoder(str(english.folder), device="cpu")
    once, twice = model.encode_query(["a", "a a a"], convert_to_sparse_tensor=False)
    assert torch.equal(once, twice)


def test_the_root_holds_the_weights_once_for_every_loader(english):
    assert [p.parent for p in english.folder.rglob("model.safetensors") if p.stat().st_size > 50_000] == [
        english.folder
    ]
    mlm = AutoModelForMaskedLM.from_pretrained(english.folder)
    assert mlm.get_output_embeddings().weight is mlm.get_input_embeddings().weight
    assert (mlm.get_output_embeddings().bias[english.encoder.special_ids] == MUTED_BIAS).all()
    tokenizer = AutoTokenizer.from_pretrained(english.folder)
    assert tokenizer.model_max_length == english.encoder.max_length
    ours = NeuralSparseEncoder.load(english.folder).encode_documents(english.texts)
    assert abs(ours - english.encoder.encode_documents(english.texts)).max() == 0


def test_saving_the_loaded_model_again_keeps_it(english, tmp_path):
    model = SparseEncoder(str(english.folder), device="cpu")
    model.save_pretrained(str(tmp_path / "again"))
    again = SparseEncoder(str(tmp_path / "again"), device="cpu")
    options = {"convert_to_sparse_tensor": False}
    assert torch.equal(
        model.encode_document(english.texts, **options), again.encode_document(english.texts, **options)
    )


def test_an_earlier_cut_of_the_tokenizer_does_not_leak(english, tmp_path):
    english.encoder.tokenizer(english.texts, truncation=True, max_length=4, padding=True)
    folder = export_sentence_transformers(english.encoder, english.idf, tmp_path / "st", max_length=20)
    model = SparseEncoder(str(folder), device="cpu")
    own = NeuralSparseEncoder.load(folder, 20).encode_documents([long := " ".join(english.texts)])
    np.testing.assert_allclose(
        model.encode_document([long], convert_to_sparse_tensor=False)[0].numpy(), own.toarray()[0], atol=1e-5
    )
    content = query_matrix([long], english.encoder.tokenizer, english.idf).toarray()[0]
    np.testing.assert_array_equal(
        model.encode_query([long], convert_to_sparse_tensor=False)[0].numpy(), content
    )


def test_rows_of_padding_in_the_embeddings_are_cut(english, tmp_path):
    with english.encoder.plain_mlm() as mlm:
        mlm.save_pretrained(tmp_path / "padded")
    english.encoder.tokenizer.save_pretrained(tmp_path / "padded")
    mlm = AutoModelForMaskedLM.from_pretrained(tmp_path / "padded")
    mlm.resize_token_embeddings(english.encoder.vocab_size + 7)
    mlm.get_output_embeddings().bias.data[-7:] = 9.0  # would be the strongest terms of all
    mlm.save_pretrained(tmp_path / "padded")
    encoder = NeuralSparseEncoder(str(tmp_path / "padded"), english.encoder.max_length)
    folder = export_sentence_transformers(encoder, english.idf, tmp_path / "st")
    reps = SparseEncoder(str(folder), device="cpu").encode_document(
        english.texts, convert_to_sparse_tensor=False
    )
    np.testing.assert_allclose(
        reps.numpy(), english.encoder.encode_documents(english.texts).toarray(), atol=1e-5
    )


def test_bad_input_is_refused_and_leaves_the_old_export(english, tmp_path):
    folder = tmp_path / "st"
    folder.mkdir()
    (folder / "keep").touch()
    special = english.idf.copy()
    special[english.encoder.special_ids[0]] = 1.0
    for idf, message in (
        (english.idf[:-1], "run 02_idf"),
        (special, "0 for special"),
        (english.idf * np.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            export_sentence_transformers(english.encoder, idf, folder)
    with pytest.raises(ValueError, match="want 3 to 512"):
        export_sentence_transformers(english.encoder, english.idf, folder, max_length=513)
    assert [p.name for p in tmp_path.rglob("*")] == ["st", "keep"]
