import re
from html.parser import HTMLParser

import nbformat
import pytest

from nblib.files import write_json
from nblib.run.kernel import LiveLine, brief
from nblib.run.report import results_table, write_index, write_report

ROWS = [
    {"dataset": "한국어", "system": "bm25", "ndcg_at_10": 0.4567, "mrr_at_10": 0.4, "recall_at_100": 0.9},
    {
        "dataset": "한국어",
        "system": "<b>&",
        "ndcg_at_10": 0.5,
        "mrr_at_10": 0.5,
        "recall_at_100": 0.95,
        "flops": 1.474,
    }
    | {"d_nnz": 95.2},
]


class Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def run_folder(tmp_path):
    """outputs/<profile> with a finished evaluation, a failed training, and a step that has not run."""
    step = tmp_path / "05_beir_eval"
    record = {
        "status": "ok",
        "wall_s": 75.2,
        "peak_gib": 1.5,
        "git": "abc123-dirty",
        "device": "cpu, 2 cores",
    }
    write_json(step / "manifest.json", record)
    write_json(step / "metrics.json", ROWS)
    failed = {
        "status": "failed",
        "error": "ValueError: <script>alert(1)</script>",
        "wall_s": 5,
        "peak_gib": 0.25,
    }
    write_json(tmp_path / "02_train/manifest.json", failed)
    for path in (step / "figures/ndcg_by_system.png", tmp_path / "02_train/figures/loss.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x89PNG")
    for name in ("report.html", "executed.ipynb"):
        (step / name).write_text("x")
    return tmp_path


def index(folder):
    return write_index(folder, "quick", ["01_make", "02_train", "05_beir_eval"]).read_text(encoding="utf-8")


def test_the_index_links_every_page_and_no_other_host(run_folder):
    page = Page(index(run_folder))
    links = [link for link in page.links if not link.startswith("data:")]
    assert links == [
        "02_train/manifest.json",
        *(f"05_beir_eval/{name}" for name in ("report.html", "executed.ipynb", "manifest.json")),
    ]
    assert all((run_folder / link).exists() for link in links)
    assert "script" not in page.tags and "link" not in page.tags


def test_the_index_escapes_and_shows_korean(run_folder):
    html = index(run_folder)
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert "&lt;b&gt;&amp;" in html and "한국어" in html and '<meta charset="utf-8">' in html
    assert "abc123-dirty" in html and "not run" in html and "1:15" in html and "1.50" in html


def test_the_figures_of_the_evaluation_come_first(run_folder):
    assert re.findall(r'alt="([^"]*)"', index(run_folder)) == [
        "05_beir_eval: ndcg by system",
        "02_train: loss",
    ]


def test_the_best_system_of_a_dataset_stands_out(run_folder):
    assert re.findall(
        r'<tr class="best"><td class="">한국어</td><td class="">(.*?)</td>', index(run_folder)
    ) == ["&lt;b&gt;&amp;"]


def test_an_empty_folder_gives_a_page_too(tmp_path):
    assert index(tmp_path).count('class="not run"') == 3


def test_results_table(run_folder):
    lines = results_table(run_folder).splitlines()
    assert lines[2] == "한국어   bm25      0.457   0.400       0.900      -              -"
    assert lines[3] == "한국어   <b>&      0.500   0.500       0.950   1.47             95"
    assert results_table(run_folder / "nothing") == ""


@pytest.mark.parametrize("text", ["plain words", "an equation $x^2$"])
def test_a_report_loads_nothing_from_elsewhere_but_mathjax_for_formulas(tmp_path, text):
    v4 = nbformat.v4
    out = v4.new_output("stream", text="<script>alert(1)</script> 말뭉치")
    cells = [v4.new_markdown_cell(text), v4.new_code_cell("print()", outputs=[out])]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "executed.ipynb")
    write_report(tmp_path, "02_train")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    hosts = [link for link in Page(html).links if link.startswith(("http", "//"))]
    assert [link for link in hosts if "mathjax" not in link] == []
    assert bool(hosts) == ("$" in text)
    assert "말뭉치" in html and "<script>alert" not in html and "<title>02_train</title>" in html


def test_no_report_of_a_notebook_that_never_started(tmp_path):
    write_report(tmp_path, "02_train")
    assert list(tmp_path.iterdir()) == []


def test_a_long_error_is_cut():
    text = brief(ValueError("\n".join(f"line {i} " + "x" * 500 for i in range(100))))
    assert len(text.splitlines()) == 8 and max(map(len, text.splitlines())) == 300


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_live_line_is_rewritten_in_place_and_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    screen = Terminal()
    live = LiveLine("03_pretrain", stream=screen)
    live.show("훈련 " * 20)
    live.say("done")
    assert screen.text == "\r\033[K03_pretrain  0:00  훈련 훈련 \r\033[Kdone\n"
