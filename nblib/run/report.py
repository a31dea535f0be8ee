"""Pages to read a run by: report.html of each step, and index.html over all of them."""

import base64
import datetime
from html import escape
from pathlib import Path
from typing import Any

from nblib.files import read_json, write_text
from nblib.run import manifest
from nblib.run.progress import clock, columns

EVAL = "05_beir_eval"
COLUMNS = {  # of the results table: key in metrics.json -> heading, digits
    "dataset": ("dataset", None),
    "system": ("system", None),
    "ndcg_at_10": ("nDCG@10", 3),
    "mrr_at_10": ("MRR@10", 3),
    "recall_at_100": ("recall@100", 3),
    "flops": ("FLOPS", 2),
    "d_nnz": ("doc non-zeros", 0),
}
# No script from another host: require.js and mermaid are for widgets and diagrams, which we do not use.
# MathJax stays where a text holds a formula; offline the formula then shows as TeX.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}MATHJAX{% endblock %}
{% block extra_css %}<style>main { max-width: 62rem; margin: 0 auto } img { max-width: 100% }</style>
{% endblock %}
{% block body_header %}{{ super() }}<p style="padding-left: 1em"><a href="../index.html">all steps</a></p>
{% endblock %}"""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #c62828; --good: #2e7d32 }
@media (prefers-color-scheme: dark) { :root { --bad: #ef9a9a; --good: #a5d6a7 } }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans KR", sans-serif;
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.4rem }
.facts { opacity: .75; margin-top: 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600; white-space: nowrap } .n { text-align: right }
tbody tr:hover { background: var(--soft) }
.best { font-weight: 700 } .ok { color: var(--good) } .failed, .running { color: var(--bad) }
pre { white-space: pre-wrap; margin: .3rem 0 0; font-size: .85rem }
figure { margin: 1.2rem 0; padding: .8rem; background: #fff; border: 1px solid var(--line);
         border-radius: 8px }
figure img { display: block; max-width: 100%; margin: 0 auto } figcaption { color: #555; font-size: .85rem }
"""


def write_report(run_dir: Path, title: str) -> None:
    """Write report.html beside executed.ipynb; nothing if the notebook never started."""
    source = run_dir / "executed.ipynb"
    if not source.exists():
        return
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(source, as_version=4)
    math = any("$" in cell.source for cell in book.cells if cell.cell_type == "markdown")
    template = TEMPLATE.replace("MATHJAX", "{{ super() }}" if math else "")
    exporter = HTMLExporter(raw_template=template, embed_images=True)
    html, _ = exporter.from_notebook_node(book, {"metadata": {"name": title, "path": str(run_dir)}})
    write_text(run_dir / "report.html", html)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of the evaluation's metrics.json; [] while there is none."""
    try:
        rows = read_json(folder / EVAL / "metrics.json")
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def cell_text(row: dict[str, Any], key: str) -> str:
    """Format one value of the results table; "-" where it does not apply."""
    value, digits = row.get(key), COLUMNS[key][1]
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if digits is not None and isinstance(value, int | float) else str(value)


def results_table(folder: Path) -> str:
    """Format the evaluation's metrics as text; "" while there are none."""
    rows = read_metrics(folder)
    if not rows:
        return ""
    table = [[heading for heading, _ in COLUMNS.values()]]
    table += [[cell_text(row, key) for key in COLUMNS] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*table, strict=True)]
    aligned = []
    for row in table:
        gaps = [" " * (width - columns(text)) for text, width in zip(row, widths, strict=True)]
        aligned.append(
            "  ".join(t + gap if i < 2 else gap + t for i, (t, gap) in enumerate(zip(row, gaps, strict=True)))
        )
    return "\n".join([aligned[0], "-" * columns(aligned[0]), *aligned[1:]])


