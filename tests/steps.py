"""Five documents, three queries, and the systems of 05 over them."""

from types import SimpleNamespace

from nblib import systems
from nblib.backbones import EMBEDDED
from nblib.retrieval import search_all

TEXTS = [
    "Sort the rows of a table by one column.",
    "Draw a line between two points of the figure.",
    "Load a table from a file on disk.",
    "Compute the mean of each column.",
    "Close the file.",
]
QUERIES = ["draw lines", "load file", "mean of a column"]


def all_systems(trained, cache, names=None, precision="fp32"):
    names = names or ["bm25", "bm25-tokens", "dense", "idf-bag", "pretrained", "finetuned"]
    params = SimpleNamespace(
        bm25_analyzer="english", dense_teacher=EMBEDDED, max_length=32, batch_size=2, precision=precision
    )
    inputs = systems.check_inputs(names, trained)
    return systems.build_systems(names, inputs, params, cache)


def run(system, texts, queries, k):
    """Search with one system."""
    (result,) = search_all([system], texts, queries, k)
    return result
