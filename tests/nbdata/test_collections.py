"""Collections: the catalogue, zips from a local server, hub sets from local folders in their layout."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from beir.datasets.data_loader import GenericDataLoader

from nblib.data.collections import catalogue, data_home, open_collection
from nblib.data.formats import read_beir
from nblib.data.lines import DataError
from nblib.files import ROOT
from tests.conftest import ENGLISH
from tests.nbdata.server import serving

BEIR_13 = [
    *("trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020"),
    *("dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact", "quora"),
]
FOLDER = read_beir(ENGLISH)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache of collections, and of the hub's tables; downloads are allowed."""
    monkeypatch.setenv("NBLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # imports datasets, offline
    monkeypatch.delenv("HF_HUB_OFFLINE")  # of our own downloads only: datasets looked at it when imported
    return tmp_path / "data"


def english_zip(name: str, extra: dict[str, str] | None = None) -> bytes:
    """Pack tests/data/english as BEIR does; `extra` adds lines to files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(p for p in ENGLISH.rglob("*") if p.is_file()):
            inside = file.relative_to(ENGLISH).as_posix()
            packed.writestr(f"{name}/{inside}", file.read_text() + (extra or {}).get(inside, ""))
    return buffer.getvalue()


def write_catalogue(folder: Path, entries: dict, mirrors: list[str] | None = None) -> Path:
    """Write a catalogue of its own for a test."""
    file = folder / "catalogue.yaml"
    file.write_text(yaml.safe_dump({"mirrors": mirrors or [], "collections": entries}))
    return file


def entry(content: bytes, **more) -> dict:
    """Make the catalogue's entry of a zip."""
    return {"zip": {"md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}, **more}


def opened(file: Path, name: str = "english", split: str | None = None):
    """Open a set and gather what is said."""
    said: list[str] = []
    return open_collection(name, split, file=file, say=said.append), said


# --- the catalogue itself


def test_every_collection_of_the_issue_is_there_and_whole():
    known = catalogue()
    nano = {f"nanobeir:{name}" for name in [*BEIR_13, "msmarco"]} - {"nanobeir:trec-covid"}
    korean = {"miracl-ko", "mrtydi-ko", "ko-strategyqa"}
    assert set(known) == {*BEIR_13, "msmarco", "msmarco-dev", "trec-dl19"} | nano | korean
    for name in [*BEIR_13, "msmarco"]:
        packed = known[name].packed
        assert len(packed.md5) == 32 and int(packed.md5, 16) and packed.bytes > 2_000_000
        assert len(packed.urls) == 2 and all(url.endswith(f"/{name}.zip") for url in packed.urls)
    sums = [known[name].packed.md5 for name in [*BEIR_13, "msmarco"]]
    assert len(set(sums)) == 14 and all(c.hub for c in known.values())


def test_what_is_measured():
    known = catalogue()
    measured = {name: c.split for name, c in known.items() if c.split != "test"}
    assert measured == dict.fromkeys(("msmarco", "msmarco-dev", "miracl-ko", "ko-strategyqa"), "dev")
    assert known["msmarco"].splits == ("dev", "train")  # its test split is TREC DL 2019


@pytest.mark.parametrize("profile", ["beir13", "nanobeir"])
def test_profiles_name_collections(profile):
    layer = yaml.safe_load((ROOT / "params" / profile / "05_beir_eval.yaml").read_text())
    assert len(set(layer["datasets"])) == 13 and set(layer["datasets"]) <= set(catalogue())


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(DataError, match="no collection is called 'scifac'; did you mean scifact"):
        open_collection("scifac")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert data_home() == tmp_path / "data"
    monkeypatch.delenv("NBLIB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_home() == tmp_path / "xdg" / "nblib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_home() == Path.home() / ".cache" / "nblib"


# --- zips


def test_a_set_is_fetched_checked_and_then_opens_without_a_network(tmp_path, home, monkeypatch):
    content = english_zip("english")
    with serving({"/b/english.zip": content}, {"/b/english.zip": ["cut"]}) as server:
        file = write_catalogue(
            tmp_path, {"english": entry(content)}, [f"{server.url}/{m}/{{name}}.zip" for m in "ab"]
        )
        beir, said = opened(file)
        assert [path for path, _ in server.asked] == ["/a/english.zip", "/b/english.zip", "/b/english.zip"]
        assert server.asked[2][1].startswith("bytes=")
    assert (beir.corpus, beir.queries, beir.qrels) == (
        FOLDER.corpus,
        FOLDER.queries,
        {"test": FOLDER.qrels["test"]},
    )
    assert len(said) == 1 and f"from {server.url}/b/english.zip into {home / 'beir' / 'english'}" in said[0]
    assert sorted(p.name for p in (home / "beir").iterdir()) == ["english"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert opened(file) == (beir, [])  # the server is down


def test_a_checked_zip_that_was_not_unpacked_is_not_fetched_again(tmp_path, home):
    content = english_zip("english")
    (home / "beir" / ".english.killed.tmp").mkdir(parents=True)
    (home / "beir" / "english.zip").write_bytes(content)
    file = write_catalogue(tmp_path, {"english": entry(content)}, ["http://127.0.0.1:9/{name}.zip"])
    assert opened(file)[0].corpus == FOLDER.corpus
    assert sorted(p.name for p in (home / "beir").iterdir()) == ["english"]


def test_our_reading_is_that_of_beir(tmp_path):
    content = english_zip("english")
    with serving({"/english.zip": content}) as server:
        file = write_catalogue(tmp_path, {"english": entry(content)}, [f"{server.url}/{{name}}.zip"])
        beir, _ = opened(file, split="dev")
    corpus, queries, qrels = GenericDataLoader(str(data_home() / "beir" / "english")).load("dev")
    assert beir.corpus == corpus and beir.qrels == {"dev": qrels}
    assert {q: beir.queries[q] for q in qrels} == queries


def test_what_published_sets_hold_is_left_out_and_said(tmp_path):
    known = next(iter(FOLDER.corpus))
    query = next(iter(FOLDER.qrels["test"]))
    extra = {
        "corpus.jsonl": '{"_id": "empty", "title": "", "text": ""}\n{"_id": "a b", "text": "x"}\n'
        f'{{"_id": "{known}", "text": "again"}}\n',
        "qrels/test.tsv": f"{query}\tempty\t1\n{query}\tgone\t2\n{query}\t{known}\t-1\n",
    }
    content = english_zip("english", extra)
    with serving({"/english.zip": content}) as server:
        more = {"documents": len(FOLDER.corpus) + 3}
        file = write_catalogue(tmp_path, {"english": entry(content, **more)}, [f"{server.url}/{{name}}.zip"])
        beir, said = opened(file)
    assert beir.corpus == FOLDER.corpus
    assert beir.qrels["test"][query] == FOLDER.qrels["test"][query] | {
        "empty": 1,
        "gone": 2,
    }  # as BEIR counts
    corpus, _, qrels = GenericDataLoader(str(data_home() / "beir" / "english")).load("test")
    assert {**qrels[query]} == beir.qrels["test"][query] | {known: -1} and "gone" not in corpus
    assert [line.split(" (")[0] for line in said[1:]] == [
        "english: rows that cannot be used, left out: 3",
        "english: judgements of documents that the corpus lacks, counted as not found, as in BEIR: 2",
        "english: rows that cannot be used, left out: 1",
    ]


def test_a_corpus_of_another_size_is_said(tmp_path):
    content = english_zip("english")
    with serving({"/english.zip": content}) as server:
        file = write_catalogue(
            tmp_path, {"english": entry(content, documents=41)}, [f"{server.url}/{{name}}.zip"]
        )
        _, said = opened(file)
    assert said[-1] == "english: it has 40 documents, not the 41 that are published"


def test_splits(tmp_path):
    content = english_zip("english")
    rules = {"split": "dev", "splits": ["train"]}
    with serving({"/english.zip": content, "/plain.zip": content}) as server:
        entries = {"english": entry(content, **rules), "plain": entry(content, hub=[{"repo": "never/asked"}])}
        file = write_catalogue(tmp_path, entries, [f"{server.url}/{{name}}.zip"])
        beir, said = opened(file, split="test")  # it holds one, which belongs to another collection
        assert list(beir.qrels) == ["dev"]
        assert "english: has no split 'test'; its split 'dev' is measured" in said
        assert list(opened(file)[0].qrels) == ["dev"] and list(opened(file, split="train")[0].qrels) == [
            "train"
        ]
        with pytest.raises(
            DataError, match="^set 'plain' has no split 'validation'; it has: dev, test, train"
        ):
            opened(file, "plain", "validation")  # never another one in its place
        assert server.asked == [("/english.zip", ""), ("/plain.zip", "")]


def test_every_place_and_a_cure_are_named_when_none_has_the_set(tmp_path, monkeypatch):
    content = english_zip("english")
    hub = {"hub": [{"repo": str(tmp_path / "nowhere")}]}
    with serving({}) as server:
        file = write_catalogue(tmp_path, {"english": entry(content, **hub)}, [f"{server.url}/{{name}}.zip"])
        with pytest.raises(DataError) as caught:
            opened(file)
    said = str(caught.value)
    assert f"{server.url}/english.zip: HTTP 404" in said and "nowhere" in said
    assert f"put at {data_home() / 'beir' / 'english'}" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set.*unset HF_HUB_OFFLINE, or give a BEIR folder"):
        opened(file)


def test_two_processes_at_once_fetch_it_once(tmp_path):
    content = english_zip("english")
    with serving({"/english.zip": content}, {"/english.zip": ["slow"]}) as server:
        file = write_catalogue(tmp_path, {"english": entry(content)}, [f"{server.url}/{{name}}.zip"])
        call = (
            "from pathlib import Path; from nblib.data.collections import open_collection as o; "
            f"print(len(o('english', file=Path({str(file)!r})).corpus))"
        )
        command = [sys.executable, "-c", call]
        options = {"cwd": ROOT, "env": os.environ, "stdout": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, **options) for _ in range(2)]
        answers = [process.communicate(timeout=120)[0] for process in running]
    assert [answer.splitlines()[-1] for answer in answers] == ["40", "40"]
    assert server.asked == [("/english.zip", "")]


# --- sets of the hub, from local folders in their layout


def hub_folder(folder: Path, tables: dict[str, dict[str, pd.DataFrame]]) -> Path:
    """Write configurations (name -> split -> table) as parquet, with the card that names them."""
    head = ["---", "configs:"]
    for config, parts in tables.items():
        head += [f"- config_name: {config}", "  data_files:"]
        for split, table in parts.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            table.to_parquet(folder / config / f"{split}.parquet")
            head += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]))
    return folder


def texts(rows: dict, key: str = "_id") -> pd.DataFrame:
    """Lay corpus or queries out as a table."""
    as_row = {True: lambda doc: doc, False: lambda text: {"text": text}}
    return pd.DataFrame([{key: i, **as_row[isinstance(v, dict)](v)} for i, v in rows.items()])


def judged(qrels: dict, score: bool = True) -> pd.DataFrame:
    """Lay judgements out as a table; NanoBEIR's have no score."""
    rows = [(q, d, grade) for q, docs in qrels.items() for d, grade in docs.items() if score or grade]
    table = pd.DataFrame(rows, columns=["query-id", "corpus-id", "score"])
    return table if score else table.drop(columns="score")


def test_nanobeir_in_its_layout(tmp_path, home):
    corpus = {i: {"text": doc["text"]} for i, doc in FOLDER.corpus.items()}  # no titles there
    one = {
        name: {"train": table}
        for name, table in [("corpus", texts(corpus)), ("queries", texts(FOLDER.queries))]
    }
    one["qrels"] = {"train": judged(FOLDER.qrels["test"], score=False)}
    hub_folder(home / "hub" / "zeta-alpha-ai" / "NanoSciFact", one)
    said: list[str] = []
    beir = open_collection("nanobeir:scifact", "test", say=said.append)
    assert beir.corpus == {i: {"title": "", "text": doc["text"]} for i, doc in FOLDER.corpus.items()}
    assert beir.qrels == {
        "test": {q: {d: 1 for d, g in docs.items() if g} for q, docs in FOLDER.qrels["test"].items()}
    }
    assert said == ["nanobeir:scifact: it has 40 documents, not the 2,919 that are published"]


def test_mr_tydi_in_its_layout_and_a_second_place_for_it(tmp_path, home):
    parts = {split: judged(FOLDER.qrels[split]) for split in ("train", "dev", "test")}
    first = hub_folder(
        home / "hub" / "mteb" / "mrtidy",
        {
            "korean-corpus": {"train": texts(FOLDER.corpus, "id")},
            "korean-queries": {split: texts(FOLDER.queries, "id") for split in parts},
            "korean-qrels": parts,
            "english-corpus": {"train": texts({"x": {"title": "", "text": "another language"}})},
        },
    )
    beir = open_collection("mrtydi-ko", "test", say=print)
    assert (beir.corpus, beir.queries) == (FOLDER.corpus, FOLDER.queries)
    assert beir.qrels == {"test": FOLDER.qrels["test"]}
    (first / "korean-corpus" / "train.parquet").write_bytes(b"damaged")
    second = {"corpus": {"corpus": texts(FOLDER.corpus)}, "queries": {"queries": texts(FOLDER.queries)}}
    hub_folder(home / "hub" / "taeminlee" / "Ko-mrtydi", second | {"default": parts})
    assert open_collection("mrtydi-ko", "test", say=print) == beir


def test_miracl_in_its_layout_and_a_second_place_for_it(home):
    dev = {"dev": judged(FOLDER.qrels["dev"])}
    first = hub_folder(
        home / "hub" / "mteb" / "MIRACLRetrieval",
        {
            "ko-corpus": {"dev": texts(FOLDER.corpus)},
            "ko-queries": {"dev": texts(FOLDER.queries)},
            "ko-qrels": dev,
            "ja-corpus": {"dev": texts({"x": {"title": "", "text": "another language"}})},
        },
    )
    said: list[str] = []
    beir = open_collection("miracl-ko", "test", say=said.append)
    assert (beir.corpus, beir.queries) == (FOLDER.corpus, FOLDER.queries)
    assert beir.qrels == {"dev": FOLDER.qrels["dev"]} and "its split 'dev' is measured" in said[0]
    (first / "ko-queries" / "dev.parquet").unlink()
    second = {"corpus": {"corpus": texts(FOLDER.corpus)}, "queries": {"queries": texts(FOLDER.queries)}}
    hub_folder(home / "hub" / "taeminlee" / "Ko-miracl", second | {"default": dev})
    assert open_collection("miracl-ko", say=print) == beir


def test_msmarco_dev_and_trec_dl_are_two_splits_of_one_folder(home):
    tables = {"corpus": {"corpus": texts(FOLDER.corpus)}, "queries": {"queries": texts(FOLDER.queries)}}
    parts = {split: judged(FOLDER.qrels[split]) for split in ("train", "dev", "test")}
    hub_folder(home / "hub" / "mteb" / "msmarco", tables | {"default": parts})
    for name, split in (("msmarco-dev", "dev"), ("trec-dl19", "test")):
        said: list[str] = []
        beir = open_collection(name, "test", say=said.append)
        assert beir.qrels == {split: FOLDER.qrels[split]} and beir.corpus == FOLDER.corpus
        assert said[-1] == f"{name}: it has 40 documents, not the 8,841,823 that are published"
    with pytest.raises(DataError, match="no split 'train'"):
        open_collection("msmarco-dev", "train", say=print)


def test_a_split_may_have_a_corpus_of_its_own(home):
    half = dict(list(FOLDER.corpus.items())[:20])
    tables = {
        "corpus": {"dev": texts(FOLDER.corpus), "test": texts(half)},
        "queries": {"dev": texts(FOLDER.queries), "test": texts({"q": "another"})},
        "qrels": {"dev": judged(FOLDER.qrels["dev"])},
    }
    hub_folder(home / "hub" / "mteb" / "Ko-StrategyQA", tables)
    said: list[str] = []
    beir = open_collection("ko-strategyqa", "test", say=said.append)
    assert (beir.corpus, beir.queries) == (FOLDER.corpus, FOLDER.queries)  # and no row counted as a repeat
    assert said == [
        "ko-strategyqa: has no split 'test'; its split 'dev' is measured",
        "ko-strategyqa: it has 40 documents, not the 9,251 that are published",
    ]


def test_beir_on_the_hub_keeps_ids_that_look_like_numbers(tmp_path, home):
    corpus, queries = (
        {"007": {"title": "", "text": "a spy"}, "12": {"title": "", "text": "a dozen"}},
        {"01": "spy"},
    )
    tables = {"corpus": {"corpus": texts(corpus)}, "queries": {"queries": texts(queries)}}
    hub_folder(home / "hub" / "BeIR" / "scifact", tables)
    (home / "hub" / "BeIR" / "scifact-qrels").mkdir(parents=True)
    for split in ("test", "validation"):
        lines = "query-id\tcorpus-id\tscore\n01\t007\t1\n01\t12\t0\n"
        (home / "hub" / "BeIR" / "scifact-qrels" / f"{split}.tsv").write_text(lines)
    file = write_catalogue(
        tmp_path, {"scifact": {"hub": [{"repo": "BeIR/scifact", "judged": "BeIR/scifact-qrels"}]}}
    )
    assert opened(file, "scifact")[0].qrels == {"test": {"01": {"007": 1, "12": 0}}}
    assert opened(file, "scifact", "dev")[0].qrels == {"dev": {"01": {"007": 1, "12": 0}}}
