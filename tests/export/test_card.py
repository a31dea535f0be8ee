import json

import pytest
from huggingface_hub import ModelCard

from nblib.backbones import EMBEDDED
from nblib.export.card import CardFacts, card_text, collect_parameters, write_card

ROW = {
    "dataset": "api-docs-test",
    "split": "test",
    "system": "finetuned",
    "ndcg_at_10": 0.53456,
    "d_nnz": 95.25,
}
FACTS = CardFacts("api-docs-sparse", "1.0.0", "apache-2.0", 256)


def test_measured_numbers_are_shown_and_missing_ones_left_out():
    text = card_text(CardFacts("m", "1", "mit", 128, rows=[ROW | {"flops": None, "mrr_at_10": None}]))
    assert "| data set | split | system | nDCG@10 | terms per document |" in text
    assert "| api-docs-test | test | finetuned | 0.5346 | 95.25 |" in text
    assert "FLOPS |" not in text and "MRR" not in text and "nan" not in text.lower().split()
    assert "api-docs-test (test) only" in text


def test_a_row_without_a_value_has_an_empty_cell():
    text = card_text(CardFacts("m", "1", "mit", 128, rows=[ROW, ROW | {"system": "dense", "d_nnz": None}]))
    assert "| dense | 0.5346 |  |" in text


def test_nothing_known_invents_nothing():
    text = card_text(FACTS)
    for heading in ("## Measured", "## Data", "## Training parameters", "## Exports against"):
        assert heading not in text
    assert "Relevance was not measured" in text and "base_model" not in text and "language" not in text


def test_front_matter_is_what_the_hub_reads(tmp_path):
    parameters = {"03_pretrain": {"backbone": EMBEDDED, "bm25_analyzer": "english", "num_steps": 450}}
    path = write_card(tmp_path, CardFacts("m", "1", "apache-2.0", 256, rows=[ROW], parameters=parameters))
    data = ModelCard.load(path).data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", EMBEDDED, ["en"])
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "feature-extraction")
    assert data.metrics == ["ndcg_at_10"] and "sparse-encoder" in data.tags
    assert "| `num_steps` | 450 |" in path.read_text(encoding="utf-8")


def test_a_local_backbone_is_no_base_model(tmp_path):
    parameters = {"03_pretrain": {"backbone": str(tmp_path), "run_dir": "outputs/x", "seed": 13}}
    text = card_text(CardFacts("m", "1", "mit", 128, parameters=parameters))
    assert str(tmp_path) not in text and "outputs/x" not in text
    assert "| `seed` | 13 |" in text


def test_data_counts_of_each_set():
    one = {
        "splits": {"train": 21000},
        "n_docs": 24000,
        "tokens": {"p50": 61},
        "sha256": {"corpus.jsonl": "ab" * 32},
    }
    facts = CardFacts(
        "m", "1", "mit", 128, profile={"sets": {"api-docs": one}, "dropped": 3}, source="api-docs"
    )
    text = card_text(facts)
    assert "| api-docs | 24000 |  | train 21000 | 61 |  |" in text and "dropped rows: 3" in text
    assert "Docstrings" in text and "abab" not in text and "duplicate rows" not in text


def test_parameters_come_from_the_manifests(tmp_path):
    for step, params in (
        ("03", {"backbone": EMBEDDED}),
        ("04", {"pretrain_dir": str(tmp_path / "03"), "num_steps": 7}),
    ):
        (tmp_path / step).mkdir()
        (tmp_path / step / "manifest.json").write_text(json.dumps({"params": params}), encoding="utf-8")
    found = collect_parameters(tmp_path / "04")
    assert list(found) == ["03_pretrain", "04_finetune"]
    assert found["03_pretrain"]["backbone"] == EMBEDDED and found["04_finetune"]["num_steps"] == 7
    assert collect_parameters(tmp_path / "none") == {}


@pytest.mark.parametrize("prune_ratio", [0.0, 0.1])
def test_usage_names_the_files(prune_ratio):
    text = card_text(CardFacts("api-docs-sparse", "1.0.0", "apache-2.0", 256, prune_ratio=prune_ratio))
    assert "api-docs-sparse-doc-1.0.0.zip" in text and "SPARSE_TOKENIZE" in text
    assert ("at most 0.1 of" in text) == (prune_ratio > 0)
