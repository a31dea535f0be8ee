"""Why a document was found: the terms that matched, their weights, and which of them the model added."""

from html import escape
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from nblib.bags import token_matrix

CHIP = (
    "display:inline-block;margin:1px 3px 1px 0;padding:0 6px;border-radius:9px;"
    "white-space:nowrap;line-height:1.6;"
)
SAID = "46,125,190"  # blue: the document says the term itself
ADDED = "224,125,20"  # orange, dashed: the model added the term
SMALL = "font-size:85%;opacity:.75;"


class Match(NamedTuple):
    """One term that query and document share."""

    token: str
    q: float  # weight in the query
    d: float  # weight in the document
    contribution: float  # q * d; their sum is the score
    added: bool  # the document's own tokens do not hold it


def matched_terms(
    q_row: csr_matrix, d_row: csr_matrix, tokenizer: Any, own_row: csr_matrix | None = None
) -> list[Match]:
    """List the terms that make up a score, the largest contribution first.

    Args:
        q_row: [1, V] query weights. d_row: [1, V] document weights.
        tokenizer: names the V terms.
        own_row: [1, V] the tokens that the document itself holds (`nblib.bags.token_matrix`); without it no
            term counts as added.

    Returns:
        Matches whose contributions sum to the score; empty if nothing is shared.

    Raises:
        ValueError: a row is not [1, V], or the V differ.
    """
    shapes = {r.shape for r in (q_row, d_row, own_row) if r is not None}
    if len(shapes) != 1 or next(iter(shapes))[0] != 1:
        raise ValueError(f"want single rows [1, V] of one vocabulary, got shapes {sorted(shapes)}")
    q, d = (np.asarray(r.todense(), dtype=np.float64).ravel() for r in (q_row, d_row))  # [V] each
    own = np.ones_like(q) if own_row is None else np.asarray(own_row.todense()).ravel()
    shared = np.flatnonzero((q != 0) & (d != 0))
    shared = shared[np.argsort(-(q * d)[shared], kind="stable")]
    tokens = tokenizer.convert_ids_to_tokens(shared.tolist())
    return [
        Match(token, float(q[i]), float(d[i]), float(q[i] * d[i]), not own[i])
        for token, i in zip(tokens, shared, strict=True)
    ]


def explain_queries(
    data: Any, result: Any, tokenizer: Any, max_length: int, n: int = 10, seed: int = 13
) -> list[dict]:
    """Explain the top document of a random sample of queries.

    Args:
        data: EvalSet.
        result: the sparse system's Result on it.
        tokenizer: of that system.
        max_length: cut of the documents, to tell their own tokens from added ones.
        n: queries.
        seed: of the sample.

    Returns:
        For each query: query, doc_id (None = no hit), text, score, matches, missed (query tokens with weights
        that the top document lacks), judged (is the top document a judged one?), judged_rank (best rank of a
        judged document, None = not found), judged_id.
    """
    sample = np.random.default_rng(seed).permutation(len(data.queries))[:n]
    return [_explain(data, result, tokenizer, max_length, int(i)) for i in sorted(sample)]


def _explain(data: Any, result: Any, tokenizer: Any, max_length: int, i: int) -> dict:
    relevant = {did for did, grade in data.qrels[data.query_ids[i]].items() if grade > 0}
    ranked = [data.doc_ids[d] for d in result.index[i] if d >= 0]
    ranks = [rank for rank, did in enumerate(ranked, 1) if did in relevant]
    row = {"query": data.queries[i], "doc_id": None, "text": "", "score": 0.0, "matches": []}
    q_row, held = result.q_reps[[i]], set()
    if ranked:
        top = int(result.index[i, 0])
        own_row = token_matrix([data.texts[top]], tokenizer, max_length, q_row.shape[1])
        row |= {"doc_id": ranked[0], "text": data.texts[top], "score": float(result.scores[i, 0])}
        row["matches"] = matched_terms(q_row, result.d_reps.row(top), tokenizer, own_row)
        held = {match.token for match in row["matches"]}
    query_terms = matched_terms(q_row, q_row, tokenizer)
    row["missed"] = [(m.token, m.q) for m in query_terms if m.token not in held]
    row |= {"judged": ranks[:1] == [1], "judged_rank": ranks[0] if ranks else None}
    return row | {"judged_id": ranked[ranks[0] - 1] if ranks else min(relevant, default=None)}


def clean_token(token: str) -> str:
    """Show a subword as a reader expects it: "##ing" -> "-ing"; SentencePiece and byte-level marks go."""
    if token.startswith("##") and len(token) > 2:
        return "-" + token[2:]
    return token.lstrip("\u2581\u0120") or token  # marks of a word's begin: SentencePiece, byte-level BPE


