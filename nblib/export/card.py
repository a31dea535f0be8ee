"""The model card: what the model is, what was measured, how to use it; a value nobody measured is absent."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nblib.backbones import EMBEDDED
from nblib.files import at_root, read_json, write_text

COLUMNS = {
    "dataset": "data set",
    "split": "split",
    "system": "system",
    "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10",
    "map": "MAP",
    "recall_at_100": "Recall@100",
    "flops": "FLOPS",
    "q_nnz": "terms per query",
    "d_nnz": "terms per document",
    "n_queries": "queries",
    "n_docs": "documents",
}
TAGS = [
    *("sentence-transformers", "sparse-encoder", "sparse", "splade", "asymmetric", "inference-free"),
    *("opensearch", "feature-extraction"),
]
LANGUAGE_OF = {"english": "en", "korean": "ko"}  # of the BM25 analyzer that the training used
SOURCES = {
    "api-docs": "Docstrings of installed Python packages: the query is the summary paragraph, the document "
    "is the rest, the qualified name is withheld. Sets are split by package."
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from; an empty field leaves its section out.

    rows: metrics.json of 05. profile: profile.json of 01. source: of the data, as 01 was told. parameters:
    step name -> flat parameters. checks: rows of nblib.export.verify.
    """

    name: str
    version: str
    licence: str
    max_length: int
    prune_ratio: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    profile: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)


