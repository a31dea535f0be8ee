import pytest

from nblib.files import read_json, write_json
from nblib.run.layers import BadRequest
from nblib.run.record import block, record, replace_block
from nblib.speed.rows import row

ROW = {"dataset": "d", "n_docs": 1200, "n_queries": 30, "mrr_at_10": 0.4, "recall_at_100": 0.9}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outputs" / "quick"
    facts = {
        "status": "ok",
        "wall_s": 75.0,
        "peak_gib": 1.25,
        "params": {"max_length": 64},
        "device": "2 cores",
    }
    write_json(folder / "01_data_prep" / "manifest.json", facts | {"key": "abc"})
    write_json(folder / "05_beir_eval" / "manifest.json", facts)
    rows = [
        ROW | {"system": "bm25", "ndcg_at_10": 0.5, "flops": None, "d_nnz": 41.4},
        ROW
        | {
            "system": "finetuned",
            "ndcg_at_10": 0.6,
            "flops": 1.234,
            "d_nnz": 95.0,
            "p_holm_vs_bm25-tokens": 1e-4,
        },
    ]
    write_json(folder / "05_beir_eval" / "metrics.json", rows)
    (folder / "05_beir_eval" / "figures").mkdir()
    (folder / "05_beir_eval" / "figures" / "a.png").write_bytes(b"png")
    (folder / "05_beir_eval" / "executed.ipynb").write_text("{}")
    return folder


def test_record_copies_figures_and_writes_the_tables(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- quick -->\nold\n<!-- /quick -->\nbetween\n"
        "<!-- quick notebooks -->\nold\n<!-- /quick notebooks -->\nafter\n"
    )
    cell = {"cell_type": "markdown", "source": ["# 01 · Data\n", "\n", "Make data.\n", "\n", "More.\n"]}
    write_json(tmp_path / "notebooks" / "01_data_prep.ipynb", {"cells": [cell]})
    kept = record(folder, "quick", tmp_path / "reference", readme)
    files = {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()}
    names = {"metrics.json", "run.json", "a.png"}
    assert files == {"01_data_prep/run.json"} | {f"05_beir_eval/{name}" for name in names}, "no notebooks"
    assert read_json(kept / "01_data_prep" / "run.json")["wall_s"] == 75.0
    text = readme.read_text()
    assert text.startswith("before\n<!-- quick -->\n") and text.endswith("<!-- /quick notebooks -->\nafter\n")
    assert "old" not in text and "| finetuned | 0.600 | 0.400 | 0.900 | 1.23 | 95 | < 0.001 |" in text
    assert "1,200 documents, 30 queries, documents cut at 64 tokens" in text
    assert "| [01_data_prep](notebooks/01_data_prep.ipynb) | Make data. | 1:15 | 1.2 GiB |" in text
    assert "\nbetween\n" in text and "All steps: 2:30 on 2 cores." in text
    assert record(folder, "quick", tmp_path / "reference", readme) and readme.read_text() == text


def test_several_data_sets_have_one_table_and_their_flops(folder, tmp_path):
    rows = read_json(folder / "05_beir_eval" / "metrics.json")
    more = [row | {"dataset": "e", "flops": row["flops"] and 2.0} for row in rows]
    write_json(folder / "05_beir_eval" / "metrics.json", rows + more)
    table = folder / "05_beir_eval" / "figures" / "table_ndcg.md"
    table.write_text("| data set | bm25 |\n")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- quick -->\n<!-- /quick -->\n")
    kept = record(folder, "quick", tmp_path / "reference", readme)
    assert readme.read_text().splitlines() == [
        "<!-- quick -->",
        "| data set | bm25 |",
        "",
        "| FLOPS | finetuned |",
        "| --- | --- |",
        "| d | 1.23 |",
        "| e | 2.00 |",
        "| mean | 1.62 |",
        "<!-- /quick -->",
    ]
    assert (kept / "05_beir_eval" / "table_ndcg.md").exists()


