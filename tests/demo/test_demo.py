"""The search page: what it shows, what it must not let through, and what a browser makes of it."""

import http.client
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from html import unescape
from urllib.parse import quote

import pytest

from nblib.demo.engines import Lexical, Part, Sparse, split
from nblib.demo.page import SHOWN, _window
from nblib.demo.server import main, make_server
from nblib.systems import learned_sparse
from tests.steps import TEXTS

HOSTILE = 'Bake <script>document.title="taken"</script> bread & <b>butter</b> "here"'


@pytest.fixture(scope="module")
def engines(trained, tmp_path_factory):
    texts, folder = [*TEXTS, HOSTILE, "서울은 대한민국의 수도이다."], tmp_path_factory.mktemp("demo")
    ids = [f"d{i}" for i in range(len(texts))]
    model = f"{trained['model_dir']}/artifacts/final_model"
    system = learned_sparse("finetuned", model, f"{trained['idf_dir']}/artifacts/idf.json", 32, 4, folder)
    return [Lexical(ids, texts, "english"), Sparse(ids, texts, system, 32, folder / "index")]


@pytest.fixture(scope="module")
def address(engines):
    server = make_server(engines, "Side by side", "11 documents", port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def get(address, query):
    with urllib.request.urlopen(f"{address}/?q={quote(query)}") as answer:
        return answer.read().decode(), answer.headers


def test_split_covers_the_text():
    text = "bake bread slowly"
    parts = split(text, [(0, 4, 2.0), (5, 10, 1.0), (11, 17, 0.0)])
    assert parts == [Part("bake", 1.0), Part(" "), Part("bread", 0.5), Part(" slowly")]
    assert split("", []) == [Part("")] and split("plain", []) == [Part("plain")]


def test_a_long_text_is_shown_around_its_first_match():
    parts = [Part("x" * 5000), Part("match", 1.0), Part("y" * 5000)]
    shown = "".join(part.text for part in _window(parts))
    assert "match" in shown and len(shown) < SHOWN + 10 and shown.startswith("… ") and shown.endswith(" …")
    assert _window([Part("short"), Part("match", 1.0)]) == [Part("short"), Part("match", 1.0)]


def test_scores_are_the_sum_of_what_is_shown(engines):
    for engine in engines:
        hits = engine.search("bread and butter", 5)
        assert hits, engine.name
        for hit in hits:
            assert sum(match.contribution for match in hit.terms) == pytest.approx(hit.score, rel=1e-4)
            text = engine.texts[engine.doc_ids.index(hit.doc_id)]
            assert "".join(part.text for part in hit.parts) == text
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_words_of_one_stem_are_marked(engines):
    (hit, *_) = engines[0].search("baking breads", 1)
    assert {part.text.lower() for part in hit.parts if part.weight} >= {"bread"}


def test_both_columns_and_the_query_are_on_the_page(address):
    text, _ = get(address, "bread")
    assert "<h2>BM25 " in text and "<h2>Learned sparse " in text and 'value="bread"' in text
    assert "<mark " in text and 'class="chip' in text and "11 documents" in text
    empty, _ = get(address, "   ")
    assert "<h2>" not in empty and "<form>" in empty


def test_texts_and_queries_are_escaped(address):
    query = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    text, headers = get(address, query + " bread butter")
    assert "<script" not in text and "<img" not in text and "<b>" not in text
    assert "alert(1)" in unescape(text) and "document.title" in unescape(
        re.sub(r"</?(mark|span)[^>]*>", "", text)
    )
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("query", ["서울 수도", "?&=%00%ff", "\ud55c" * 4000, "a" * 5000, "[CLS] [SEP] ##s"])
def test_any_query_is_answered(address, query):
    text, _ = get(address, query)
    assert text.endswith("</html>") and len(text) < 100_000


def test_other_hosts_and_pages_are_refused(address):
    port = int(address.rsplit(":", 1)[1])
    for host, status in (("evil.example", 403), ("", 403), ("localhost", 200), ("127.0.0.1:1", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.putrequest("GET", "/?q=bread", skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == status, host
    for path, status in (("/etc/passwd", "404"), ("/?" + "a&" * 20, "400")):
        with pytest.raises(urllib.error.HTTPError, match=status):
            urllib.request.urlopen(address + path)


def test_it_binds_to_this_machine_alone(engines):
    server = make_server(engines, "", "", 0)
    assert server.server_address[0] == "127.0.0.1"
    server.server_close()


def test_what_is_missing_is_said_before_anything_is_encoded(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "no model")]) == 2
    assert "refused: " in (said := capsys.readouterr().err) and "run 04_finetune first" in said


def test_a_browser_draws_it_and_runs_nothing(address, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here")
    common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    url = f"{address}/?q={quote('bread butter <script>document.title=1</script>')}"
    drawn = subprocess.run([*common, "--dump-dom", url], capture_output=True, text=True, timeout=120).stdout
    assert "<title>Side by side</title>" in drawn, "a script would have changed it"
    assert drawn.count("<section>") == 2 and drawn.count("<mark") >= 2
    picture = tmp_path / "page.png"
    subprocess.run(
        [*common, f"--screenshot={picture}", "--window-size=1100,700", url], capture_output=True, timeout=120
    )
    assert picture.stat().st_size > 20_000
