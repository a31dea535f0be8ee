"""Models in the real cluster: there once, replaced in order, removed whole."""

import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nblib.files import read_json, sha256_file, write_json
from nblib.opensearch import deploy as deploying
from nblib.opensearch.deploy import DeployError, deploy, remove, retire, versions, withdraw
from nblib.opensearch.parity import predict
from nblib.opensearch.zips import Package, open_package
from tests.opensearch.zipping import rewrite


@pytest.fixture
def name(client, request):
    """A model's name of this test alone; what it leaves is removed."""
    short = request.node.name.replace("test_", "")[:30].strip("_")
    yield short
    for kind in ("doc", "query"):
        remove(client, f"{short}-{kind}")


@pytest.fixture
def query_zip(english, tmp_path, name):
    """Make the query zip of this name, with weights that are this much larger."""

    def make(factor: float = 1.0) -> Package:
        folder = tmp_path / str(factor)
        folder.mkdir(exist_ok=True)
        file, config = (folder / english.zips[kind].name for kind in ("query", "query_config"))
        write_json(config, read_json(english.zips["query_config"]) | {"name": f"{name}-query"})
        with zipfile.ZipFile(english.zips["query"]) as held:
            weights = json.loads(held.read("idf.json"))
        changed = json.dumps({token: weight * factor for token, weight in weights.items()}).encode()
        rewrite(english.zips["query"], file, config, {"idf.json": changed})
        return open_package(file)

    return make


def test_a_second_call_finds_the_model(client, query_zip, monkeypatch):
    first = deploy(client, query_zip())
    assert first.fresh and first.number == "1"
    monkeypatch.setattr(client.ml, "register_model_meta", None)  # an upload would fail
    again = deploy(client, query_zip())
    assert not again.fresh and again.model_id == first.model_id and again.group_id == first.group_id
    assert [row["state"] for row in versions(client, first.name)] == ["DEPLOYED"]


def test_an_undeployed_model_is_deployed_again_without_an_upload(client, query_zip):
    first = deploy(client, query_zip())
    client.ml.undeploy_model(model_id=first.model_id)
    assert not deploy(client, query_zip()).fresh
    assert predict(client, first.model_id, ["rows of a frame"])[0]


def test_new_weights_are_a_new_version_and_the_old_one_goes_when_told(client, query_zip):
    old, new = deploy(client, query_zip()), deploy(client, query_zip(2.0))
    assert new.group_id == old.group_id and (old.number, new.number) == ("1", "2")
    assert len(versions(client, new.name)) == 2, "the old one may be in use"
    light, heavy = (predict(client, m.model_id, ["rows"])[0] for m in (old, new))
    assert {t: pytest.approx(2 * w, rel=1e-4) for t, w in light.items()} == heavy
    assert retire(client, new) == [old.model_id]
    assert [row["model_id"] for row in versions(client, new.name)] == [new.model_id]
    assert retire(client, new) == []


def test_a_half_finished_upload_is_begun_anew(client, query_zip, monkeypatch):
    package = query_zip()
    monkeypatch.setattr(deploying, "CHUNK", package.file.stat().st_size // 3 + 1)  # several chunks

    def broken(*args):
        raise KeyboardInterrupt

    sent = deploying._upload
    calls = iter([sent, broken])
    monkeypatch.setattr(deploying, "_upload", lambda *args: next(calls)(*args))
    with pytest.raises(KeyboardInterrupt):
        deploy(client, package)
    (left,) = versions(client, package.name)
    assert left["state"] == "REGISTERING"
    monkeypatch.setattr(deploying, "_upload", sent)
    said = []
    found = deploy(client, package, say=said.append)
    assert found.fresh and any("not finished is removed" in line for line in said)
    assert [row["model_id"] for row in versions(client, package.name)] == [found.model_id]
    assert predict(client, found.model_id, ["rows"])[0]


def test_only_what_was_brought_is_taken_back(client, query_zip):
    mine, again = deploy(client, query_zip()), deploy(client, query_zip())
    assert not withdraw(client, again), "it was there before"
    assert versions(client, mine.name)[0]["state"] == "DEPLOYED"
    assert withdraw(client, mine)
    assert versions(client, mine.name) == [] and not deploying._find_group(client, mine.name)


def test_a_model_that_is_being_deployed_is_waited_for(client, query_zip, monkeypatch):
    """By a call that was interrupted, say; it is not taken for half an upload."""
    found, real = deploy(client, query_zip()), deploying._model
    states = iter(["DEPLOYING", "DEPLOYING", "DEPLOYING"])
    monkeypatch.setattr(
        deploying,
        "_model",
        lambda *args: (r := real(*args)) | {"model_state": next(states, r["model_state"])},
    )
    again = deploy(client, query_zip())
    assert again.model_id == found.model_id and not again.fresh and next(states, None) is None


def test_a_cluster_that_takes_no_models_is_told_how(client, query_zip):
    setting = "plugins.ml_commons.allow_registering_model_via_local_file"
    client.cluster.put_settings(body={"persistent": {setting: False}})
    try:
        with pytest.raises(DeployError, match=f"does not take models this way: set {setting} to true"):
            deploy(client, query_zip())
    finally:
        client.cluster.put_settings(body={"persistent": {setting: None}})


def test_the_cluster_fetches_a_zip_itself(client, query_zip):
    package = query_zip()
    for part in package.file.parents:  # the server runs as another user
        if part == Path(tempfile.gettempdir()):
            break
        part.chmod(0o755)
    found = deploy(client, package, url=package.file.as_uri())
    assert found.fresh and predict(client, found.model_id, ["rows"])[0]
    with pytest.raises(DeployError, match="registering"):
        remove(client, package.name)
        deploy(client, package, url="file:///nowhere/x.zip")


def test_what_the_cluster_cannot_load_is_said(client, query_zip):
    package = query_zip()
    package.file.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty zip
    config = package.config | {"model_content_hash_value": sha256_file(package.file)}
    with pytest.raises(DeployError, match=r"deploying .*: FAILED|registering .*: the model is"):
        deploy(client, replace(package, config=config))


def test_remove_leaves_nothing_and_may_be_repeated(client, query_zip):
    found = deploy(client, query_zip())
    remove(client, found.name)
    assert versions(client, found.name) == []
    groups = client.ml.search_model_group(body={"query": {"term": {"name.keyword": found.name}}})
    assert groups["hits"]["hits"] == []
    remove(client, found.name)
