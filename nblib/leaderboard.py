"""The one table of an evaluation: data sets x systems by nDCG@10, with the published figures beside it."""

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from nblib.tables import dot3, pipe_table

METRIC = "ndcg_at_10"
ALPHA = 0.05
GREY = "rgba(128,128,128,.4)"
CELL = f"padding:4px;border-bottom:1px solid {GREY};text-align:right;vertical-align:bottom;"
MARK = "display:inline-block;width:.9em;padding-left:.2em;text-align:left"
RULED, SMALL = f"border-top:2px solid {GREY};", "font-size:85%;"
# Nailed to the left edge while the rest scrolls, over the page's own ground, light or dark.
NAME = "position:sticky;left:0;background:var(--jp-layout-color0,Canvas);text-align:left;white-space:nowrap;"


@dataclass(frozen=True)
class Leaderboard:
    """Values by (data set, system); what is absent was not measured."""

    datasets: list[str]
    systems: list[str]
    ours: dict[tuple[str, str], float]
    marks: dict[tuple[str, str], str]  # "+", "-" or ""
    others: list[str]  # published systems
    published: dict[tuple[str, str], float]
    sources: list[str]
    baseline: str | None  # that the marks compare with

    @property
    def shared(self) -> list[str]:
        """The data sets that all our systems have: what the mean is over."""
        return [d for d in self.datasets if all((d, s) in self.ours for s in self.systems)]

    @property
    def known(self) -> list[str]:
        """The data sets with published figures."""
        return [d for d in self.datasets if any((d, s) in self.published for s in self.others)]

    @property
    def mean_name(self) -> str:
        """Name the last row."""
        n, of = len(self.shared), len(self.datasets)
        return f"mean of {n} set{'s' * (n != 1)}" + f", of {of}" * (n < of)

    def value(self, dataset: str | None, system: str, published: bool = False) -> float | None:
        """Look a value up; without a data set, average over `shared`. None if one is absent."""
        held = self.published if published else self.ours
        values = [held.get((name, system)) for name in (self.shared if dataset is None else [dataset])]
        return None if not values or None in values else sum(values) / len(values)

    def best(self, dataset: str | None) -> set[str]:
        """Name our systems that lead a data set, or the mean (None), at the three digits shown."""
        shown = {s: round(v, 3) for s in self.systems if (v := self.value(dataset, s)) is not None}
        return {system for system, v in shown.items() if v == max(shown.values())}


def make_leaderboard(
    rows: list[dict[str, Any]], published: list[dict[str, Any]], baseline: str | None = None
) -> Leaderboard:
    """Arrange metrics rows, in their order.

    Args:
        rows: of metrics.json, after `nblib.significance.compare_with` if there is a baseline.
        published: of `nblib.published.published_for`; they enter no mark, no best and no mean of ours.
        baseline: system that the marks + and - compare with.
    """
    return Leaderboard(
        datasets=list(dict.fromkeys(row["dataset"] for row in rows)),
        systems=list(dict.fromkeys(row["system"] for row in rows)),
        ours={_key(row): row[METRIC] for row in rows},
        marks={_key(row): _mark(row, baseline) for row in rows},
        others=list(dict.fromkeys(row["system"] for row in published)),
        published={_key(row): row[METRIC] for row in published},
        sources=list(dict.fromkeys(row["source"] for row in published)),
        baseline=baseline,
    )


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["dataset"], row["system"]


def _mark(row: dict[str, Any], baseline: str | None) -> str:
    p = row.get(f"p_holm_vs_{baseline}")
    if p is None or p >= ALPHA:
        return ""
    return "+" if row[f"diff_vs_{baseline}"] > 0 else "-"


def leaderboard_frame(board: Leaderboard) -> pd.DataFrame:
    """Lay the table out for a program: numbers, marks in columns of their own, the mean last."""
    lines = []
    for dataset in [*board.datasets, None]:
        line = {"dataset": dataset or board.mean_name}
        line |= {s: board.value(dataset, s) for s in board.systems}
        if board.baseline:
            tested = [s for s in board.systems if s != board.baseline]
            line |= {f"{s} against {board.baseline}": board.marks.get((dataset, s), "") for s in tested}
        lines.append(line | {f"published: {s}": board.value(dataset, s, True) for s in board.others})
    return pd.DataFrame(lines).round(4)


