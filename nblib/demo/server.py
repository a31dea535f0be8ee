"""A search page on this machine: type a query, see BM25 and the model side by side."""

import argparse
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from nblib.data.collections import data_home
from nblib.demo.cluster import LexicalThere, SparseThere, check_index
from nblib.demo.engines import Engine, Hit, Lexical, Sparse
from nblib.demo.page import LONGEST, page
from nblib.experiment import load_eval_set
from nblib.files import ROOT
from nblib.opensearch.client import NoCluster, connect
from nblib.opensearch.modes import SearchError
from nblib.query_side import query_side
from nblib.systems import System, find_input, learned_sparse

HITS = 10
Prepared = tuple[str, str, Callable[[], list[Engine]]]  # a note, a query to try, and what makes the engines
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_server(engines: list[Engine], title: str, note: str, port: int) -> ThreadingHTTPServer:
    """Bind the page to 127.0.0.1; nothing but this machine reaches it.

    Args:
        engines: may be filled before the first request.
        title, note: of the page.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    turn = Lock()  # a model's network is not asked by two threads at once

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer a search."""
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in ("127.0.0.1", "localhost"):  # another site's name that was led here
                self._send(403, "<!doctype html><p>ask for 127.0.0.1 or localhost</p>")
                return
            address = urlsplit(self.path)
            if address.path != "/":
                self._send(404, "<!doctype html><p>there is one page only: /</p>")
                return
            try:
                asked = parse_qs(address.query, max_num_fields=10).get("q", [""])[0]
            except ValueError:
                self._send(400, "<!doctype html><p>ask as the page does: /?q=words</p>")
                return
            query = " ".join(asked[:LONGEST].split())
            try:
                with turn:
                    found = [timed(engine, query) for engine in engines] if query else []
            except SearchError as error:
                self._send(502, page(title, query, [], f"No answer: {error}"))
                return
            self._send(200, page(title, query, found, note))

        def _send(self, status: int, text: str) -> None:
            body = text.encode("utf-8", "replace")
            self.send_response(status)
            for name, value in (HEADERS | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args) -> None:
            """Queries are nobody's business."""

    return ThreadingHTTPServer(("127.0.0.1", port), Page)


def timed(engine: Engine, query: str) -> tuple[str, list[Hit], float]:
    """Search, and say how many milliseconds the search took, without its explanation."""
    begun = time.perf_counter()
    found = engine.find(query, HITS)
    took = 1000 * (time.perf_counter() - begun)
    return engine.name, engine.show(query, found), took


def main(argv: list[str] | None = None) -> int:
    """Read model and corpus, then serve until interrupted; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m nblib.demo", description=__doc__)
    quick = ROOT / "outputs" / "quick"
    top.add_argument(
        "--model", default=str(quick / "04_finetune"), help="of 04's run, or of the model itself"
    )
    top.add_argument("--idf", default=str(quick / "02_idf"), help="of 02's run, or an idf.json")
    top.add_argument("--index", default="", help="search this index of a cluster in place of --dataset")
    top.add_argument("--data", default=str(quick / "01_data_prep"), help="01's run, for built sets by name")
    top.add_argument("--dataset", default="api-docs-test", help="built set, BEIR folder or collection")
    top.add_argument("--split", default="test", help="of its judgements")
    top.add_argument(
        "--analyzer", default="english", choices=["english", "korean", "whitespace"], help="of BM25, here"
    )
    top.add_argument("--max-length", type=int, default=64, help="tokens of a document that the model sees")
    top.add_argument("--port", type=int, default=8765, help="on 127.0.0.1; 0 takes a free one")
    options = top.parse_args(argv)
    try:
        model, idf = find_input("model_dir", options.model), find_input("idf_dir", options.idf)
        cache = data_home() / "demo"
        system = learned_sparse("finetuned", model, idf, options.max_length, 32, cache)
        note, example, make = (_there if options.index else _here)(options, system, cache)
        engines: list[Engine] = []
        server = make_server(engines, "BM25 and learned sparse search, side by side", note, options.port)
    except (OSError, ValueError, NoCluster, SearchError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(note)
    engines += make()
    try:
        for engine in engines:
            engine.search(example, HITS)  # the first search compiles and loads
    except SearchError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended")
    return 0


def _here(options: argparse.Namespace, system: System, cache: Path) -> Prepared:
    """Search a set in this process; documents that were never encoded are encoded."""
    data = load_eval_set(options.dataset, options.data, options.split)

    def make() -> list[Engine]:
        print("documents that were never encoded are encoded now")
        sparse = Sparse(data.doc_ids, data.texts, system, options.max_length, cache / "index")
        return [Lexical(data.doc_ids, data.texts, options.analyzer), sparse]

    example = data.queries[0]
    note = f"{len(data.texts):,} documents of {data.name}, in this process. Try: {example}"
    return note, example, make


def _there(options: argparse.Namespace, system: System, cache: Path) -> Prepared:
    """Search an index of a cluster; the model's network is not asked."""
    model = find_input("model_dir", options.model)
    if query_side(model) == "siamese":
        raise ValueError(f"{model} is siamese: its queries are no weighted tokens; leave --index out")
    cluster = connect()
    note = f"{check_index(cluster, options.index):,} documents of the index {options.index}"
    engines = [
        LexicalThere(cluster, options.index),
        SparseThere(cluster, options.index, system, options.max_length),
    ]
    return note, "example", lambda: engines