def collect_parameters(model_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Read the parameters of the training steps that led to a model, first step first.

    Args:
        model_dir: run folder of 04_finetune; its pretrain_dir leads to 03_pretrain.

    Returns:
        Step name -> flat parameters, from manifest.json, else from training_config.json; a step that left
        neither is absent (a notebook run by hand writes no manifest).
    """
    finetune = step_parameters(model_dir)
    pretrain = step_parameters(finetune["pretrain_dir"]) if finetune.get("pretrain_dir") else {}
    return {n: p for n, p in {"03_pretrain": pretrain, "04_finetune": finetune}.items() if p}


def step_parameters(run_dir: str | Path) -> dict[str, Any]:
    """Read the parameters of one step; {} if it left no manifest and no training_config.json."""
    folder = at_root(run_dir)
    for file in (folder / "manifest.json", folder / "artifacts" / "training_config.json"):
        if file.is_file():
            value = read_json(file)
            return dict(value.get("params", value))
    return {}


def read_optional(path: str | Path, default: Any) -> Any:
    """Read a JSON file that an earlier step may not have written; `default` if it is absent."""
    return read_json(path) if Path(path).is_file() else default


def write_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write README.md into an exported sentence-transformers folder.

    Args:
        folder: what export_sentence_transformers wrote.
        facts: what is known about the model.

    Returns:
        The path of README.md.
    """
    path = Path(folder) / "README.md"
    write_text(path, card_text(facts))
    return path


def card_text(facts: CardFacts) -> str:
    """Compose the card: YAML front matter as the Hugging Face hub reads it, then the sections."""
    sections = [
        _front_matter(facts),
        _summary(facts),
        _results(facts),
        _usage(facts),
        _opensearch(facts),
        _data(facts),
        _training(facts),
        _checks(facts),
        _limits(facts),
        f"## Licence\n\n`{facts.licence}`, the licence of the base model{_of_base(facts)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _backbone(facts: CardFacts) -> str:
    """Name the base model if readers elsewhere can find it, else ""."""
    name = str(facts.parameters.get("03_pretrain", {}).get("backbone", ""))
    return name if _is_public(name) else ""


def _of_base(facts: CardFacts) -> str:
    return f" `{_backbone(facts)}`" if _backbone(facts) else ""


def _is_public(name: str) -> bool:
    """Tell a hub id ("owner/name") from a path of this machine."""
    return name == EMBEDDED or (
        bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not at_root(name).exists()
    )


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    analyzers = {p.get("bm25_analyzer") for p in facts.parameters.values()}
    data = ModelCardData(
        license=facts.licence,
        language=sorted(LANGUAGE_OF[a] for a in analyzers if a in LANGUAGE_OF) or None,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=TAGS,
        base_model=_backbone(facts) or None,
        metrics=[c for c in ("ndcg_at_10", "mrr_at_10", "recall_at_100") if _has(facts.rows, c)] or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _has(rows: Iterable[Mapping[str, Any]], column: str) -> bool:
    return any(row.get(column) is not None for row in rows)


def _summary(facts: CardFacts) -> str:
    return (
        f"# {facts.name} {facts.version}\n\n"
        "A learned sparse retriever whose queries need no model: a query is the set of its tokens, each with "
        "its inverse document frequency; a document goes through a masked-LM encoder, log(1 + relu) and max "
        f"pooling (arXiv 2411.04403). Documents are cut at {facts.max_length} tokens."
    )


def _results(facts: CardFacts) -> str:
    if not facts.rows:
        return ""
    columns = [c for c in COLUMNS if _has(facts.rows, c)]
    body = markdown_table(
        [COLUMNS[c] for c in columns], [[row.get(c) for c in columns] for row in facts.rows]
    )
    notes = ["`finetuned` is this model."] * any(row.get("system") == "finetuned" for row in facts.rows)
    if "flops" in columns:
        notes.append("FLOPS: expected multiplications per query-document pair, from term counts.")
    return f"## Measured\n\n{body}\n\n{' '.join(notes)}".rstrip()


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """Lay out a Markdown table; None becomes an empty cell, a float gets four digits."""
    lines = [header, ["---"] * len(header), *[[_cell(v) for v in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _usage(facts: CardFacts) -> str:
    return (
        "## Use with sentence-transformers\n\n```python\n"
        "from sentence_transformers import SparseEncoder\n\n"
        f'model = SparseEncoder("{facts.name}")  # this folder\n'
        'q_reps = model.encode_query(["your query"])\n'
        'd_reps = model.encode_document(["a document", "another one"])\n'
        "print(model.similarity(q_reps, d_reps))\n```\n\n"
        "`AutoModelForMaskedLM.from_pretrained` loads the document side from the same folder. The decoder "
        "bias of the special tokens is -10000, so that they never get a weight."
    )


def _opensearch(facts: CardFacts) -> str:
    stems = [f"{facts.name}-{side}-{facts.version}" for side in ("doc", "query")]
    kept = f" Weights of at most {facts.prune_ratio} of a document's largest are dropped." * (
        facts.prune_ratio > 0
    )
    return (
        "## Use with OpenSearch\n\n"
        f"Register `{stems[0]}.zip` (function `SPARSE_ENCODING`) and `{stems[1]}.zip` (`SPARSE_TOKENIZE`): "
        "the body of each call is the zip's `.ml-commons_model_config.json` with a `url` added.\n\n"
        "```\nPOST /_plugins/_ml/models/_register?deploy=true\n"
        f'{{ ...the fields of the file..., "url": "https://your-host/{stems[0]}.zip" }}\n```\n\n'
        "Documents: an ingest pipeline with a `sparse_encoding` processor into a `rank_features` field. "
        "Queries: `neural_sparse` with `query_text` and the id of the query model." + kept
    )


def _data(facts: CardFacts) -> str:
    profile = facts.profile
    about = SOURCES.get(facts.source, f"Source: `{facts.source}`." if _is_public(facts.source) else "")
    header = ["set", "documents", "queries", "per split", "median tokens", "95 % of documents are within"]
    rows = []
    for name, one in profile.get("sets", {}).items():
        splits = ", ".join(f"{split} {count}" for split, count in one.get("splits", {}).items())
        tokens = one.get("tokens", {})
        rows.append(
            [name, one.get("n_docs"), one.get("n_queries"), splits, tokens.get("p50"), tokens.get("p95")]
        )
    counts = {"n_train_rows": "training rows", "dropped": "dropped rows", "duplicates": "duplicate rows"}
    known = [f"{label}: {profile[key]}" for key, label in counts.items() if key in profile]
    parts = [about, markdown_table(header, rows) if rows else "", ", ".join(known)]
    said = "\n\n".join(part for part in parts if part)
    return f"## Data\n\n{said}" if said else ""


def _training(facts: CardFacts) -> str:
    parts = []
    for step, parameters in facts.parameters.items():
        said = {k: v for k, v in parameters.items() if not k.endswith("_dir") and not _is_path(v)}
        table = markdown_table(["parameter", "value"], [[f"`{k}`", v] for k, v in said.items()])
        parts.append(f"### {step}\n\n{table}")
    return "## Training parameters\n\n" + "\n\n".join(parts) if parts else ""


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != EMBEDDED and "/" in value and not _is_public(value)


def _checks(facts: CardFacts) -> str:
    if not facts.checks:
        return ""
    columns = ["check", "side", "batch", "max_abs_diff", "tolerance", "n_texts"]
    table = markdown_table(columns, [[row[c] for c in columns] for row in facts.checks])
    return (
        "## Exports against the trained model\n\nReloaded in a fresh process by public libraries.\n\n" + table
    )


def _limits(facts: CardFacts) -> str:
    lines = [f"- A document is cut at {facts.max_length} tokens; what stands later is not searchable."]
    if facts.rows:
        sets = ", ".join(sorted({f"{row['dataset']} ({row['split']})" for row in facts.rows}))
        lines.append(f"- Measured on {sets} only. Other domains and languages were not measured.")
    else:
        lines.append("- Relevance was not measured.")
    if not _has(facts.rows, "query_ms_p50"):
        lines.append("- Query latency was not measured.")
    lines.append(
        "- Relevance and latency inside OpenSearch were not measured here; a `rank_features` field rounds "
        "each weight by up to 0.4 %."
    )
    return "## Limits\n\n" + "\n".join(lines)
