"""How much of a query its relevant document says in the same words: a guess at how hard it is to find."""

from collections import Counter
from collections.abc import Iterable

CLASSES = ("easy", "medium", "hard")
EASY_ABOVE, MEDIUM_ABOVE = 0.5, 0.2  # share of the query's distinct words


def overlap(query: str, positive: str) -> float:
    """Share of the distinct words of a query that stand in its positive document.

    Words are cut at white space, and case counts, as in the published rule.

    Returns:
        0 to 1; 0 for a query without words.
    """
    words = set(query.split())
    return len(words & set(positive.split())) / len(words) if words else 0.0


def classify_difficulty(query: str, positive: str) -> str:
    """Name the class of a pair: "easy" if more than half of the query is shared, "medium" above a fifth."""
    share = overlap(query, positive)
    return "easy" if share > EASY_ABOVE else "medium" if share > MEDIUM_ABOVE else "hard"


def count_difficulty(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Count the pairs (query, positive) of each class; every class has an entry."""
    counts = Counter(classify_difficulty(query, positive) for query, positive in pairs)
    return {name: counts[name] for name in CLASSES}