def write_index(folder: Path, profile: str, names: list[str]) -> Path:
    """Write outputs/<profile>/index.html: one page that needs no other host, and no server.

    Args:
        folder: outputs/<profile>.
        profile: its name.
        names: the notebooks in order; one that has not run is listed as such.

    Returns:
        the page.
    """
    records = {name: manifest.read(folder / name) for name in names}
    commits = dict.fromkeys(r["git"] for r in records.values() if r.get("git"))
    facts = [
        datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        f"commit {', '.join(commits)}" if commits else "",
        next((r["device"] for r in reversed(records.values()) if r.get("device")), ""),
        f"{clock(total)} in all" if (total := sum(r.get("wall_s", 0) for r in records.values())) else "",
    ]
    parts = [
        f"<h1>Learned sparse retrieval: profile {escape(profile)}</h1>",
        f'<p class="facts">{escape(" · ".join(filter(None, facts)))}</p>',
        _results(read_metrics(folder)),
        "<h2>Steps</h2>",
        _steps(folder, records),
        _figures(folder, names),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(profile)}: results</title><style>{STYLE}</style></head>\n"
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def missing_sets(folder: Path) -> str:
    """Say which data sets 05 could not read, one line each; "" if it read all."""
    file = folder / EVAL / "artifacts" / "missing_sets.json"
    missing = read_json(file) if file.exists() else {}
    return "\n".join(f"NOT EVALUATED {name}: {why}" for name, why in missing.items())


def _table(head: list[str], rows: list[str], numeric: set[int]) -> str:
    cells = "".join(f'<th class="{"n" if i in numeric else ""}">{escape(h)}</th>' for i, h in enumerate(head))
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _results(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    best: dict[Any, float] = {}
    for row in rows:
        best[row.get("dataset")] = max(best.get(row.get("dataset"), 0.0), row.get("ndcg_at_10") or 0.0)
    lines = []
    for row in rows:
        style = ' class="best"' if row.get("ndcg_at_10") == best[row.get("dataset")] else ""
        cells = "".join(
            f'<td class="{"n" if i > 1 else ""}">{escape(cell_text(row, key))}</td>'
            for i, key in enumerate(COLUMNS)
        )
        lines.append(f"<tr{style}>{cells}</tr>")
    heads = [heading for heading, _ in COLUMNS.values()]
    return f"<h2>Results</h2>\n{_table(heads, lines, set(range(2, len(heads))))}"


def _steps(folder: Path, records: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, record in records.items():
        files = [("report", "report.html"), ("notebook", "executed.ipynb"), ("manifest", "manifest.json")]
        links = " · ".join(
            f'<a href="{escape(name)}/{file}">{label}</a>'
            for label, file in files
            if (folder / name / file).exists()
        )
        status = str(record.get("status", "not run"))
        error = f"<pre>{escape(str(record['error']))}</pre>" if record.get("error") else ""
        wall = clock(record["wall_s"]) if record.get("wall_s") is not None else ""
        peak = f"{record['peak_gib']:.2f}" if record.get("peak_gib") is not None else ""
        lines.append(
            f"<tr><td>{escape(name)}</td>"
            f'<td><span class="{escape(status)}">{escape(status)}</span>{error}</td>'
            f'<td class="n">{wall}</td><td class="n">{peak}</td><td>{links}</td></tr>'
        )
    return _table(["step", "status", "time", "peak GiB", ""], lines, {2, 3})


def _figures(folder: Path, names: list[str]) -> str:
    ordered = sorted(names, key=lambda name: (name != EVAL, name))
    files = [
        f for n in ordered for f in sorted((folder / n / "figures").glob("*")) if f.suffix in (".png", ".svg")
    ]
    if not files:
        return ""
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    figures = []
    for file in files:
        data = base64.b64encode(file.read_bytes()).decode()
        label = escape(f"{file.parent.parent.name}: {file.stem.replace('_', ' ')}")
        figures.append(
            f'<figure><img src="data:{kinds[file.suffix]};base64,{data}" alt="{label}">'
            f"<figcaption>{label}</figcaption></figure>"
        )
    return "<h2>Figures</h2>\n" + "\n".join(figures)