def test_unfinished_runs_are_refused(folder, tmp_path):
    write_json(folder / "02_idf" / "manifest.json", {"status": "failed"})
    with pytest.raises(BadRequest, match="02_idf"):
        record(folder, "quick", tmp_path / "reference", tmp_path / "README.md")
    with pytest.raises(BadRequest, match="run the profile first"):
        record(tmp_path / "nothing", "quick", tmp_path / "reference", tmp_path / "README.md")


def test_other_blocks_stay():
    assert replace_block("<!-- a -->\nx\n<!-- /a -->", "b", "y\n") == "<!-- a -->\nx\n<!-- /a -->"


def test_the_tables_of_a_cluster_have_a_block_of_their_own(folder, tmp_path):
    shown = folder / "07_opensearch" / "figures"
    shown.mkdir(parents=True)
    for name in ("parity", "ndcg", "load"):
        (shown / f"table_{name}.md").write_text(f"| {name} |\n")
    manifest = {"status": "ok", "wall_s": 1.0, "peak_gib": 1.0, "params": {}}
    write_json(folder / "07_opensearch" / "manifest.json", manifest)
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- quick -->\n<!-- /quick -->\n<!-- quick cluster -->\nold\n<!-- /quick cluster -->\n"
    )
    record(folder, "quick", tmp_path / "reference", readme)
    text = readme.read_text()
    assert "<!-- quick cluster -->\n| parity |\n\n| ndcg |\n\n| load |\n<!-- /quick cluster -->" in text
    assert "| finetuned |" in text.partition("<!-- quick cluster -->")[0], "05's table stays"


def test_the_tables_of_a_sweep_stand_for_its_profile(tmp_path):
    shown = tmp_path / "13_ablation" / "figures"
    shown.mkdir(parents=True)
    (shown / "table_ablation.md").write_text("| variant |\n| --- |\n| full |\n")
    assert block(tmp_path, {"01_data_prep": {}, "13_ablation": {}}) == "| variant |\n| --- |\n| full |\n"


def test_search_has_a_table_of_its_own(tmp_path):
    def found(name, regime, ours, peer, **more):
        return row(f"search_{name}", regime, "", ours, peer, name, "ms a query", less_is_better=True, **more)

    idf = row("idf", "passages", "", 2.0, 1.0, "peer", "documents/s", less_is_better=False)
    sides = [
        found("bm25s", "a, 5 documents, k=5", 1.0, 2.0),
        found("bm25s", "a, 5 documents, k=5, two-phase", 0.5, 2.0, ours_recall_at_10=0.9),
        found("bm25s", "a, 5 documents, k=50", 7.0, 7.0),
        found("sentence_transformers", "a, 5 documents, k=5", 1.0, 1500.0),
        found("sentence_transformers", "a, 5 documents, k=5, 9 queries in a call", 1.0, 15.0),
        found("seismic", "a, 5 documents, k=5", 1.0, 0.5, peer_recall_at_10=0.75),
    ]
    facts = dict.fromkeys(("build_seconds", "build_peak_gib", "build_peak_gib_tenth", "ms"), 1.0)
    facts |= dict.fromkeys(("ms_two_phase", "ms_marco_build_minutes", "ms_marco_gib", "ms_marco_ms"), 2.0)
    large = found("large", "9 documents on disk", 1.0, None, **facts)
    write_json(tmp_path / "12_speed" / "metrics.json", [idf, *sides, large])
    speed, search, words = block(tmp_path, {"12_speed": {}}).split("\n\n")
    assert speed.splitlines()[2:] == ["| idf | passages | 2 | 1 | documents/s | 2 |  |  |"]
    assert search.splitlines()[2:] == [
        "| a, 5 documents | 5 | 1 | 2 | 2.00 | 0.5 | 4.00 | 0.900 | 1,500 |  | 0.50 | 0.750 |"
    ]
    assert words.startswith("9 documents on disk: built in 1 s") and words.endswith("2.0 ms a query.\n")
