"""Connections: refused in words, verified by default, without a secret where it could be read."""

import http.server
import shutil
import ssl
import subprocess
import threading
from base64 import b64encode

import pytest
from opensearchpy.exceptions import TransportError

from nblib.opensearch.client import NoCluster, connect, patient, require_plugins

PASSWORD = "Tr0ub4dor&3"


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers whoever has the name and the password."""

    def do_GET(self):
        known = self.headers["Authorization"] == "Basic " + b64encode(f"admin:{PASSWORD}".encode()).decode()
        body = b'{"version": {"number": "3.6.0", "distribution": "opensearch"}}' if known else b"{}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Serve TLS on the loopback by a certificate of its own; (address, certificate)."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    name = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, *name], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", certificate
    server.shutdown()


@pytest.fixture
def clean(monkeypatch):
    for name in ("URL", "USER", "PASSWORD", "CA", "INSECURE"):
        monkeypatch.delenv(f"OPENSEARCH_{name}", raising=False)
    return monkeypatch


def test_a_certificate_is_verified_unless_told_otherwise(guarded, clean, capsys):
    url, certificate = guarded
    clean.setenv("OPENSEARCH_USER", "admin")
    clean.setenv("OPENSEARCH_PASSWORD", PASSWORD)
    with pytest.raises(NoCluster, match="its certificate is not trusted.*set OPENSEARCH_CA"):
        connect(url)
    clean.setenv("OPENSEARCH_CA", str(certificate))
    assert connect(url).info()["version"]["number"] == "3.6.0"
    clean.setenv("OPENSEARCH_INSECURE", "1")
    clean.delenv("OPENSEARCH_CA")
    assert connect(url).info()["version"]["number"] == "3.6.0"
    assert "is not verified: OPENSEARCH_INSECURE=1" in capsys.readouterr().out


def test_name_and_password_come_from_the_environment_and_stay_there(guarded, clean, capsys):
    url, certificate = guarded
    clean.setenv("OPENSEARCH_CA", str(certificate))
    with pytest.raises(NoCluster, match="does not accept OPENSEARCH_USER and OPENSEARCH_PASSWORD"):
        connect(url)
    clean.setenv("OPENSEARCH_USER", "admin")
    with pytest.raises(ValueError, match="set both of"):
        connect(url)
    clean.setenv("OPENSEARCH_PASSWORD", "another")
    with pytest.raises(NoCluster, match="does not accept"):
        connect(url)
    clean.setenv("OPENSEARCH_PASSWORD", PASSWORD)
    clean.setenv("OPENSEARCH_URL", url)
    client = connect()
    assert PASSWORD not in repr(client) + str(client.transport) + capsys.readouterr().out
    for address in (url.replace("://", f"://admin:{PASSWORD}@"), f"admin:{PASSWORD}@localhost:9200"):
        with pytest.raises(ValueError, match="holds a name or a password") as told:
            connect(address)
        assert PASSWORD not in str(told.value)


def test_a_password_does_not_pass_in_the_clear(clean):
    clean.setenv("OPENSEARCH_USER", "admin")
    clean.setenv("OPENSEARCH_PASSWORD", PASSWORD)
    with pytest.raises(ValueError, match="http://search.example:9200 is not encrypted.*use https://"):
        connect("http://search.example:9200")
    with pytest.raises(NoCluster, match="does not answer"):
        connect("http://127.0.0.1:1")  # the loopback is heard by nobody else


def test_what_is_not_there_is_said(clean, tmp_path):
    with pytest.raises(NoCluster, match=r"127.0.0.1:1 does not answer.*make opensearch-up.*OPENSEARCH_URL"):
        connect("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="'localhost:9200' is no address of a node: want http://host:9200"):
        connect("localhost:9200")
    clean.setenv("OPENSEARCH_CA", str(tmp_path / "gone.pem"))
    with pytest.raises(ValueError, match=r"OPENSEARCH_CA: .*gone.pem is no file"):
        connect("https://localhost:9200")


def test_a_busy_cluster_is_asked_again():
    answers = [TransportError(429, "circuit_breaking_exception"), TransportError(503, "busy"), "done"]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patient(call, first_s=0.01) == "done" and not answers
    answers += [TransportError(429, "still")] * 5
    with pytest.raises(TransportError, match="still"):
        patient(call, wait_s=0.05, first_s=0.02)
    answers[:] = [TransportError(400, "wrong"), "unread"]
    with pytest.raises(TransportError, match="wrong"):
        patient(call, first_s=0.01)
    assert answers == ["unread"]


def test_the_real_node_has_what_is_needed(client):
    assert require_plugins(client) == "3.6.0"


def test_a_node_without_the_plugins_is_refused(client, monkeypatch):
    rows = [row for row in client.cat.plugins(format="json") if row["component"] != "opensearch-ml"]
    monkeypatch.setattr(client.cat, "plugins", lambda **_: rows)
    with pytest.raises(
        NoCluster, match=r"node node lacks the plugin opensearch-ml \(models in the cluster\)"
    ):
        require_plugins(client)
