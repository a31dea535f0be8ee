"""The parts of notebook 12, each finished one kept, so that a run that was stopped goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nblib.backbones import load_tokenizer
from nblib.experiment import load_eval_set
from nblib.files import read_json, write_json
from nblib.idf import load_idf
from nblib.precision import resolve_precision
from nblib.speed import encode, postings, quality, search, steps
from nblib.train import pipeline
from nblib.train.config import TrainConfig
from nblib.train.data import load_training_set
from nblib.train.dev import DevSearch

Rows = list[dict[str, Any]]


def run_part(name: str, params, folder: Path) -> Rows:
    """Measure one part, or read what an earlier run measured of it.

    Args:
        name: "steps", "memory", "encode", "idf", "search" or "quality".
        params: SpeedParams.
        folder: artifacts of the run; <name>.json keeps the part's rows.

    Returns:
        Rows as nblib.speed.rows.row builds them.
    """
    file = folder / f"{name}.json"
    if not file.exists():
        measure: dict[str, Callable[..., Rows]] = {
            "steps": _steps,
            "memory": _memory,
            "encode": _encode,
            "idf": _idf,
            "search": _search,
            "quality": _quality,
        }
        write_json(file, measure[name](params, folder))
    return read_json(file)


def _texts(params, n: int) -> list[str]:
    """Take the first n training documents."""
    data = load_training_set(pipeline.built_set(params.data_dir, params.dataset), 0, 0)
    return list(data.documents[:n])


def _steps(params, folder: Path) -> Rows:
    model, texts = pipeline.pretrained_model(params), _texts(params, 2000)
    sizes, length = params.step_documents, params.step_length
    return [
        row
        for dtype in ("fp32", "bf16")
        for row in steps.step_rows(model, texts, folder / "shifted", sizes, length, dtype, params.repeats)
    ]


def _memory(params, folder: Path) -> Rows:
    model, size, length = pipeline.pretrained_model(params), params.memory_documents, params.memory_length
    shifted = steps.shifted_model(model, _texts(params, 64), folder / "shifted" / "memory", 200)
    big, few = folder / "big_backbone", params.peer_documents
    return [
        steps.memory_row(shifted, size, length),
        steps.large_vocabulary_row(big, params.large_vocabulary, size, length, few),
    ]


def _encode(params, folder: Path) -> Rows:
    texts = _texts(params, params.encode_documents)
    model = steps.shifted_model(pipeline.pretrained_model(params), texts, folder / "shifted" / "encode", 200)
    return encode.encode_rows(model, texts, params.encode_length)


def _idf(params, folder: Path) -> Rows:
    return encode.idf_rows(str(pipeline.pretrained_model(params)), _texts(params, 5000), params.idf_passages)


def _search(params, folder: Path) -> Rows:
    shape = (params.search_documents, params.search_terms, params.search_queries)
    rows = search.search_rows(postings.generated(*shape, params.seed))
    for name in params.real_sets:
        data = load_eval_set(name, params.data_dir, "test")
        rows += search.search_rows(postings.bm25_case(data, params.bm25_analyzer, params.search_queries))
    return [*rows, search.large_row(params.project_documents, *shape, params.seed, folder)]


def _quality(params, folder: Path) -> Rows:
    model, precision = pipeline.pretrained_model(params), resolve_precision("auto")
    idf = load_idf(Path(pipeline.built(params.idf_dir, "idf.json", "02_idf", "")), load_tokenizer(str(model)))
    data = pipeline.open_training_set(params)
    dev = DevSearch(load_eval_set(params.dev_set, params.data_dir, "dev"))
    config = TrainConfig.from_params(
        params,
        num_steps=0,
        warmup_steps=0,
        lambda_ramp_steps=0,
        save_steps=1,
        save_total_limit=1,
        precision=precision,
    )
    training, file, curves = folder / "quality", folder / "curves.json", read_curves(folder)
    length, minutes = params.max_length, params.minutes
    if "ours" not in curves:  # a side that an earlier run finished is kept
        teach = partial(pipeline.prepare_teacher, params, data, cached=False)
        curves["ours"] = quality.ours(model, data, idf, dev, config, minutes, training, teach)
        write_json(file, curves)
    if "peer" not in curves:
        same = (model, data, idf, dev, length, minutes, training, params.seed, precision)
        curves["peer"] = quality.peer(*same)
        write_json(file, curves)
    return [quality.summarise(curves)]


def read_curves(folder: Path) -> dict[str, Rows]:
    """Read the curves that part "quality" left; {} if it has not run."""
    file = folder / "curves.json"
    return read_json(file) if file.exists() else {}


def table(rows: Rows) -> pd.DataFrame:
    """Lay rows out for reading: figures of three digits, and how near we are to the machine's limit."""
    lines = []
    for row in rows:
        near = row["share"]
        lines.append(
            {
                "what": row["row"],
                "setting": " ".join(filter(None, (row["regime"], row["dtype"]))),
                "unit": row["unit"],
                "ours": _short(row["ours"]),
                "peer": _short(row["peer"]),
                "ratio": "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                "share of the machine's limit": "" if near is None else f"{near:.0%}",
                "against": row["peer_name"],
            }
        )
    return pd.DataFrame(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
