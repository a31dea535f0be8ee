"""Bring the zips of 06 into a cluster and keep them there once: register, deploy, try, replace, remove."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConflictError, NotFoundError

from nblib.opensearch.client import patient
from nblib.opensearch.zips import Package

CHUNK = 10_000_000  # bytes of a model that are uploaded at a time, the most that ML Commons takes
DEPLOY_S = 600.0
SEEN_S = 30.0  # after which searches surely no longer see what was deleted
Say = Callable[[str], None]


class DeployError(RuntimeError):
    """The cluster gave a task up; holds what it said."""


@dataclass(frozen=True)
class Deployed:
    """A model in the cluster.

    name: as in the zip's configuration. number: which version of its group, counted by the cluster.
    model_id: by which pipelines and queries call it. group_id: holds all versions of one name. fresh: it was
    uploaded by this call, False = it was there.
    """

    name: str
    number: str
    model_id: str
    group_id: str
    fresh: bool


def deploy(client: OpenSearch, package: Package, url: str = "", say: Say = print) -> Deployed:
    """Bring a model into the cluster, ready to be called; one that is there is not uploaded again.

    A model is known again by its bytes. One that an earlier call left half uploaded, or that failed, is
    removed first. Other versions of the name stay, and in use: see `retire`.

    Args:
        client: see nblib.opensearch.client.connect.
        package: a checked zip.
        url: where the cluster fetches the zip by itself (https://, or file:// if its settings allow it); ""
            uploads it in chunks.
        say: takes a line before each long part.

    Raises:
        DeployError: the cluster gave up; holds what it said.
        TransportError: the cluster refused a call.
    """
    group_id = _group(client, package.name)
    fresh, model_id = False, ""
    for row in versions(client, package.name):
        if row["hash"] != package.digest:
            continue
        if row["state"] in ("REGISTERED", "DEPLOYED", "PARTIALLY_DEPLOYED", "UNDEPLOYED", "DEPLOY_FAILED"):
            model_id = row["model_id"]
        else:
            say(f"{package.name}: an upload that was not finished is removed")
            _remove(client, row["model_id"])
    if not model_id:
        fresh = True
        say(f"{package.name}: {package.file.stat().st_size / 1e6:,.1f} MB go to the cluster")
        model_id = _register(client, package, group_id, url)
    model = _model(client, model_id)
    if model["model_state"] != "DEPLOYED":
        task = patient(lambda: client.ml.deploy_model(model_id=model_id))
        wait_for(client, task["task_id"], f"deploying {package.name}")
    say(f"{package.name}: {model_id}, version {model['model_version']}, {'new' if fresh else 'was there'}")
    return Deployed(package.name, model["model_version"], model_id, group_id, fresh)


def versions(client: OpenSearch, name: str) -> list[dict[str, Any]]:
    """List what the cluster holds under a model's name: rows of model_id, number, hash, state."""
    query = {
        "size": 1000,
        "_source": ["model_version", "model_content_hash_value", "model_state"],
        "query": {
            "bool": {
                "filter": [{"term": {"name.keyword": name}}],
                "must_not": [{"exists": {"field": "chunk_number"}}],  # a model's pieces lie beside it
            }
        },
    }
    try:
        hits = client.ml.search_models(body=query)["hits"]["hits"]
    except NotFoundError:  # no model was ever registered
        return []
    keys = {"number": "model_version", "hash": "model_content_hash_value", "state": "model_state"}
    return [{"model_id": hit["_id"]} | {k: hit["_source"].get(v) for k, v in keys.items()} for hit in hits]


def retire(client: OpenSearch, kept: Deployed, say: Say = print) -> list[str]:
    """Undeploy and delete every other version of a model; returns their ids.

    Call it when pipelines and queries name the new one.
    """
    others = [row for row in versions(client, kept.name) if row["model_id"] != kept.model_id]
    for row in others:
        _remove(client, row["model_id"])
        say(f"{kept.name}: {row['model_id']}, version {row['number']}, is removed")
    return [row["model_id"] for row in others]


def remove(client: OpenSearch, name: str) -> None:
    """Undeploy and delete every version of a model, and its group. What is not there is no error."""
    for row in versions(client, name):
        _remove(client, row["model_id"])
    if group_id := _find_group(client, name):
        _remove_group(client, group_id)


def _remove_group(client: OpenSearch, group_id: str) -> None:
    end = time.monotonic() + SEEN_S
    while True:
        try:
            client.ml.delete_model_group(model_group_id=group_id)
            return
        except ConflictError:  # its last model is deleted, and still seen
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def wait_for(client: OpenSearch, task_id: str, what: str, seconds: float = DEPLOY_S) -> dict[str, Any]:
    """Wait until a task of ML Commons is done; returns its last state.

    Raises:
        DeployError: it failed, or was not done in time; holds what the cluster said.
    """
    end, pause = time.monotonic() + seconds, 0.1
    while True:
        task = patient(lambda: client.ml.get_task(task_id=task_id))
        if task["state"] == "COMPLETED":
            return task
        if task["state"] not in ("CREATED", "RUNNING"):
            raise DeployError(f"{what}: {task['state']}: {task.get('error', 'no reason given')}")
        if time.monotonic() > end:
            raise DeployError(f"{what}: not done after {seconds:.0f} s, task {task_id} is {task['state']}")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def _register(client: OpenSearch, package: Package, group_id: str, url: str) -> str:
    body = package.config | {"model_group_id": group_id}
    if url:
        task = patient(lambda: client.ml.register_model(body=body | {"url": url}))
        return wait_for(client, task["task_id"], f"registering {package.name}")["model_id"]
    size = package.file.stat().st_size
    body |= {"total_chunks": math.ceil(size / CHUNK), "model_content_size_in_bytes": size}
    model_id = patient(lambda: client.ml.register_model_meta(body=body))["model_id"]
    with open(package.file, "rb") as file:
        for number in range(body["total_chunks"]):
            _upload(client, model_id, number, file.read(CHUNK))
    end, pause = time.monotonic() + DEPLOY_S, 0.1
    while (state := _model(client, model_id)["model_state"]) != "REGISTERED":
        if state != "REGISTERING" or time.monotonic() > end:
            raise DeployError(f"registering {package.name}: the model is {state} after its last chunk")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
    return model_id


def _upload(client: OpenSearch, model_id: str, number: int, chunk: bytes) -> None:
    path = f"/_plugins/_ml/models/{model_id}/upload_chunk/{number}"
    headers = {"content-type": "application/json"}  # which it is not, but another type is refused
    patient(lambda: client.transport.perform_request("POST", path, body=chunk, headers=headers))


def _model(client: OpenSearch, model_id: str) -> dict[str, Any]:
    return patient(lambda: client.ml.get_model(model_id=model_id))


def _remove(client: OpenSearch, model_id: str) -> None:
    patient(lambda: client.ml.undeploy_model(model_id=model_id))
    end = time.monotonic() + DEPLOY_S
    while _model(client, model_id)["model_state"] in ("DEPLOYED", "PARTIALLY_DEPLOYED", "DEPLOYING"):
        if time.monotonic() > end:
            raise DeployError(f"model {model_id} is still in use after {DEPLOY_S:.0f} s")
        time.sleep(0.2)
    patient(lambda: client.ml.delete_model(model_id=model_id))


def _group(client: OpenSearch, name: str) -> str:
    if found := _find_group(client, name):
        return found
    body = {"name": name, "description": "Versions of one model of nblib."}
    return client.ml.register_model_group(body=body)["model_group_id"]


def _find_group(client: OpenSearch, name: str) -> str:
    query = {"size": 1, "query": {"term": {"name.keyword": name}}}
    try:
        hits = client.ml.search_model_group(body=query)["hits"]["hits"]
    except NotFoundError:
        return ""
    return hits[0]["_id"] if hits else ""
