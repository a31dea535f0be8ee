"""The search page as HTML: no script, every text escaped."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nblib.demo.engines import Hit, Part
from nblib.explain import clean_token

LONGEST = 1000  # characters of a query
SHOWN = 420  # characters of a document
CHIPS = 8
STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page(title: str, query: str, found: Sequence[tuple[str, list[Hit], float]], note: str = "") -> str:
    """Write the page.

    Args:
        title: above the field.
        query: what was asked; "" = nothing yet.
        found: name of an engine, its hits, milliseconds that it took.
        note: a line below the field.
    """
    columns = "".join(_column(name, hits, took) for name, hits, took in found)
    asked = escape(query, quote=True)
    field = f'<input name="q" value="{asked}" maxlength="{LONGEST}" autofocus aria-label="query">'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><form>{field}<button>Search</button></form>"
        f'<div class="note">{escape(note)}</div><div class="both">{columns}</div></body></html>'
    )


def _column(name: str, hits: list[Hit], took: float) -> str:
    body = "".join(_hit(hit) for hit in hits) or '<p class="note">Nothing found.</p>'
    return f'<section><h2>{escape(name)} <span class="note">{took:.1f} ms</span></h2>{body}</section>'


def _hit(hit: Hit) -> str:
    text = "".join(_part(part) for part in _window(hit.parts))
    chips = "".join(_chip(match) for match in hit.terms[:CHIPS])
    more = f'<span class="note">and {len(hit.terms) - CHIPS} more</span>' if len(hit.terms) > CHIPS else ""
    head = f'<span class="score">{hit.score:.2f}</span><span class="id">{escape(hit.doc_id)}</span>'
    return f"<article>{head}<div>{text}</div><div>{chips}{more}</div></article>"


def _part(part: Part) -> str:
    if not part.weight:
        return escape(part.text)
    shade = 0.15 + 0.5 * part.weight
    return f'<mark style="background:rgba(46,125,190,{shade:.2f})">{escape(part.text)}</mark>'


def _chip(match) -> str:
    added = " added" if match.added else ""
    title = f"query {match.q:.2f} x document {match.d:.2f}"
    sign = "+ " if match.added else ""
    label = escape(clean_token(match.token))
    return f'<span class="chip{added}" title="{title}">{sign}{label} {match.contribution:.2f}</span>'


def _window(parts: list[Part]) -> list[Part]:
    """Cut a document to SHOWN characters, from shortly before its first match on."""
    before = 0
    for part in parts:
        if part.weight:
            break
        before += len(part.text)
    else:
        before = 0
    skip, left, shown = max(0, before - SHOWN // 4), SHOWN, []
    if skip:
        shown.append(Part("… "))
    for part in parts:
        text = part.text[skip:] if skip < len(part.text) else ""
        skip = max(0, skip - len(part.text))
        if text and left > 0:
            shown.append(Part(text[:left], part.weight))
        left -= len(text)
    return [*shown, Part(" …")] if left < 0 else shown
