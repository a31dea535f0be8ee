"""A connection to the cluster that the environment names, and calls that wait where the cluster asks for it.

OPENSEARCH_URL (http://127.0.0.1:9200), OPENSEARCH_USER, OPENSEARCH_PASSWORD, OPENSEARCH_CA (a file with the
certificate authority's certificate), OPENSEARCH_INSECURE=1 (certificates are not verified, and a password may
pass unencrypted).
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from opensearchpy import OpenSearch
from opensearchpy.exceptions import (
    AuthenticationException,
    ConnectionError,
    SerializationError,
    SSLError,
    TransportError,
)

URL = "http://127.0.0.1:9200"
NEEDED = {  # plugin -> what for
    "opensearch-ml": "models in the cluster",
    "opensearch-neural-search": "neural_sparse queries",
    "opensearch-knn": "what neural search builds on",
}
FIRST_S = 10.0  # after which an address that does not answer the first call is given up
CONNECTIONS = 32  # at a time
BUSY = (429, 503)  # a circuit breaker, a full queue: another try may be let in
Found = TypeVar("Found")
logging.getLogger("opensearch").addHandler(logging.NullHandler())  # what it logs, it raises, too


class NoCluster(RuntimeError):
    """The cluster cannot be reached or lacks a part; says what to do."""


def connect(url: str = "", timeout_s: float = 60.0) -> OpenSearch:
    """Connect to a cluster, and make sure that it answers.

    Name and password come from the environment only, so that no notebook, manifest or log holds them.

    Args:
        url: of a node; "" takes OPENSEARCH_URL.
        timeout_s: of one request.

    Raises:
        NoCluster: out of reach, its certificate is not trusted, or name and password are not accepted.
        ValueError: an address that holds a password, or that is none.
    """
    url = url or os.environ.get("OPENSEARCH_URL") or URL
    if "@" in url:  # not repeated in the message
        raise ValueError(
            "OPENSEARCH_URL holds a name or a password, and addresses are printed: "
            "set OPENSEARCH_USER and OPENSEARCH_PASSWORD instead"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a node: want http://host:9200 or https://host:9200")
    port = parts.port or (443 if parts.scheme == "https" else 9200)
    client = OpenSearch(
        [{"host": parts.hostname, "port": port, "url_prefix": parts.path.strip("/")}],
        timeout=timeout_s,
        pool_maxsize=CONNECTIONS,
        http_compress=True,
        max_retries=3,
        retry_on_timeout=False,  # the cluster may be at it still, and not every call may be made twice
        **_security(url),
    )
    try:
        client.info(request_timeout=min(FIRST_S, timeout_s))
    except SSLError as error:
        raise NoCluster(
            f"{url}: its certificate is not trusted ({error.info}); set OPENSEARCH_CA to the file of its "
            "authority"
        ) from None
    except AuthenticationException:
        raise NoCluster(f"{url} does not accept OPENSEARCH_USER and OPENSEARCH_PASSWORD") from None
    except ConnectionError as error:
        raise NoCluster(
            f"{url} does not answer ({type(error.info).__name__}): `make opensearch-up` starts a node here, "
            "or set OPENSEARCH_URL"
        ) from None
    except (TransportError, SerializationError) as error:
        raise NoCluster(f"{url} answers, but not as OpenSearch does to one who may use it: {error}") from None
    return client


def _security(url: str) -> dict:
    user, password = (os.environ.get(f"OPENSEARCH_{name}", "") for name in ("USER", "PASSWORD"))
    if bool(user) != bool(password):
        raise ValueError("set both of OPENSEARCH_USER and OPENSEARCH_PASSWORD, or none")
    options: dict = {"http_auth": (user, password)} if user else {}
    ca, insecure = os.environ.get("OPENSEARCH_CA", ""), os.environ.get("OPENSEARCH_INSECURE") == "1"
    if urlsplit(url).scheme == "http":
        if user and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1") and not insecure:
            raise ValueError(
                f"{url} is not encrypted, and the password would pass in the clear: use https://"
            )
        return options
    if ca and not Path(ca).is_file():
        raise ValueError(f"OPENSEARCH_CA: {ca} is no file")
    if insecure:
        print(f"NOTE the certificate of {url} is not verified: OPENSEARCH_INSECURE=1")
    return options | {
        "use_ssl": True,
        "verify_certs": not insecure,
        "ssl_show_warn": False,
        "ca_certs": ca or None,
    }


def require_plugins(client: OpenSearch) -> str:
    """Make sure that every node can hold models and search them; returns the server's version.

    Raises:
        NoCluster: names the plugin that lacks and what for.
    """
    held: dict[str, set[str]] = {}
    for row in client.cat.plugins(format="json"):
        held.setdefault(row["name"], set()).add(row["component"])
    for node in (row["name"] for row in client.cat.nodes(format="json", h="name")):
        for plugin, purpose in NEEDED.items():
            if plugin not in held.get(node, set()):
                raise NoCluster(
                    f"node {node} lacks the plugin {plugin} ({purpose}); the full distribution has it, the "
                    "minimal one does not"
                )
    return client.info()["version"]["number"]


def patient(call: Callable[[], Found], wait_s: float = 120.0, first_s: float = 0.5) -> Found:
    """Make a call, again while the cluster says that it is busy, with pauses that double up to 10 seconds.

    Raises:
        TransportError: another error, or still busy after wait_s.
    """
    end, pause = time.monotonic() + wait_s, first_s
    while True:
        try:
            return call()
        except TransportError as error:
            if error.status_code not in BUSY or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)
