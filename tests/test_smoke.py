"""The chain 01 to 06 by papermill on hand-written documents, English and Korean."""

import csv
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from opensearchpy.exceptions import NotFoundError
from transformers import AutoModelForMaskedLM

from nblib.backbones import make_tiny_bert
from nblib.data.formats import document_text, read_beir
from nblib.files import ROOT, read_json
from nblib.opensearch.deploy import versions
from tests.conftest import KOREAN

pytestmark = pytest.mark.notebook
STEPS = ["01_data_prep", "02_idf", "03_pretrain", "04_finetune", "05_beir_eval", "06_export"]


def run(outputs: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nblib", "run", "--profile", "smoke", "--outputs", str(outputs), *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)


def check_chain(folder: Path, dataset: str, systems: set[str]) -> dict[str, dict]:
    """Assert on what every finished chain must have left; return the evaluation by system."""
    for step in STEPS:
        manifest = read_json(folder / step / "manifest.json")
        assert manifest["status"] == "ok" and manifest["artifacts"], step
        assert str(ROOT) not in (folder / step / "manifest.json").read_text(), "machine paths in records"
        assert (folder / step / "report.html").stat().st_size > 10_000
    idf = read_json(folder / "02_idf" / "artifacts" / "idf.json")
    assert idf["[CLS]"] == 0.0 and len(set(idf.values())) > 10
    training = read_json(folder / "04_finetune" / "metrics.json")[0]
    assert training["steps"] == 4 and training["d_nnz"] > 0 and training["kl"] >= 0
    rows = {row["system"]: row for row in read_json(folder / "05_beir_eval" / "metrics.json")}
    assert rows.keys() == systems
    for row in rows.values():
        assert 0 < row["ndcg_at_10"] <= 1 and row["dataset"] == dataset and row["n_queries"] > 5
    assert rows["finetuned"]["flops"] > 0 and rows["finetuned"]["d_nnz"] > 0
    checks = read_json(folder / "06_export" / "metrics.json")
    assert {(row["check"], row["batch"]) for row in checks} >= {
        (check, batch) for check in ("sentence_transformers", "opensearch") for batch in (1, 8)
    }
    assert all(row["ok"] and row["max_abs_diff"] <= row["tolerance"] <= 1e-3 for row in checks)
    assert (folder / "index.html").exists()
    return rows


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("english")
    done = run(outputs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return outputs / "smoke", done.stdout


def test_english_chain(english):
    folder, printed = english
    systems = {"bm25", "bm25-tokens", "dense", "idf-bag", "pretrained", "finetuned"}
    rows = check_chain(folder, "english", systems)
    assert rows["bm25"]["ndcg_at_10"] > 0.3, "real text, so words must find it"
    assert "index.html" in printed and "finetuned" in printed
    with open(folder / "05_beir_eval" / "figures" / "table_relevance.csv", newline="") as handle:
        assert len(list(csv.reader(handle))) == 7


def test_exports_load_again(english):
    from sentence_transformers import SparseEncoder

    artifacts = english[0] / "06_export" / "artifacts"
    model = SparseEncoder(str(artifacts / "sentence_transformers"))
    scores = model.similarity(model.encode_query(["bread"]), model.encode_document(["bake bread", "a star"]))
    assert scores.shape == (1, 2)
    (folder,) = {p.parent for p in (artifacts / "sentence_transformers").rglob("config.json") if _is_bert(p)}
    assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == 30522
    for bundle in sorted((artifacts / "opensearch").glob("*.zip")):
        with zipfile.ZipFile(bundle) as opened:
            assert "tokenizer.json" in opened.namelist() and opened.testzip() is None
            for name in [n for n in opened.namelist() if n.endswith(".pt")]:
                torch.jit.load(opened.open(name))


def _is_bert(config: Path) -> bool:
    return "architectures" in config.read_text()


def test_second_call_skips_everything(english):
    folder, _ = english
    stamps = {step: (folder / step / "executed.ipynb").stat().st_mtime_ns for step in STEPS}
    done = run(folder.parent)
    assert done.returncode == 0
    assert stamps == {step: (folder / step / "executed.ipynb").stat().st_mtime_ns for step in STEPS}


def test_korean_chain_without_any_weights(tmp_path):
    texts = [document_text(doc) for doc in read_beir(KOREAN).corpus.values()]
    backbone = make_tiny_bert(tmp_path / "backbone", texts, vocab_size=800)
    more = {
        "source": "tests/data/korean",
        "dataset": "korean",
        "06.dataset": "korean",
        "datasets": "[korean]",
        "tokenizer": backbone,
        "backbone": backbone,
        "dense_teacher": "''",
        "bm25_analyzer": "korean",
        "target_active_terms": 60,
        "systems": "[bm25, bm25-tokens, idf-bag, pretrained, finetuned]",
    }
    done = run(tmp_path / "out", *[x for key, value in more.items() for x in ("-p", f"{key}={value}")])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    systems = {"bm25", "bm25-tokens", "idf-bag", "pretrained", "finetuned"}
    rows = check_chain(tmp_path / "out" / "smoke", "korean", systems)
    assert rows["bm25"]["ndcg_at_10"] > 0.3
    idf = read_json(tmp_path / "out" / "smoke" / "02_idf" / "artifacts" / "idf.json")
    assert any("가" <= token[-1] <= "힣" for token in idf)


def held_by(client):
    """Names of what 07 makes in a cluster."""

    def pipelines(kind):
        try:
            return sorted(client.transport.perform_request("GET", f"/_{kind}/pipeline"))
        except NotFoundError:  # there are none
            return []

    models = [versions(client, f"smoke-{kind}") for kind in ("doc", "query")]
    return sorted(client.indices.get_alias(index="nblib-*")), pipelines("search"), pipelines("ingest"), models


def test_the_model_goes_into_a_real_cluster(english, node, client, monkeypatch):
    """07 on the finished chain: every way to search, and nothing left behind."""
    monkeypatch.setenv("OPENSEARCH_URL", node.url)
    before = held_by(client)
    done = run(english[0].parent, "--only", "07")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = {row["system"]: row for row in read_json(english[0] / "07_opensearch" / "metrics.json")}
    ways = {"bm25", "sparse", "tokenizer", "two-phase", "bi-encoder", "analyzer", "seismic", "hybrid"}
    assert rows.keys() == {"in process", *(f"os-{way}" for way in ways)}
    same = rows["in process"]["ndcg_at_10"]
    assert all(abs(rows[f"os-{way}"]["ndcg_at_10"] - same) < 0.01 for way in ("sparse", "tokenizer"))
    assert rows["os-bm25"]["ndcg_at_10"] > 0.3 and rows["os-sparse"]["query_ms_p99"] > 0
    checks = read_json(english[0] / "07_opensearch" / "artifacts" / "parity.json")
    assert checks["document vectors"]["max_abs_diff"] < 1e-4 and checks["query vectors"]["texts"] > 5
    assert (english[0] / "07_opensearch" / "figures" / "latency.png").stat().st_size > 20_000
    assert held_by(client) == before


def test_speed_on_the_finished_chain(english):
    """12 beside the chain: every row it promises, and the curves of both sides."""
    done = run(english[0].parent, "--only", "12")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = read_json(english[0] / "12_speed" / "metrics.json")
    search = {f"search_{name}" for name in ("bm25s", "sentence_transformers", "scipy", "large")}
    search |= {"search_seismic"} if find_spec("seismic") else set()
    assert {row["row"] for row in rows} == {"encode", "quality_minutes"} | search
    keys = {"row", "regime", "dtype", "ours", "peer", "peer_name", "unit", "ratio", "limit"}
    assert all(keys <= row.keys() and row["ours"] > 0 for row in rows)
    curves = read_json(english[0] / "12_speed" / "artifacts" / "curves.json")
    assert all(curves[side] and curves[side][-1]["ndcg_at_10"] > 0 for side in ("ours", "peer"))
    assert (english[0] / "12_speed" / "figures" / "quality_minutes.png").stat().st_size > 5_000


def test_a_sweep_in_parts_keeps_what_is_done(english):
    """08: the time is spent after one run; another list of lambdas finds that run again."""
    step, points = english[0] / "08_pareto", english[0] / "points"
    done = run(english[0].parent, "--only", "08", "-p", "minutes=0.0001")
    assert done.returncode == 1 and "1 of 2 points are missing: lambda 0.1 (seed 15)" in done.stderr
    assert read_json(step / "manifest.json")["status"] == "failed", "so the next call does not skip it"
    assert (step / "figures" / "table_pareto.md").exists() and (step / "figures" / "pareto.png").exists()
    (first,) = points.glob("point-*/result.json")
    stamp = first.stat().st_mtime_ns
    done = run(english[0].parent, "--only", "08", "-p", "lambdas=[0.05, 0.001]", "-p", "04.max_grad_norm=1.0")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert first.stat().st_mtime_ns == stamp and len(list(points.glob("point-*"))) == 2
    rows = read_json(step / "metrics.json")
    tested = {(row.get("point"), row["system"]) for row in rows if row["role"] == "test"}
    ours = {("lambda 0.05", "finetuned"), ("lambda 0.001", "finetuned")}
    assert tested == ours | {(None, "bm25"), (None, "idf-bag")}
    assert not list(points.rglob("model.safetensors")), "weights of finished points go"
    assert read_json(step / "manifest.json")["status"] == "ok"


def test_the_ablation_on_the_finished_chain(english):
    done = run(english[0].parent, "--only", "13")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    full, searched = read_json(english[0] / "13_ablation" / "artifacts" / "summary.json")
    assert (full["variant"], searched["variant"]) == ("full", "IDF at inference only")
    assert full["diff"] is None and "one seed without an interval: no finding" in searched["finding"]
    assert (english[0] / "13_ablation" / "figures" / "ablation.png").stat().st_size > 5_000


def test_two_processes_end_with_the_weights_of_one(english):
    """The same batches of 4 rows, by one process and by two with 2 rows each."""
    weights = []
    for split in (["batch_size=4"], ["batch_size=2", "processes=2"]):
        options = [part for value in ["precision=fp32", *split] for part in ("-p", value)]
        done = run(english[0].parent, "--only", "04", *options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        folder = english[0] / "04_finetune" / "artifacts" / "final_model"
        weights.append(AutoModelForMaskedLM.from_pretrained(folder).state_dict())
    one, two = weights
    start = AutoModelForMaskedLM.from_pretrained(english[0] / "03_pretrain" / "artifacts" / "final_model")
    moved = max(float((one[n] - p).abs().max()) for n, p in start.state_dict().items())
    apart = max(float((one[n] - two[n]).abs().max()) for n in one)
    assert apart < 0.05 * moved, f"{apart:.1e} apart, {moved:.1e} from the start"
