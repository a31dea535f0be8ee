"""Write a trained encoder as a sentence-transformers SparseEncoder folder that plain transformers loads too.

Letters: V vocabulary (the tokenizer's ids).
"""

import copy
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from nblib.files import atomic_folder, read_json, write_json
from nblib.model.encoder import CONFIG, NeuralSparseEncoder

MUTED_BIAS = -1.0e4  # far below any logit, and still a number in float16
LONGEST_QUERY = 512  # tokens: OpenSearch's tokenizer keeps no more, whatever tokenizer.json says


@contextmanager
def no_bars():
    """Silence transformers' bars of loading and saving, which last a second and fill a notebook."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def plain_tokenizer(encoder: NeuralSparseEncoder, max_length: int):
    """Copy the tokenizer with model_max_length set and without the cut or padding of an earlier call.

    A fast tokenizer keeps the last call's truncation and padding and would save them.
    """
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = max_length
    return tokenizer


def muted_mlm(encoder: NeuralSparseEncoder):
    """Copy the masked-LM model so that special tokens never get a weight, without custom code.

    The decoder bias of the special tokens becomes -1e4: relu then gives exactly 0, as our encoder's mask
    does. Embedding rows beyond the tokenizer's ids (padding to a multiple of 64) have no token and are cut.
    The bias stays tied, so the weights survive save and load.

    Returns:
        A float32 model on the CPU in eval mode, with usual logits [B, L, V].

    Raises:
        ValueError: the architecture's decoder has no bias.
    """
    with encoder.plain_mlm() as mlm:
        mlm = copy.deepcopy(mlm)
    mlm = mlm.float().cpu().eval()
    if mlm.get_output_embeddings().out_features != encoder.vocab_size:
        mlm.resize_token_embeddings(encoder.vocab_size)
    bias = mlm.get_output_embeddings().bias
    if bias is None:
        raise ValueError(
            f"{type(mlm).__name__} has no decoder bias, which the export needs to silence special tokens; "
            "train with a backbone whose config has one (ModernBERT: decoder_bias true)"
        )
    with torch.no_grad():
        bias[encoder.special_ids] = MUTED_BIAS
    return mlm


def checked_length(encoder: NeuralSparseEncoder, max_length: int | None) -> int:
    """Return max_length, or the encoder's own. Raises ValueError if the positions do not reach that far."""
    max_length = max_length or encoder.max_length
    if max_length < 3 or (encoder.positions and max_length > encoder.positions):
        limit = encoder.positions or "any length"
        raise ValueError(f"max_length {max_length}: want 3 to {limit}, the positions of this backbone")
    return max_length


def query_length(encoder: NeuralSparseEncoder, max_length: int) -> int:
    """Return how many tokens of a query an export keeps: as training did, or as many as OpenSearch takes.

    A bag of tokens has no positions to run out of, so a model that keeps all is not cut where documents are.
    """
    return encoder.query_max_length or LONGEST_QUERY


def checked_idf(encoder: NeuralSparseEncoder, idf: np.ndarray) -> np.ndarray:
    """Return idf as float32. Raises ValueError unless it is [V], finite, >= 0 and 0 for special tokens."""
    idf = np.asarray(idf, dtype=np.float32)
    if idf.shape != (encoder.vocab_size,):
        raise ValueError(f"idf has shape {idf.shape}, the tokenizer {encoder.vocab_size} tokens; run 02_idf")
    bad = ~np.isfinite(idf) | (idf < 0)
    bad[encoder.special_ids] |= idf[encoder.special_ids] != 0
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        token = encoder.tokenizer.convert_ids_to_tokens(i)
        raise ValueError(
            f"idf of {token!r} (id {i}) is {idf[i]}: want finite, >= 0, and 0 for special tokens"
        )
    return idf


def refuse_siamese(encoder: NeuralSparseEncoder) -> None:
    """Raise ValueError for a model whose queries need the encoder too; both exports weigh query tokens."""
    if encoder.query_side == "siamese":
        raise ValueError(
            "this model was trained with query_side siamese: its queries are no bags of weighted tokens. "
            "Train with idf, learned-idf or binary to export it, or encode queries with NeuralSparseEncoder"
        )


def export_sentence_transformers(
    encoder: NeuralSparseEncoder, idf: np.ndarray, folder: str | Path, max_length: int | None = None
) -> Path:
    """Write a SparseEncoder folder: queries by a frozen weight table, documents by the masked-LM model.

    `SparseEncoder(folder)` gives our reps on both sides. The document model lies in the folder's root, so
    `AutoModelForMaskedLM.from_pretrained(folder)` and `NeuralSparseEncoder.load(folder)` work as well and
    the weights are stored once. Special tokens are silenced by their decoder bias, see muted_mlm.

    Documents are cut at max_length; queries at the encoder's query_max_length where it has one, else at
    LONGEST_QUERY. The query side adds no special tokens, so a query longer than its cut - 2 keeps up to two
    tokens more than in OpenSearch, which counts [CLS] and [SEP].

    Args:
        encoder: the trained document encoder.
        idf: [V] query weights, special tokens 0.
        folder: written whole or not at all; an older one is replaced.
        max_length: tokens kept per document; default the encoder's.

    Returns:
        The folder.

    Raises:
        ValueError: idf does not fit the tokenizer, max_length exceeds the positions, no decoder bias, a
            siamese model, or an activation_threshold, which this layout cannot carry.
    """
    refuse_siamese(encoder)
    if encoder.pooling.activation_threshold:
        raise ValueError(
            "sentence-transformers has no activation_threshold: train with 0.0, or prune at search instead"
        )
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import (
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    max_length, idf = checked_length(encoder, max_length), checked_idf(encoder, idf)
    tokenizer = plain_tokenizer(encoder, max_length)
    with no_bars(), atomic_folder(folder) as tmp:
        muted_mlm(encoder).save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
        document = Transformer(str(tmp), transformer_task="fill-mask", max_seq_length=max_length)
        cut = plain_tokenizer(encoder, query_length(encoder, max_length))
        query = SparseStaticEmbedding(cut, torch.from_numpy(idf.copy()), frozen=True)
        pooling = SpladePooling(
            encoder.pooling.strategy, encoder.pooling.activation, embedding_dimension=encoder.vocab_size
        )
        router = Router.for_query_document([query], [document, pooling])
        model = SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu")
        model.save_pretrained(str(tmp), create_model_card=False)
        _move_document_to_root(tmp)
        tokens = tokenizer.convert_ids_to_tokens(range(encoder.vocab_size))
        write_json(tmp / "idf.json", {t: round(float(w), 6) for t, w in zip(tokens, idf, strict=True)})
        write_json(tmp / CONFIG, encoder.settings(max_length))
        for file in filter(Path.is_file, tmp.rglob("*")):
            file.chmod(0o644)  # safetensors writes 0600, which another user of a shared folder cannot read
    return Path(folder)


def _move_document_to_root(folder: Path) -> None:
    """Turn document_0_Transformer/ into the root: the router takes "" as the name of a module's folder."""
    name = "document_0_Transformer"
    for file in (folder / name).iterdir():
        file.replace(folder / file.name)
    (folder / name).rmdir()
    router = json.dumps(read_json(folder / "router_config.json"))
    write_json(folder / "router_config.json", json.loads(router.replace(f'"{name}"', '""')))