def explanation_html(rows: list[dict], max_chips: int = 12, max_chars: int = 170) -> str:
    """Draw explanations as an HTML table with one shaded chip per matched term.

    All style is inline and built on transparent colours, so that it reads on a light and on a dark page, in
    JupyterLab (which drops <style> of untrusted notebooks) as in nbconvert's report. Every text is escaped.

    Args:
        rows: of `explain_queries`.
        max_chips: terms shown per query; the rest is counted.
        max_chars: characters shown of a document.
    """
    legend = (
        "What each term that query and top document share adds to the score (stronger shade = more): "
        + _chip("in the document", 0.5)
        + _chip("added by the model", 0.5, added=True)
    )
    body = "".join(_row_html(row, max_chips, max_chars) for row in rows)
    columns = (("Query", 24), ("Top document", 34), ("Score and why", 42))
    head = "".join(_cell(name, "th", width) for name, width in columns)
    return (
        f'<div style="margin:.4em 0">{legend}</div>'
        '<table style="width:100%;border-collapse:collapse;table-layout:fixed">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def explanation_page(rows: list[dict], title: str) -> str:
    """Wrap the table into a page of its own that follows the reader's light or dark setting."""
    head = (
        f'<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
    )
    style = "font-family:system-ui,sans-serif;font-size:14px;max-width:1200px;margin:1.5em auto;padding:0 1em"
    body = f"<h2>{escape(title)}</h2>{explanation_html(rows)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body style="{style}">{body}</body></html>'


def _row_html(row: dict, max_chips: int, max_chars: int) -> str:
    largest = max((m.contribution for m in row["matches"]), default=1.0)
    rest = row["matches"][max_chips:]
    chips = "".join(_match_chip(match, largest) for match in row["matches"][:max_chips])
    if rest:
        chips += f'<span style="{SMALL}">and {len(rest)} more, {sum(m.contribution for m in rest):.1f}</span>'
    text = " ".join(row["text"].split())
    text = escape(text[:max_chars]) + ("…" if len(text) > max_chars else "")
    name = f"<b>{escape(row['doc_id'])}</b>" if row["doc_id"] else "<i>no hit</i>"
    document = f'{name}<br><span style="{SMALL}">{text}</span><br>{_verdict(row)}'
    why = f"<b>{row['score']:.1f}</b> = {chips}" if row["doc_id"] else chips
    return (
        "<tr>"
        + _cell(escape(row["query"]))
        + _cell(document)
        + _cell(why + _missed(row, max_chips))
        + "</tr>"
    )


def _missed(row: dict, most: int) -> str:
    """Name the query terms that the top document lacks, the heaviest first."""
    terms = [
        f'<span style="white-space:nowrap">{escape(clean_token(token))}</span>' for token, _ in row["missed"]
    ]
    if not terms:
        return ""
    more = f" and {len(terms) - most} more" if len(terms) > most else ""
    return f'<div style="{SMALL}margin-top:3px">not in it: {" &nbsp;".join(terms[:most])}{more}</div>'


def _match_chip(match: Match, largest: float) -> str:
    title = f"query {match.q:.2f} × document {match.d:.2f} = {match.contribution:.2f}"
    number = f"{match.contribution:.1f}"
    return _chip(clean_token(match.token), match.contribution / largest, match.added, number, title)


def _chip(label: str, share: float, added: bool = False, number: str = "", title: str = "") -> str:
    """Draw one pill; share 0 to 1 sets the shade. Dashes and a plus say "added" without colour."""
    colour = ADDED if added else SAID
    style = f"{CHIP}background:rgba({colour},{0.08 + 0.42 * max(0.0, share):.2f});"
    style += f"border:1px {'dashed' if added else 'solid'} rgba({colour},.9);"
    weight = f' <span style="font-size:80%;opacity:.8">{number}</span>' if number else ""
    plus = "+ " if added else ""
    return f'<span style="{style}" title="{escape(title)}">{plus}{escape(label)}{weight}</span>'


def _verdict(row: dict) -> str:
    if row["judged"]:
        return '<span style="color:rgb(40,150,80)">✓ judged relevant</span>'
    place = f"is at rank {row['judged_rank']}" if row["judged_rank"] else "was not found"
    where = f"not judged; {escape(str(row['judged_id']))} {place}"
    return f'<span style="color:rgb(215,85,60)">✗ {where}</span>'


def _cell(content: str, tag: str = "td", width: int = 0) -> str:
    style = "text-align:left;vertical-align:top;padding:6px 8px;white-space:normal;overflow-wrap:anywhere;"
    style += "border-bottom:1px solid rgba(128,128,128,.35);" + (f"width:{width}%;" if width else "")
    return f'<{tag} style="{style}">{content}</{tag}>'
