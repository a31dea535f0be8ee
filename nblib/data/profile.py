"""What a built set looks like, in tables: sizes, lengths, what was left out, examples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nblib.data.difficulty import classify_difficulty, count_difficulty
from nblib.data.formats import BeirSet, document_text
from nblib.data.lines import Problem
from nblib.files import ROOT, sha256_file, write_json
from nblib.run.progress import track

BATCH = 500  # texts per call of the tokenizer
SHOWN = 100  # reasons kept in profile.json


def count_problems(problems: Iterable[Problem]) -> dict[str, int]:
    """Count what was left out: {"dropped", "duplicates", "bom"} (a byte order mark loses no row)."""
    kinds = Counter(problem.kind for problem in problems)
    return {"dropped": kinds["bad"], "duplicates": kinds["duplicate"], "bom": kinds["bom"]}


def problem_rows(problems: Sequence[Problem], most: int = SHOWN) -> list[dict[str, Any]]:
    """List the first problems as {file, line, kind, reason}: bad rows before duplicates."""
    order = sorted(problems, key=lambda problem: problem.kind == "duplicate")  # stable
    return [
        {"file": _shown(p.file), "line": p.line, "kind": p.kind, "reason": p.reason.replace(f"{ROOT}/", "")}
        for p in order[:most]
    ]


def _shown(file: str) -> str:
    """Records name no machine-specific folder."""
    path = Path(file)
    if not path.is_absolute():
        return file
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def token_lengths(beir_set: BeirSet, tokenizer, most: int = 4000) -> np.ndarray:
    """Count the tokens of documents, special tokens too, before any cut.

    Args:
        tokenizer: a fast tokenizer of transformers.
        most: documents counted; a larger corpus is sampled at even distances, enough for a histogram.

    Returns:
        [min(N, most)] int64, in the order of the corpus.
    """
    texts = [document_text(doc) for doc in beir_set.corpus.values()]
    if len(texts) > most:
        texts = [texts[i * len(texts) // most] for i in range(most)]
    starts = range(0, len(texts), BATCH)
    lengths: list[int] = []
    for start in track(starts, f"count tokens of {beir_set.name}"):
        # verbose: no warning for texts above the model's limit, they are only counted
        ids = tokenizer(texts[start : start + BATCH], verbose=False, return_attention_mask=False)["input_ids"]
        lengths += map(len, ids)
    return np.array(lengths, dtype=np.int64)


def relevant_pairs(beir_set: BeirSet) -> list[tuple[str, str]]:
    """List (query, document) texts of all judgements above 0, in the order of splits and queries."""
    return [
        (beir_set.queries[q], document_text(beir_set.corpus[d]))
        for judged in beir_set.qrels.values()
        for q, docs in judged.items()
        for d, grade in docs.items()
        if grade > 0
    ]


def set_rows(
    sets: Sequence[BeirSet], lengths: Mapping[str, np.ndarray], problems: Sequence[Problem]
) -> list[dict[str, Any]]:
    """Make the rows of metrics.json, one per set and split.

    Args:
        lengths: name of the set -> tokens per document, see token_lengths.
        problems: of the source as a whole; their counts stand in every row.
    """
    counts = count_problems(problems)
    return [
        {
            "dataset": s.name,
            "split": split,
            "n_queries": len(judged),
            "n_docs": len(s.corpus),
            "n_judgements": sum(map(len, judged.values())),
            "mean_tokens": round(float(lengths[s.name].mean()), 1),
            **counts,
            **count_difficulty(relevant_pairs(BeirSet(s.name, s.corpus, s.queries, {split: judged}))),
        }
        for s in sets
        for split, judged in s.qrels.items()
    ]


def example_rows(
    beir_set: BeirSet, rows: Sequence[Mapping[str, Any]], n: int = 10, most_chars: int = 160
) -> list[dict[str, str]]:
    """Pick n training rows at even distances, in words: query, positive, first negative, difficulty."""
    n = min(n, len(rows))
    picked = [rows[i * len(rows) // n] for i in range(n)]
    judged = beir_set.qrels["train"]
    out = []
    for row in picked:
        texts = [document_text(beir_set.corpus[d]) for d in row["doc_ids"]]
        n_positive = sum(judged[row["query_id"]].get(d, 0) > 0 for d in row["doc_ids"])
        negative = texts[n_positive][:most_chars] if len(texts) > n_positive else ""
        query = beir_set.queries[row["query_id"]]
        difficulty = classify_difficulty(query, texts[0])
        out.append(
            {"query": query, "positive": texts[0][:most_chars], "negative": negative, "class": difficulty}
        )
    return out


def write_profile(
    folder: Path,
    sets: Sequence[BeirSet],
    problems: Sequence[Problem],
    lengths: Mapping[str, np.ndarray],
    n_rows: int,
) -> dict[str, Any]:
    """Write profile.json beside the built sets, with the sha256 of each of their files.

    Args:
        folder: holds one folder per set.
        n_rows: training rows written.

    Returns:
        What was written.
    """
    profile = {
        "sets": {s.name: _set_profile(folder / s.name, s, lengths[s.name]) for s in sets},
        "n_train_rows": n_rows,
        **count_problems(problems),
        "problems": problem_rows(problems),
    }
    write_json(folder / "profile.json", profile)
    return profile


def _set_profile(folder: Path, beir_set: BeirSet, lengths: np.ndarray) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "splits": {split: len(judged) for split, judged in beir_set.qrels.items()},
        "n_docs": len(beir_set.corpus),
        "n_queries": len(beir_set.queries),
        "tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95, 100)},
        "difficulty": count_difficulty(relevant_pairs(beir_set)),
        "sha256": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
