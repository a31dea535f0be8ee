"""Write the two zips that OpenSearch ML Commons registers: a document encoder and a query tokenizer.

Letters: V vocabulary (the tokenizer's ids).
"""

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from nblib.export.sentence_transformers import (
    checked_idf,
    checked_length,
    muted_mlm,
    no_bars,
    plain_tokenizer,
    query_length,
    refuse_siamese,
)
from nblib.export.trace import trace_in_fresh_process, write_zip
from nblib.files import ROOT, sha256_file, write_json
from nblib.model.encoder import NeuralSparseEncoder

TokenFormat = Literal["WORD", "TOKEN_ID"]


def token_strings(core: Tokenizer, special_ids: list[int], vocab_size: int) -> list[str]:
    """Decode every id as ML Commons does, one at a time; those strings are the terms of the index.

    Args:
        core: tokenizer of the `tokenizers` library.
        special_ids: ids that never get a weight; they keep their names.
        vocab_size: V.

    Returns:
        V strings, position = id, one-to-one.

    Raises:
        ValueError: two ids decode to the same string, an id decodes to nothing, or a special token is not
            marked as special in tokenizer.json (ML Commons would then send it with weight 0, answer 400).
    """
    special = set(special_ids)
    strings = core.decode_batch([[i] for i in range(vocab_size)], skip_special_tokens=True)
    leaking = [core.id_to_token(i) for i in special_ids if strings[i]]
    if leaking:
        raise ValueError(f"{leaking[:5]} must be added tokens with special: true in tokenizer.json")
    for i in special_ids:
        strings[i] = core.id_to_token(i)
    ids_of = defaultdict(list)
    for i, string in enumerate(strings):
        ids_of[string].append(i)
    bad = {s: ids for s, ids in ids_of.items() if len(ids) > 1 or (not s and ids[0] not in special)}
    if bad:
        shown = "; ".join(_describe(core, string, ids) for string, ids in list(bad.items())[:3])
        raise ValueError(
            f"{sum(map(len, bad.values()))} tokens do not decode one-to-one: {shown}. OpenSearch would merge "
            "them. Use a backbone with a WordPiece vocabulary, or call export_opensearch with "
            "token_format='TOKEN_ID'"
        )
    return strings


def _describe(core: Tokenizer, string: str, ids: list[int]) -> str:
    tokens = ", ".join(f"{core.id_to_token(i)!r} (id {i})" for i in ids[:4])
    return f"{tokens}{' and more' if len(ids) > 4 else ''} -> {string!r}"


def tokenizer_json(encoder: NeuralSparseEncoder, max_length: int) -> str:
    """Serialise the tokenizer with its truncation filled in: where it is null, OpenSearch cuts at 512."""
    core = plain_tokenizer(encoder, max_length).backend_tokenizer
    value = json.loads(core.to_str())
    cut = {"direction": "Right", "max_length": max_length, "strategy": "LongestFirst", "stride": 0}
    return json.dumps(value | {"truncation": cut, "padding": None}, ensure_ascii=False, indent=2)


def licence_text(licence: str) -> str:
    """Return the LICENSE of the zips: the repository's for apache-2.0, else a pointer to the base model's."""
    if licence == "apache-2.0":
        return (ROOT / "LICENSE").read_text(encoding="utf-8")
    return f"SPDX-License-Identifier: {licence}\nThe weights derive from a base model under this licence.\n"


