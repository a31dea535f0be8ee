"""Evaluation sets wherever they lie: built, in a folder, by any path, as a collection; some are missing."""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import pytest

from nblib.data.formats import read_beir
from nblib.data.lines import DataError
from nblib.experiment import load_eval_set, load_eval_sets, missing_text, set_folder
from nblib.files import ROOT
from nblib.run.cli import main
from nblib.run.keys import data_hashes
from nblib.run.layers import BadRequest, Project
from nblib.run.params import DataPath, NotebookParams
from nblib.run.runner import Request, plan, step_key
from nblib.systems import check_inputs
from tests.conftest import ENGLISH, KOREAN

FOLDER = read_beir(ENGLISH)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache of collections and a home folder of its own."""
    monkeypatch.setenv("NBLIB_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def copied(folder: Path, source: Path = ENGLISH) -> Path:
    """Copy a set."""
    shutil.copytree(source, folder)
    return folder


def test_any_way_to_write_a_path_reads_the_same_set(tmp_path, home, monkeypatch):
    copied(home / "sets" / "english")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "english").symlink_to(home / "sets" / "english")
    (tmp_path / "parts" / "english").mkdir(parents=True)
    for part in ("corpus.jsonl", "queries.jsonl", "qrels"):
        (tmp_path / "parts" / "english" / part).symlink_to(ENGLISH / part)
    monkeypatch.chdir(ROOT / "notebooks")  # as JupyterLab starts a kernel
    first = load_eval_set("tests/data/english", "", "test")
    assert first.texts and first.qrels == FOLDER.qrels["test"] and first.name == "english"
    ways = [
        "tests/data/english/",
        "tests/../tests/data/english",
        str(ENGLISH),
        f"{ENGLISH}/",
        "~/sets/english",
    ]
    ways += [str(tmp_path / "links" / "english"), str(tmp_path / "parts" / "english")]
    ways += [os.path.relpath(ENGLISH, ROOT), f"{ENGLISH}/qrels/.."]
    for way in ways:
        assert load_eval_set(way, "", "test") == first, way


def test_where_a_name_is_looked_for(tmp_path, monkeypatch):
    built, sets = tmp_path / "step", tmp_path / "sets"
    copied(tmp_path / "cache" / "beir" / "scifact", KOREAN)  # a collection, cached
    assert set_folder("scifact", str(built), str(sets)) is None
    collection = load_eval_set("scifact", str(built), "test", sets_dir=str(sets))
    assert collection.doc_ids == list(read_beir(KOREAN).corpus) and collection.name == "scifact"
    copied(sets / "scifact")
    assert set_folder("scifact", str(built), f"{sets}/") == sets / "scifact"
    copied(built / "artifacts" / "scifact")
    assert set_folder("scifact", str(built), str(sets)) == built / "artifacts" / "scifact"
    assert set_folder("tests/data/english", str(built), str(sets)) == ENGLISH
    assert set_folder(str(ENGLISH), "", "") == ENGLISH


def test_a_copy_of_a_collection_is_measured_as_the_collection(tmp_path, capsys):
    copied(tmp_path / "msmarco")
    data = load_eval_set("msmarco", "", "test", sets_dir=str(tmp_path))
    assert data.split == "dev" and list(data.qrels) == list(FOLDER.qrels["dev"])
    assert "msmarco: has no split 'test'; its split 'dev' is measured" in capsys.readouterr().out
    copied(tmp_path / "mine")
    (tmp_path / "mine" / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match="'mine' has no split 'test'; it has: dev, train"):
        load_eval_set("mine", "", "test", sets_dir=str(tmp_path))


def test_rows_that_cannot_be_used_are_counted(tmp_path, capsys):
    folder = copied(tmp_path / "mine")
    with open(folder / "corpus.jsonl", "a") as corpus:
        corpus.write('{"_id": "empty", "text": " "}\n')
    assert len(load_eval_set(str(folder), "", "test").texts) == len(FOLDER.corpus)
    assert "mine: rows that cannot be used, left out: 1 (corpus.jsonl, line 41" in capsys.readouterr().out


def test_a_missing_set_stops_none_of_the_others(tmp_path, capsys):
    names = ["tests/data/english", "nanobeir:nq", "nowhere/at/all", "scifac", str(KOREAN)]
    sets, missing = load_eval_sets(names, "", "test", 0, 13, "", tmp_path / "spool")
    assert [data.name for data in sets] == ["english", "korean"]
    assert list(missing) == ["nanobeir:nq", "nowhere/at/all", "scifac"]
    assert "hub/zeta-alpha-ai/NanoNQ" in missing["nanobeir:nq"] and "HF_HUB_OFFLINE" in missing["nanobeir:nq"]
    assert "did you mean scifact?" in missing["scifac"]
    assert capsys.readouterr().out.count("NOT READ") == 3
    assert [list(data.texts) for data in sets] == [load_eval_set(n, "", "test").texts for n in names[::4]]
    assert not list((tmp_path / "spool").iterdir()), "the texts lie in files without a name"
    text = missing_text(missing)
    assert text.startswith("**Not evaluated: 3 of") and all(f"- **{name}**: " in text for name in missing)
    assert missing_text({}) == ""
    with pytest.raises(DataError, match="(?s)no data set could be read.*scifac: .*nowhere"):
        load_eval_sets(["scifac", "nowhere/at/all"], "", "test", 0, 13, "", tmp_path)


def test_a_judged_document_may_be_absent(tmp_path):
    folder = copied(tmp_path / "mine")
    query = next(iter(FOLDER.qrels["test"]))
    with open(folder / "qrels" / "test.tsv", "a") as qrels:
        qrels.write(f"{query}\tgone\t1\n")
    data = load_eval_set(str(folder), "", "test")
    assert data.qrels[query]["gone"] == 1 and "gone" not in data.doc_ids


# --- through the runner

NONE = ["-p", "data_dir=", "-p", "idf_dir=", "-p", "pretrain_dir=", "-p", "model_dir="]


def planned(tmp_path: Path, **values: str):
    """Plan 05 with overrides."""
    words = [f"{key}={value}" for key, value in values.items()]
    request = Request(["nanobeir"], words, outputs=tmp_path / "out")
    return plan(Project(), request)[0]


def test_folders_of_models_may_be_written_in_any_way(tmp_path, home):
    model = home / "models" / "mine"
    (model / "artifacts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    ways = [str(model), f"{model}/", "~/models/mine", f"{model}/artifacts/.."]
    steps = [planned(tmp_path, model_dir=way, idf_dir=way) for way in ways]
    assert all(step.upstream == {"idf_dir": model, "model_dir": model} for step in steps)
    keys = {step_key(step, {})[1] for step in steps}
    assert len(keys) == 1  # a finished step stays done however its folder is written
    linked = planned(tmp_path, model_dir=str(tmp_path / "link"), idf_dir=str(model))
    assert linked.upstream["model_dir"] == tmp_path / "link"
    with pytest.raises(
        BadRequest, match="reads outputs/nowhere .model_dir., which is not there; give -p model_dir="
    ):
        planned(tmp_path, model_dir="outputs/nowhere", idf_dir=str(model))


class WithSets(NotebookParams):
    datasets: Annotated[list[str], DataPath(within="sets_dir")]
    sets_dir: str


def test_a_folder_of_sets_counts_in_the_key(tmp_path):
    copied(tmp_path / "sets" / "english")

    def hashes(sets_dir: str) -> dict[str, str]:
        names = ["english", str(KOREAN), "scifact"]
        return data_hashes(WithSets, {"datasets": names, "sets_dir": sets_dir})

    first = hashes(str(tmp_path / "sets"))
    assert list(first) == ["datasets=english", f"datasets={KOREAN}"]
    assert list(hashes("")) == [f"datasets={KOREAN}"]
    (tmp_path / "sets" / "english" / "qrels" / "test.tsv").unlink()
    assert hashes(str(tmp_path / "sets")) != first


def test_a_plain_model_folder_serves(tmp_path, monkeypatch):
    model, idf = tmp_path / "model", tmp_path / "idf"
    for file in (model / "config.json", idf / "idf.json"):
        file.parent.mkdir()
        file.write_text("{}")
    folders = {"idf_dir": f"{idf}/", "model_dir": str(model), "pretrain_dir": ""}
    monkeypatch.chdir(ROOT / "notebooks")
    found = check_inputs(["finetuned", "bm25-tokens"], folders)
    assert found == {"idf_dir": idf / "idf.json", "model_dir": model, "tokenizer": model}
    with pytest.raises(FileNotFoundError, match="'pretrained' needs .*set pretrain_dir"):
        check_inputs(["pretrained"], folders)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="'finetuned' needs"):
        check_inputs(["finetuned"], folders | {"model_dir": str(tmp_path / "empty")})


@pytest.mark.notebook
def test_05_runs_on_paths_and_lists_what_is_missing(tmp_path, capsys, home):
    copied(home / "sets" / "한국어 집합", KOREAN)
    sets = ["tests/data/english/", "~/sets/한국어 집합", "scifact", "nowhere"]
    words = [
        "run",
        "--profile=nanobeir",
        f"--outputs={tmp_path}/out",
        "-p",
        f"datasets={json.dumps(sets)}",
        *NONE,
    ]
    code = main([*words, "-p", "systems=[bm25]", "-p", "max_queries=3"])
    said = capsys.readouterr()
    assert code == 0, said
    assert "NOT EVALUATED scifact: " in said.err and "NOT EVALUATED nowhere: " in said.err
    out = tmp_path / "out" / "nanobeir" / "05_beir_eval"
    rows = json.loads((out / "metrics.json").read_text())
    assert [(row["dataset"], row["split"]) for row in rows] == [("english", "test"), ("한국어 집합", "test")]
    assert list(json.loads((out / "artifacts" / "missing_sets.json").read_text())) == ["scifact", "nowhere"]
    data = json.loads((out / "manifest.json").read_text())["key_parts"]["data"]
    assert list(data) == ["datasets=tests/data/english/", "datasets=~/sets/한국어 집합"]
    assert "Not evaluated: 2 of" in (out / "executed.ipynb").read_text()
