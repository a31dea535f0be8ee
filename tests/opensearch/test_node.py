"""The node: found again, data kept, refused in words where it cannot be started."""

import os
import shutil
import socket
import stat
import subprocess
import sys

import pytest

from nblib.files import ROOT, read_json
from nblib.opensearch import assemble
from nblib.opensearch import node as nodes
from nblib.opensearch.assemble import NoServer, find_tools


def program(path, said):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{said}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with neither Java nor Maven."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("JAVA_HOME", "OPENSEARCH_JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(assemble.platform, "system", lambda: "Linux")
    monkeypatch.setattr(assemble.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(assemble, "JAVA_FOLDERS", tmp_path / "jvm")
    return tmp_path


def test_tools_that_lack_are_named(bare, monkeypatch):
    with pytest.raises(NoServer, match="needs Java 21 or newer; none was found"):
        find_tools()
    old = program(bare / "jvm" / "java-17" / "bin" / "java", "echo 'openjdk version \"17.0.9\"' >&2")
    with pytest.raises(NoServer, match="needs Java 21 or newer; the newest found is 17"):
        find_tools()
    new = program(bare / "jvm" / "java-21" / "bin" / "java", "echo 'openjdk version \"21.0.1\"' >&2")
    with pytest.raises(NoServer, match=r"Maven \(mvn\) is not on the PATH"):
        find_tools()
    maven = program(bare / "bin" / "mvn", "exit 0")
    assert (find_tools().java, find_tools().maven) == (new, maven)
    monkeypatch.setenv("JAVA_HOME", str(old.parent.parent))
    assert find_tools().java == new, "the newest, whatever JAVA_HOME says"
    monkeypatch.setattr(assemble.platform, "system", lambda: "Darwin")
    with pytest.raises(NoServer, match=r"on Linux, x86-64, only.*docker compose up"):
        find_tools()


def test_a_failed_download_leaves_nothing_half_done(tmp_path):
    maven = program(tmp_path / "mvn", "echo '[ERROR] Could not transfer artifact'; exit 1")
    with pytest.raises(
        NoServer, match="(?s)could not fetch the server's parts:.*Could not transfer artifact"
    ):
        assemble.assemble(tmp_path / "base" / "home", maven, say=lambda line: None)
    assert [p.name for p in (tmp_path / "base").iterdir()] == [".lock"]


def test_a_running_node_is_found_again(node, capsys):
    name = node.folder.name
    found = nodes.start(name)
    assert found == nodes.running(name) and found.url == node.url
    assert f"runs already, at {node.url}" in capsys.readouterr().out
    assert nodes.running("another name") is None


def test_a_process_number_that_another_has_got_is_no_node(tmp_path, monkeypatch):
    other = nodes.Node("http://127.0.0.1:1", os.getpid(), tmp_path / "nodes" / "x")
    assert not other.alive()
    ended = []
    monkeypatch.setattr(nodes.os, "kill", lambda *args: ended.append(args))
    other.kill()
    assert not ended


def test_root_needs_a_folder_that_nobody_reaches(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_OPENSEARCH", str(tmp_path / "mine"))
    assert nodes.server_folder() == tmp_path / "mine"
    monkeypatch.delenv("NBLIB_OPENSEARCH")
    monkeypatch.setenv("NBLIB_DATA", str(tmp_path / "closed" / "cache"))
    (tmp_path / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(nodes.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(nodes.os, "geteuid", lambda: 1000)
    assert nodes.server_folder() == tmp_path / "closed" / "cache" / "opensearch"
    monkeypatch.setattr(nodes.os, "geteuid", lambda: 0)
    (tmp_path / "nblib-opensearch").mkdir()
    (tmp_path / "nblib-opensearch").chmod(0o777)
    with pytest.raises(NoServer, match="is open to others: remove it, or set NBLIB_OPENSEARCH"):
        nodes.server_folder()
    (tmp_path / "nblib-opensearch").rmdir()
    if os.getuid() == 0:
        assert nodes.server_folder() == tmp_path / "nblib-opensearch"


def test_a_port_that_is_taken_is_said(tmp_path, monkeypatch):
    """Else another server's answer would be taken for the node's."""
    monkeypatch.setattr(nodes, "find_tools", lambda: assemble.Tools(tmp_path / "java", tmp_path / "mvn"))
    (tmp_path / "home-3.6.0").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(NoServer, match=f"port {other.getsockname()[1]} of 127.0.0.1 is taken"):
            nodes.start("x", port=other.getsockname()[1], base=tmp_path, say=lambda line: None)


def test_another_processs_answer_is_not_the_nodes(node):
    found = nodes.running(node.folder.name)  # another test may have killed the first one
    assert nodes._healthy(found)
    assert not nodes._healthy(nodes.Node(found.url, found.pid + 1, found.folder))


def test_where_a_cluster_is_looked_for(node, monkeypatch):
    monkeypatch.setenv("OPENSEARCH_URL", "https://search.example")
    assert nodes.given_or_own() == "https://search.example"
    monkeypatch.delenv("OPENSEARCH_URL")
    port = int(node.url.rsplit(":", 1)[1])
    monkeypatch.setattr(nodes, "PORT", port)  # as if a container were there
    monkeypatch.setattr(nodes, "start", None)
    assert nodes.given_or_own() == node.url


def test_nodes_of_killed_processes_are_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("NBLIB_OPENSEARCH", str(tmp_path))
    for name in ("of-4194999", f"of-{os.getpid()}", "node"):  # the first is above what Linux gives
        (tmp_path / "nodes" / name / "data").mkdir(parents=True)
    nodes._end_orphans()
    assert sorted(p.name for p in (tmp_path / "nodes").iterdir()) == ["node", f"of-{os.getpid()}"]


START = """
import os
from nblib.opensearch.node import start
start(f"of-{os.getpid()}", fresh=True, bound=True)
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv here: util-linux has it")
def test_a_node_ends_with_a_process_that_is_killed(node):
    parent = subprocess.Popen([sys.executable, "-c", START], cwd=ROOT)
    name = f"of-{parent.pid}"
    folder = nodes.server_folder() / "nodes" / name
    try:
        assert nodes._within(120, (folder / "node.json").exists)
        held = nodes.Node("", read_json(folder / "node.json")["pid"], folder)
        assert nodes._within(30, held.alive), "java has not begun"
        parent.kill()
        parent.wait()
        assert nodes._within(60, lambda: not held.alive())
    finally:
        parent.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_ends_says_why(tmp_path, monkeypatch):
    java = program(tmp_path / "java", "echo 'java.lang.IllegalStateException: no such memory'; exit 3")
    (tmp_path / "base" / "home-3.6.0").mkdir(parents=True)
    (tmp_path / "base" / "home-3.6.0" / "libdjl_torch.so").write_bytes(b"")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(nodes, "find_tools", lambda: assemble.Tools(java, tmp_path / "mvn"))
    monkeypatch.setattr(nodes.os, "geteuid", lambda: 1000)
    with pytest.raises(NoServer, match=r"the node did not start: .*no such memory \(logs: "):
        nodes.start("x", base=tmp_path / "base", say=lambda line: None)
    assert nodes.running("x", tmp_path / "base") is None