def export_opensearch(
    encoder: NeuralSparseEncoder,
    idf: np.ndarray,
    folder: str | Path,
    name: str,
    version: str,
    max_length: int | None = None,
    prune_ratio: float = 0.0,
    licence: str = "apache-2.0",
    token_format: TokenFormat = "WORD",
) -> dict[str, Path]:
    """Write the document zip, the query zip and an ML Commons configuration for each.

    <name>-doc-<version>.zip: TorchScript file (CPU, float32, eager attention), tokenizer.json, LICENSE.
    <name>-query-<version>.zip: idf.json with every token, tokenizer.json, LICENSE.
    Beside each: <zip stem>.ml-commons_model_config.json, the body of the register call.

    The same weights, torch and transformers give the same bytes; another version of either writes the
    traced code in other words, and float32 weights trained elsewhere differ anyway.

    Args:
        encoder: the trained document encoder.
        idf: [V] query weights, special tokens 0.
        folder: where the files go; each is written whole or not at all.
        name: letters, digits, dot, dash, underscore.
        version: the model's version, e.g. "1.0.0".
        max_length: tokens kept per document, [CLS] and [SEP] included; default the encoder's. Queries are cut
            at the encoder's query_max_length where it was trained with one, else at LONGEST_QUERY.
        prune_ratio: weights of at most this share of a document's largest are dropped, 0 to below 1.
        licence: SPDX id of the base model's licence.
        token_format: "WORD" keys documents by token string, which must be one-to-one. "TOKEN_ID" keys them
            by id (OpenSearch 3): the query side is then no zip but {id: weight}, for raw query_tokens.

    Returns:
        {"doc", "doc_config", "query", "query_config"}; with TOKEN_ID {"doc", "doc_config", "query_ids"}.

    Raises:
        ValueError: name, version, prune_ratio, idf or max_length out of range, or a token collision.
    """
    for label, value in (("name", name), ("version", version)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"{label} {value!r}: use letters, digits, dot, dash and underscore only")
    if not 0 <= prune_ratio < 1:
        raise ValueError(f"prune_ratio {prune_ratio}: want 0 to below 1, 1 would drop every term")
    refuse_siamese(encoder)
    max_length, idf = checked_length(encoder, max_length), checked_idf(encoder, idf)
    tokenizer = tokenizer_json(encoder, max_length)
    weights = [round(float(w), 6) for w in idf]
    if token_format == "WORD":  # before the slow part
        terms = token_strings(Tokenizer.from_str(tokenizer), encoder.special_ids, encoder.vocab_size)
    licence_file = {"LICENSE": licence_text(licence).encode()}
    folder, paths = Path(folder), {}
    stem = f"{name}-doc-{version}"
    paths["doc"] = folder / f"{stem}.zip"
    script = {f"{stem}.pt": _traced(encoder, prune_ratio)}
    write_zip(paths["doc"], script | {"tokenizer.json": tokenizer.encode()} | licence_file)
    paths["doc_config"] = _write_config(paths["doc"], f"{name}-doc", version, "SPARSE_ENCODING")
    if token_format == "TOKEN_ID":
        paths["query_ids"] = folder / f"{name}-query-{version}.token-ids.json"
        write_json(paths["query_ids"], {str(i): w for i, w in enumerate(weights)})
        return paths
    stem = f"{name}-query-{version}"
    table = json.dumps(dict(zip(terms, weights, strict=True)), ensure_ascii=False, indent=0)
    paths["query"] = folder / f"{stem}.zip"
    cut = tokenizer_json(encoder, query_length(encoder, max_length))
    write_zip(paths["query"], {"idf.json": table.encode(), "tokenizer.json": cut.encode()} | licence_file)
    paths["query_config"] = _write_config(paths["query"], f"{name}-query", version, "SPARSE_TOKENIZE")
    return paths


def _traced(encoder: NeuralSparseEncoder, prune_ratio: float) -> bytes:
    """Return the TorchScript file's bytes."""
    with no_bars(), tempfile.TemporaryDirectory() as scratch:
        muted_mlm(encoder).save_pretrained(scratch)
        path = Path(scratch) / "model.pt"
        trace_in_fresh_process(Path(scratch), encoder.special_ids, prune_ratio, path, encoder.pooling)
        return path.read_bytes()


def _write_config(zip_path: Path, name: str, version: str, function: str) -> Path:
    """Write what ML Commons wants to know about a zip; the register call takes it with a "url" added."""
    path = zip_path.with_name(f"{zip_path.stem}.ml-commons_model_config.json")
    side = "Document encoder" if function == "SPARSE_ENCODING" else "Query tokenizer with IDF weights"
    config = {
        "name": name,
        "version": version,
        "description": f"{side} of an inference-free learned sparse retriever.",
        "model_format": "TORCH_SCRIPT",
        "function_name": function,
        "model_content_size_in_bytes": zip_path.stat().st_size,
        "model_content_hash_value": sha256_file(zip_path),
    }
    write_json(path, config)
    return path
