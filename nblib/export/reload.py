"""Use an export as a stranger would: public libraries only, in a process of its own.

`python -m nblib.export.reload JOB OUT` reads a job (see nblib.export.verify) and writes the reps.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path


def reload_sentence_transformers(folder: str, documents: list, queries: list, batch_sizes: list) -> dict:
    """Encode both sides by SparseEncoder.

    Returns:
        {batch size: {"documents": [N, V] nested {term id: weight}, "queries": same, "scores": [Q, N]}}.
    """
    from sentence_transformers import SparseEncoder
    from transformers import AutoModelForMaskedLM

    model = SparseEncoder(folder, device="cpu")
    plain = AutoModelForMaskedLM.from_pretrained(folder)
    ours = model[0].sub_modules["document"][0].model.state_dict()
    same = all(bool((ours[n] == w).all()) for n, w in plain.state_dict().items())
    result = {"masked_lm_equal": same, "max_seq_length": model.max_seq_length}
    for size in batch_sizes:
        d_reps = model.encode_document(documents, batch_size=size)
        q_reps = model.encode_query(queries, batch_size=size)
        scores = model.similarity(q_reps, d_reps).tolist()
        result[str(size)] = {"documents": _rows(d_reps), "queries": _rows(q_reps), "scores": scores}
    return result


def _rows(reps) -> list[dict]:
    rows = reps.to_dense() if reps.is_sparse else reps
    return [{int(i): float(row[i]) for i in row.nonzero().flatten()} for row in rows]


def reload_documents(zip_path: str, documents: list, batch_sizes: list, token_format: str) -> dict:
    """Encode by the TorchScript file and name the terms as SparseEncodingTranslator does.

    Returns:
        {batch size: one {term: weight} per document}. Raises ValueError if two ids share a term.
    """
    import torch
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(zip_path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".pt")]
        model = torch.jit.load(archive.extract(name, scratch), map_location="cpu")
        core = Tokenizer.from_str(archive.read("tokenizer.json").decode())
    core.enable_padding()
    result = {}
    for size in batch_sizes:
        reps = []
        for start in range(0, len(documents), size):
            batch = core.encode_batch(documents[start : start + size])
            ids = torch.tensor([e.ids for e in batch])
            mask = torch.tensor([e.attention_mask for e in batch])
            with torch.no_grad():
                reps.extend(model({"input_ids": ids, "attention_mask": mask})["output"])
        result[str(size)] = [_named(core, row, token_format) for row in reps]
    return result


def _named(core, row, token_format: str) -> dict[str, float]:
    ids = row.nonzero().flatten().tolist()
    terms = [
        str(i) if token_format == "TOKEN_ID" else core.decode([i], skip_special_tokens=True) for i in ids
    ]
    if len(set(terms)) < len(terms):
        raise ValueError(f"two of {len(terms)} ids share a term")
    return dict(zip(terms, row[ids].tolist(), strict=True))


def reload_queries(zip_path: str, queries: list) -> list[dict]:
    """Weigh the distinct tokens of each query as ML Commons' SparseTokenizerModel does."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(zip_path) as archive:
        core = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        idf = json.loads(archive.read("idf.json"))
    decoded = [[core.decode([i], skip_special_tokens=True) for i in set(core.encode(q).ids)] for q in queries]
    return [{term: idf.get(term, 1.0) for term in terms if term} for terms in decoded]


KINDS = {
    "sentence_transformers": reload_sentence_transformers,
    "documents": reload_documents,
    "queries": reload_queries,
}

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(KINDS[job.pop("kind")](**job)), encoding="utf-8")