def leaderboard_markdown(board: Leaderboard) -> str:
    """Write the table for a page of text: our runs with their legend, then the published figures."""
    lines = []
    for dataset in [*board.datasets, None]:
        best = board.best(dataset)
        cells = [" ".join(_parts(board, dataset, s)).rstrip() for s in board.systems]
        cells = [f"**{c}**" if s in best else c for s, c in zip(board.systems, cells, strict=True)]
        lines.append([dataset or board.mean_name, *cells])
    text = pipe_table(["data set", *board.systems], lines) + f"\n{legend(board)}\n"
    if not board.others:
        return text
    lines = [[name, *(f"*{c}*" if c else "" for c in cells)] for name, cells in _published_lines(board)]
    return f"{text}\n{pipe_table(['published', *board.others], lines)}\n{source_note(board)}\n"


def _parts(board: Leaderboard, dataset: str | None, system: str) -> tuple[str, str]:
    """Write one of our values with three digits, and its mark; "" where there is none."""
    value = board.value(dataset, system)
    return ("", "") if value is None else (dot3(value), board.marks.get((dataset, system), ""))


def _published_lines(board: Leaderboard) -> list[tuple[str, list[str]]]:
    """Write the published figures of each set that has some; of the mean, if ours is over the same sets."""
    lines = []
    for dataset in [*board.known, None]:
        values = [board.value(dataset, system, published=True) for system in board.others]
        if any(value is not None for value in values):
            lines.append((dataset or board.mean_name, ["" if v is None else dot3(v) for v in values]))
    return lines


def legend(board: Leaderboard) -> str:
    """Say what bold, the marks and the mean are."""
    parts = ["nDCG@10; bold: the best."]
    if board.baseline:
        parts.append(
            f"+ and - : better and worse than {board.baseline}, p < {dot3(ALPHA).rstrip('0')} by the paired "
            "randomisation test over queries, after Holm's correction over the systems of the row."
        )
    if len(board.shared) < len(board.datasets):
        parts.append("The mean is over the sets that all systems have.")
    return " ".join(parts)


def source_note(board: Leaderboard) -> str:
    """Say what the published figures are, and where they come from."""
    sources = "; ".join(board.sources)
    return f"Published by others, not run here, in no test and no mean of ours. Sources: {sources}."


def leaderboard_html(board: Leaderboard) -> str:
    """Draw the table for a notebook and its report; all style is inline, since JupyterLab drops <style>.

    A table wider than the page scrolls, and the names of the data sets stay.
    """
    body = "".join(_row_html(board, dataset) for dataset in [*board.datasets, None])
    html = _table(["data set", *board.systems], body) + _note(legend(board))
    if not board.others:
        return html
    lines = [
        _name(name) + "".join(_cell(f"<i>{text}</i>") for text in cells)
        for name, cells in _published_lines(board)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return html + _table(["published", *board.others], body) + _note(source_note(board))


def _row_html(board: Leaderboard, dataset: str | None) -> str:
    best, ruled = board.best(dataset), RULED * (dataset is None)
    cells = _name(dataset or board.mean_name, ruled)
    for system in board.systems:
        value, mark = _parts(board, dataset, system)
        value = f"<b>{value}</b>" if system in best else value
        # The mark has a place of its own, so that the digits stand below one another.
        cells += _cell(f'{value}<span style="{MARK}">{mark.replace("-", "−")}</span>', ruled)
    return f"<tr>{cells}</tr>"


def _name(name: str, style: str = "") -> str:
    return f'<th style="{CELL}{NAME}{style}">{escape(name)}</th>'


def _cell(content: str, style: str = "") -> str:
    return f'<td style="{CELL}white-space:nowrap;{style}">{content}</td>'


def _table(head: list[str], body: str) -> str:
    style = "border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;margin:0;" + SMALL
    names = "".join(f'<th style="{CELL}white-space:normal;">{escape(name)}</th>' for name in head[1:])
    return (
        f'<div style="overflow-x:auto;max-width:100%"><table style="{style}">'
        f"<thead><tr>{_name(head[0])}{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _note(text: str) -> str:
    return f'<p style="{SMALL}opacity:.8;max-width:60em;margin:.4em 0 1.2em">{escape(text)}</p>'
