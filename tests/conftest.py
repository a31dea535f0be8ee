"""Shared pieces: small real models and sets, made on the spot."""

import json
import os
import shutil

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub fails at once, with words
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from nblib.backbones import load_tokenizer, make_tiny_bert  # noqa: E402
from nblib.data.formats import document_text, read_beir, write_beir  # noqa: E402
from nblib.data.negatives import mine_negatives  # noqa: E402
from nblib.files import ROOT  # noqa: E402
from nblib.idf import compute_idf_weights, load_idf  # noqa: E402

ENGLISH = ROOT / "tests" / "data" / "english"
KOREAN = ROOT / "tests" / "data" / "korean"
LONG = ("tests/test_smoke.py", "tests/opensearch/", "tests/demo/")  # begun first
ON_A_NODE = ("tests/opensearch/", "tests/demo/test_cluster.py")  # one node for all of them


def pytest_collection_modifyitems(items) -> None:
    """Begin what takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files, whose tests share fixtures.

    xdist's own way to name groups, loadgroup, does nothing under pytest 9.2 (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.endswith("test_korean_chain_without_any_weights"):
                return nodeid  # long, and needs nothing of the English chain
            return "node" if nodeid.startswith(ON_A_NODE) else nodeid.split("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def english_texts() -> list[str]:
    """The hand-written English documents."""
    return [document_text(doc) for doc in read_beir(ENGLISH).corpus.values()]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory, english_texts):
    """Folder of a two-layer BERT with a vocabulary trained on the English documents."""
    return make_tiny_bert(tmp_path_factory.mktemp("backbone"), english_texts, vocab_size=600)


@pytest.fixture(scope="session")
def mined_set(tmp_path_factory):
    """Folder of the hand-written English set with mined negatives."""
    folder = tmp_path_factory.mktemp("set")
    beir = read_beir(ENGLISH)
    write_beir(folder, beir, mine_negatives(beir, 2, 10, "english", 13))
    return folder


@pytest.fixture(scope="module")
def steps(tiny_backbone, mined_set, tmp_path_factory):
    """Folders as 01, 02 and 03 leave them: parameters that name them."""
    from nblib.model.encoder import NeuralSparseEncoder

    base = tmp_path_factory.mktemp("steps")
    shutil.copytree(mined_set, base / "01" / "artifacts" / "set")
    texts = [json.loads(line)["text"] for line in (mined_set / "corpus.jsonl").read_text().splitlines()]
    compute_idf_weights(texts, load_tokenizer(str(tiny_backbone)), base / "02" / "artifacts" / "idf.json")
    NeuralSparseEncoder(str(tiny_backbone), 32).save_pretrained(base / "03" / "artifacts" / "final_model")
    return {"data_dir": str(base / "01"), "idf_dir": str(base / "02"), "pretrain_dir": str(base / "03")}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders as 02, 03 and 04 leave them, with a small random model."""
    from nblib.model.encoder import NeuralSparseEncoder
    from nblib.query_side import note_weights
    from tests.steps import QUERIES, TEXTS

    base = tmp_path_factory.mktemp("steps")
    bert = make_tiny_bert(base / "bert", TEXTS + QUERIES, vocab_size=200)
    idf_file, tokenizer = base / "02" / "artifacts" / "idf.json", load_tokenizer(str(bert))
    compute_idf_weights(TEXTS, tokenizer, idf_file)
    for step in ("03", "04"):
        folder = base / step / "artifacts" / "final_model"
        folder.mkdir(parents=True)
        NeuralSparseEncoder(str(bert), max_length=32).save_pretrained(folder)
        note_weights(folder, load_idf(idf_file, tokenizer))
    return {"idf_dir": str(base / "02"), "pretrain_dir": str(base / "03"), "model_dir": str(base / "04")}


@pytest.fixture(scope="session")
def node():
    """A real OpenSearch node, started once; skipped, with the reason, where Java or Maven is missing."""
    from nblib.opensearch.assemble import NoServer, find_tools
    from nblib.opensearch.node import end, running, start

    try:
        find_tools()
    except NoServer as reason:
        pytest.skip(f"no OpenSearch here: {reason}")
    first = start(name := f"of-{os.getpid()}", fresh=True)
    yield first
    end(running(name) or first)  # not the first one, if a test has killed it


@pytest.fixture(scope="session")
def client(node):
    """A connection to it."""
    from nblib.opensearch.client import connect

    return connect(node.url)
