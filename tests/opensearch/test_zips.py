"""What OpenSearch would refuse late, or take and get wrong, is refused before the upload."""

import io
import json
import shutil
import zipfile

import pytest

from nblib.export.opensearch import export_opensearch
from nblib.files import read_json, sha256_file, write_json
from nblib.opensearch.zips import open_package
from tests.opensearch.zipping import rewrite


@pytest.fixture
def copied(english, tmp_path):
    """Copies of the zips and configurations that a test may spoil."""
    return {kind: shutil.copy(path, tmp_path / path.name) for kind, path in english.zips.items()}


def rewritten(copied, kind, changes):
    rewrite(copied[kind], copied[kind], copied[f"{kind}_config"], changes)


def test_good_zips_pass(copied):
    doc, query = open_package(copied["doc"]), open_package(copied["query"])
    assert (doc.name, query.name) == ("tiny-doc", "tiny-query")
    assert doc.digest == sha256_file(copied["doc"])
    assert doc.config["function_name"] == "SPARSE_ENCODING"
    assert query.config["function_name"] == "SPARSE_TOKENIZE"


def test_another_export_beside_it_is_refused(copied):
    with open(copied["doc"], "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"has sha256 .*two exports; run 06_export again"):
        open_package(copied["doc"])


def test_a_missing_part_is_named(copied, tmp_path):
    (tmp_path / "tiny-doc-1.2.3.ml-commons_model_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="tiny-doc-1.2.3.ml-commons_model_config.json is not there"):
        open_package(copied["doc"])


def test_a_file_that_is_no_zip_is_refused(copied):
    with open(copied["doc"], "wb") as file:
        file.write(b"not a zip")
    config = read_json(copied["doc_config"])
    write_json(copied["doc_config"], config | {"model_content_hash_value": sha256_file(copied["doc"])})
    with pytest.raises(ValueError, match="is no zip"):
        open_package(copied["doc"])


@pytest.mark.parametrize("kind", ["doc", "query"])
def test_a_wrong_function_is_refused(copied, kind):
    config = copied[f"{kind}_config"]
    write_json(config, read_json(config) | {"function_name": "TEXT_EMBEDDING"})
    with pytest.raises(ValueError, match="but its function_name is TEXT_EMBEDDING: run 06_export again"):
        open_package(copied[kind])


@pytest.mark.parametrize("lacks", ["tokenizer.json", "idf.json"])
def test_a_zip_without_a_part_is_refused(copied, lacks):
    rewritten(copied, "query", {lacks: None})
    with pytest.raises(ValueError, match="want one .pt and tokenizer.json, or idf.json and tokenizer.json"):
        open_package(copied["query"])


@pytest.mark.parametrize("kind", ["doc", "query"])
def test_a_tokenizer_without_a_cut_is_refused(copied, kind):
    with zipfile.ZipFile(copied[kind]) as held:
        settings = json.loads(held.read("tokenizer.json"))
    changed = json.dumps(settings | {"truncation": None}).encode()
    rewritten(copied, kind, {"tokenizer.json": changed})
    with pytest.raises(ValueError, match="no truncation, so the server would cut at 512"):
        open_package(copied[kind])


@pytest.mark.parametrize("kind", ["doc", "query"])
def test_tokens_that_would_be_merged_are_refused(copied, kind):
    """A byte-level decoder gives many ids one string."""
    with zipfile.ZipFile(copied[kind]) as held:
        settings = json.loads(held.read("tokenizer.json"))
    vocabulary = settings["model"]["vocab"]
    pieces = [token for token in vocabulary if token.startswith("##")][:2]
    settings["model"]["vocab"] = {
        (" " + pieces[0] if token == pieces[1] else token): i for token, i in vocabulary.items()
    }
    settings["decoder"] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    changed = json.dumps(settings).encode()
    rewritten(copied, kind, {"tokenizer.json": changed})
    with pytest.raises(ValueError, match="do not decode one-to-one.*WordPiece"):
        open_package(copied[kind])


def test_merged_tokens_do_not_matter_where_ids_are_the_terms(english, tmp_path):
    export = export_opensearch(english.encoder, english.idf, tmp_path, "ids", "1", token_format="TOKEN_ID")
    assert open_package(export["doc"], "TOKEN_ID").name == "ids-doc"


def test_a_token_without_a_weight_is_refused(copied):
    with zipfile.ZipFile(copied["query"]) as held:
        weights = json.loads(held.read("idf.json"))
    del weights["the"]
    rewritten(copied, "query", {"idf.json": json.dumps(weights).encode()})
    with pytest.raises(ValueError, match=r"idf.json lacks 1 tokens, such as 'the', which the server would"):
        open_package(copied["query"])


@pytest.mark.parametrize(
    "part, content, words",
    [
        ("extra/torch", b"2.14.0", "was traced by torch 2.14.0; 2.13 is the newest"),
        (".data/version", b"11\n", "its trace has format 11, OpenSearch's libtorch reads up to 10"),
    ],
)
def test_a_trace_that_is_too_new_is_refused(copied, part, content, words):
    with zipfile.ZipFile(copied["doc"]) as held:
        name = next(n for n in held.namelist() if n.endswith(".pt"))
        with zipfile.ZipFile(io.BytesIO(held.read(name))) as trace:
            parts = {n: trace.read(n) for n in trace.namelist()}
    assert f"model/{part}" in parts
    parts[f"model/{part}"] = content
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as trace:
        for n, held_bytes in parts.items():
            trace.writestr(n, held_bytes)
    rewritten(copied, "doc", {name: changed.getvalue()})
    with pytest.raises(ValueError, match=words):
        open_package(copied["doc"])


def test_a_trace_without_notes_is_refused(copied):
    with zipfile.ZipFile(copied["doc"]) as held:
        name = next(n for n in held.namelist() if n.endswith(".pt"))
        with zipfile.ZipFile(io.BytesIO(held.read(name))) as trace:
            parts = {n: trace.read(n) for n in trace.namelist() if "extra/" not in n}
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as trace:
        for n, content in parts.items():
            trace.writestr(n, content)
    rewritten(copied, "doc", {name: changed.getvalue()})
    with pytest.raises(ValueError, match="lacks the notes torch, prune_ratio"):
        open_package(copied["doc"])


def test_korean_passes(exported):
    korean = exported("ko")
    assert open_package(korean.zips["doc"]) and open_package(korean.zips["query"])
