"""Start and stop one OpenSearch node on this machine's loopback: python -m nblib.opensearch.node up | down.

For tests, 07 and trials: without security, since nothing but this machine reaches it.
"""

import argparse
import atexit
import json
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nblib.data.collections import data_home
from nblib.files import read_json, write_json
from nblib.opensearch.assemble import VERSION, NoServer, assemble, find_tools
from nblib.opensearch.process import free_port, launch, settle
from nblib.run.lock import locked

PORT = 9200
START_S = 180
STOP_S = 60


@dataclass(frozen=True)
class Node:
    """A node that was started: its address, its process, and the folder of its data, logs and settings."""

    url: str
    pid: int
    folder: Path

    def alive(self) -> bool:
        """Tell whether the process is there and is a server, not one that got its number since."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False
        return str(self.folder).encode() in words

    def stop(self) -> None:
        """End the node in order; what it holds stays in its folder for the next start."""
        self._signal(signal.SIGTERM)
        if not _within(STOP_S, lambda: not self.alive()):
            self.kill()

    def kill(self) -> None:
        """End the node as a power cut would."""
        self._signal(signal.SIGKILL)
        _within(STOP_S, lambda: not self.alive())

    def _signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)


def server_folder() -> Path:
    """Name the folder of downloads and data: NBLIB_OPENSEARCH, or opensearch beside cached collections.

    Root starts the server as nobody, who has to reach the folder: where a cache in root's home is closed to
    others, it is nblib-opensearch in the folder for temporary files.
    """
    if given := os.environ.get("NBLIB_OPENSEARCH"):
        return Path(given).absolute()
    folder = data_home() / "opensearch"
    held = [place for place in folder.parents if place.exists()]
    if os.geteuid() == 0 and not all(place.stat().st_mode & 0o001 for place in held):
        folder = Path(tempfile.gettempdir()) / "nblib-opensearch"
        folder.mkdir(mode=0o755, exist_ok=True)
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid or state.st_mode & 0o022:
            raise NoServer(
                f"{folder} is open to others: remove it, or set NBLIB_OPENSEARCH to another folder"
            )
    return folder


def start(
    name: str = "node",
    port: int = 0,
    heap: str = "1g",
    base: Path | None = None,
    fresh: bool = False,
    bound: bool = False,
    say: Callable[[str], None] = print,
) -> Node:
    """Start a node, laying the server out first if need be, and wait until it answers.

    Args:
        name: of its folder under base/nodes; a node that runs there is returned as it is, whatever its port;
            data of an earlier one are taken up.
        port: of HTTP; 0 takes a free one.
        heap: of Java, such as "1g"; full-size models want 2g: with less, ML Commons answers 429 to them.
        base: see server_folder.
        fresh: without the data of an earlier one; one that runs is ended.
        bound: it ends with the thread that calls, even if that is killed.
        say: takes a line before the long parts.

    Raises:
        NoServer: Java or Maven is missing, a part cannot be fetched, or the node ended; holds its last words.
    """
    base = base or server_folder()
    folder = base / "nodes" / name
    with locked(folder, wait=True):
        if found := running(name, base):
            if not fresh:
                say(f"OpenSearch runs already, at {found.url}, pid {found.pid}")
                return found
            found.kill()
        if fresh:
            shutil.rmtree(folder / "data", ignore_errors=True)
        tools = find_tools()
        home = assemble(base / f"home-{VERSION}", tools.maven, say)
        port = free_port(port)
        settle(folder, home, port)
        with open(folder / "logs" / "stdout.log", "wb") as log:
            process = launch(tools.java, home, folder, heap, log, bound)
        node = Node(f"http://127.0.0.1:{port}", process.pid, folder)
        write_json(folder / "node.json", {"url": node.url, "pid": node.pid})
        begun = time.perf_counter()
        answers = lambda: process.poll() is not None or _healthy(node)  # noqa: E731
        if not _within(START_S, answers) or process.poll() is not None:
            node.kill()
            raise NoServer(f"the node did not start: {_last_words(folder)}")
        say(f"OpenSearch {VERSION} at {node.url}, pid {node.pid}, {time.perf_counter() - begun:.0f} s")
    return node


def given_or_own(keep: bool = False) -> str:
    """Name the cluster to work with.

    OPENSEARCH_URL if it is set; else what answers on 127.0.0.1:9200; else the node of `make opensearch-up`;
    else one that is started now.

    Args:
        keep: start it as `make opensearch-up` does, so that it stays; else it ends with this process, and its
            data go.
    """
    if given := os.environ.get("OPENSEARCH_URL"):
        return given
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return f"http://127.0.0.1:{PORT}"
    if keep or running():
        return start(port=PORT, heap="2g").url
    _end_orphans()
    node = start(f"of-{os.getpid()}", heap="2g", bound=True)
    atexit.register(end, node)
    return node.url


def end(node: Node) -> None:
    """Stop a node and remove its data."""
    node.stop()
    shutil.rmtree(node.folder, ignore_errors=True)


def _end_orphans() -> None:
    """Remove what nodes left whose processes were killed before they could, and end those that still run."""
    for folder in (server_folder() / "nodes").glob("of-*"):
        if not Path(f"/proc/{folder.name.removeprefix('of-')}").exists():
            end(running(folder.name) or Node("", 0, folder))


def running(name: str = "node", base: Path | None = None) -> Node | None:
    """Find the node of this name if it runs."""
    folder = (base or server_folder()) / "nodes" / name
    if not (folder / "node.json").exists():
        return None
    held = read_json(folder / "node.json")
    node = Node(held["url"], held["pid"], folder)
    return node if node.alive() else None


def _healthy(node: Node) -> bool:
    """Tell whether this very process answers; never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{node.url}/_cluster/health?wait_for_status=yellow&timeout=5s", timeout=10):
            pass
        with opener.open(f"{node.url}/_nodes/_local/process", timeout=10) as answer:
            (own,) = json.load(answer)["nodes"].values()
        return own["process"]["id"] == node.pid
    except (OSError, ValueError, KeyError):
        return False


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (held := done()) and time.monotonic() < end:
        time.sleep(0.2)
    return held


def _last_words(folder: Path) -> str:
    words = (folder / "logs" / "stdout.log").read_text(errors="replace").strip()
    if not words and (log := folder / "logs" / "node.log").exists():
        words = log.read_text(errors="replace").strip()
    said = "\n".join(line for line in words.splitlines() if not line.startswith(("\tat ", "WARNING:")))
    return f"{said[-1500:] or 'it said nothing'} (logs: {folder / 'logs'})"


def main(argv: list[str] | None = None) -> int:
    """Start or stop the node from the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m nblib.opensearch.node", description=__doc__.splitlines()[0])
    top.add_argument("action", choices=["up", "down"])
    top.add_argument("--port", type=int, default=PORT, help="of HTTP on 127.0.0.1; 0 takes a free one (9200)")
    top.add_argument("--heap", default="2g", help="of Java (2g)")
    options = top.parse_args(argv)
    if options.action == "down":
        node = running()
        if node:
            node.stop()
        print(f"stopped {node.url}; its data stay in {node.folder}" if node else "no node is running")
        return 0
    try:
        start(port=options.port, heap=options.heap)
    except NoServer as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
