"""Bring the zips of 06 into a cluster and keep them there once: register, deploy, try, replace, remove."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConflictError, NotFoundError, RequestError

from nblib.opensearch.client import patient
from nblib.opensearch.zips import Package

CHUNK = 10_000_000  # bytes of a model that are uploaded at a time, the most that ML Commons takes
DEPLOY_S = 600.0
SEEN_S = 30.0  # after which searches surely no longer see what was deleted
WHOLE = {"REGISTERED", "DEPLOYING", "DEPLOYED", "PARTIALLY_DEPLOYED", "UNDEPLOYED", "DEPLOY_FAILED"}
Say = Callable[[str], None]


class DeployError(RuntimeError):
    """The cluster gave a task up; holds what it said."""


@dataclass(frozen=True)
class Deployed:
    """A model in the cluster.

    name: as in the zip's configuration. number: which version of its group, counted by the cluster.
    model_id: by which pipelines and queries call it. group_id: holds all versions of one name. fresh: it was
    uploaded by this call, False = it was there. fresh_group: and so for the group.
    """

    name: str
    number: str
    model_id: str
    group_id: str
    fresh: bool
    fresh_group: bool


def deploy(client: OpenSearch, package: Package, url: str = "", say: Say = print) -> Deployed:
    """Bring a model into the cluster, ready to be called; one that is there is not uploaded again.

    A model is known again by its bytes. One that an earlier call left half uploaded, or that failed, is
    removed first, so no two calls may upload one zip at the same time. Other versions of the name stay, and
    in use: see `retire`.

    Args:
        client: see nblib.opensearch.client.connect.
        package: a checked zip.
        url: where the cluster fetches the zip by itself (https://, or file:// if its settings allow it); ""
            uploads it in chunks.
        say: takes a line before each long part.

    Raises:
        DeployError: the cluster gave up, or its settings do not allow it; holds what it said and the cure.
        TransportError: the cluster refused a call.
    """
    group_id, fresh_group = _find_group(client, package.name), False
    if not group_id:
        body = {"name": package.name, "description": "Versions of one model of nblib."}
        group_id, fresh_group = client.ml.register_model_group(body=body)["model_group_id"], True
    fresh, model_id = False, ""
    for row in versions(client, package.name):
        if row["hash"] != package.digest:
            continue
        if row["state"] in WHOLE:
            model_id = row["model_id"]
        else:
            say(f"{package.name}: an upload that was not finished is removed")
            _remove(client, row["model_id"])
    if not model_id:
        fresh = True
        say(f"{package.name}: {package.file.stat().st_size / 1e6:,.1f} MB go to the cluster")
        model_id = _register(client, package, group_id, url)
    model = _model(client, model_id)
    if model["model_state"] == "DEPLOYING":  # by a call that was interrupted, or another's
        model = _wait_for_state(client, model_id, "DEPLOYING")
    if model["model_state"] != "DEPLOYED":
        task = patient(lambda: client.ml.deploy_model(model_id=model_id))
        wait_for(client, task["task_id"], f"deploying {package.name}")
    say(f"{package.name}: {model_id}, version {model['model_version']}, {'new' if fresh else 'was there'}")
    return Deployed(package.name, model["model_version"], model_id, group_id, fresh, fresh_group)


def versions(client: OpenSearch, name: str) -> list[dict[str, Any]]:
    """List what the cluster holds under a model's name: rows of model_id, number, hash, state."""
    query = {
        "size": 1000,
        "_source": False,
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
    models = {hit["_id"]: _model(client, hit["_id"]) for hit in hits}  # a search may see what is deleted
    held = {model_id: model for model_id, model in models.items() if model}
    return [
        {"model_id": i} | {name: model.get(key) for name, key in keys.items()} for i, model in held.items()
    ]


def retire(client: OpenSearch, kept: Deployed, say: Say = print) -> list[str]:
    """Undeploy and delete every other version of a model; returns their ids.

    Call it when pipelines and queries name the new one.
    """
    others = [row for row in versions(client, kept.name) if row["model_id"] != kept.model_id]
    for row in others:
        _remove(client, row["model_id"])
        say(f"{kept.name}: {row['model_id']}, version {row['number']}, is removed")
    return [row["model_id"] for row in others]


def withdraw(client: OpenSearch, found: Deployed) -> bool:
    """Take back what `deploy` brought, and no more: a model that was there before it stays.

    Returns:
        Whether the model was removed.
    """
    if found.fresh:
        _remove(client, found.model_id)
    if found.fresh_group and not versions(client, found.name):
        _remove_group(client, found.group_id)
    return found.fresh


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
        task = _allowed(lambda: client.ml.register_model(body=body | {"url": url}), "via_url")
        return wait_for(client, task["task_id"], f"registering {package.name}")["model_id"]
    size = package.file.stat().st_size
    body |= {"total_chunks": math.ceil(size / CHUNK), "model_content_size_in_bytes": size}
    model_id = _allowed(lambda: client.ml.register_model_meta(body=body), "via_local_file")["model_id"]
    with open(package.file, "rb") as file:
        for number in range(body["total_chunks"]):
            _upload(client, model_id, number, file.read(CHUNK))
    state = _wait_for_state(client, model_id, "REGISTERING").get("model_state", "gone")
    if state != "REGISTERED":
        raise DeployError(f"registering {package.name}: the model is {state} after its last chunk")
    return model_id


def _allowed(call: Callable[[], dict[str, Any]], way: str) -> dict[str, Any]:
    """Make a call that a cluster allows only if it was told to; by default it was not."""
    try:
        return patient(call)
    except RequestError as error:
        if "user needs to enable" not in str(error):
            raise
        setting = f"plugins.ml_commons.allow_registering_model_{way}"
        raise DeployError(
            f"the cluster does not take models this way: set {setting} to true (PUT /_cluster/settings, or "
            "opensearch.yml)"
        ) from None


def _wait_for_state(client: OpenSearch, model_id: str, passing: str) -> dict[str, Any]:
    """Wait until a model is in another state than the one that passes; returns it, {} if it is gone."""
    end, pause = time.monotonic() + DEPLOY_S, 0.1
    while (model := _model(client, model_id)).get("model_state") == passing:
        if time.monotonic() > end:
            raise DeployError(f"model {model_id} is still {passing} after {DEPLOY_S:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
    return model


def _upload(client: OpenSearch, model_id: str, number: int, chunk: bytes) -> None:
    path = f"/_plugins/_ml/models/{model_id}/upload_chunk/{number}"
    headers = {"content-type": "application/json"}  # which it is not, but another type is refused
    patient(lambda: client.transport.perform_request("POST", path, body=chunk, headers=headers))


def _model(client: OpenSearch, model_id: str) -> dict[str, Any]:
    """Read a model's row; {} if there is none."""
    try:
        return patient(lambda: client.ml.get_model(model_id=model_id))
    except NotFoundError:
        return {}


def _remove(client: OpenSearch, model_id: str) -> None:
    """Undeploy and delete a model; one that is gone meanwhile is no error."""
    try:
        _wait_for_state(client, model_id, "DEPLOYING")
        patient(lambda: client.ml.undeploy_model(model_id=model_id))
        for state in ("DEPLOYED", "PARTIALLY_DEPLOYED"):
            _wait_for_state(client, model_id, state)
        patient(lambda: client.ml.delete_model(model_id=model_id))
    except NotFoundError:
        pass


def _find_group(client: OpenSearch, name: str) -> str:
    query = {"size": 1, "query": {"term": {"name.keyword": name}}}
    try:
        hits = client.ml.search_model_group(body=query)["hits"]["hits"]
    except NotFoundError:
        return ""
    return hits[0]["_id"] if hits else ""
