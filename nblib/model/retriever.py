"""Both sides of a sparse retriever: what a training step, or a process of several, runs in one forward pass.

Letters: Q queries and D documents of a batch, L tokens, V vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from nblib.distributed import gather_rows, own_share
from nblib.files import write_json
from nblib.losses import idf_vector
from nblib.model.encoder import NeuralSparseEncoder

QUERY_SIDES = ("idf", "learned-idf", "binary", "idf-at-search", "siamese")


class SparseRetriever(nn.Module):
    """A document encoder and one of five query sides.

    - "idf": a query is the set of its tokens times a fixed IDF (arXiv:2411.04403, eq. 5); no encoder pass.
    - "learned-idf": the same, and the weights are trained (Li-LSR, arXiv:2505.01452); relu keeps them >= 0.
    - "binary": the set of its tokens, each of weight 1 (SPLADE-doc, arXiv:2109.10086); `idf` is not read.
    - "idf-at-search": "binary" in training, so that common tokens teach as much as rare ones; searched with
      `idf` as "idf" is. Higher than "idf" in 280 steps, against the paper: profile `ablation`.
    - "siamese": the document encoder reads queries too.

    Args:
        encoder: reads documents, and queries where the side is "siamese".
        idf: [V] query weights, or {token: weight} in the order of the ids.
        query_side: one of the five.

    Raises:
        ValueError: another name, or weights that do not fit the encoder's vocabulary.
    """

    def __init__(self, encoder: NeuralSparseEncoder, idf, query_side: str = "idf") -> None:
        super().__init__()
        if query_side not in QUERY_SIDES:
            raise ValueError(f"query_side {query_side!r}: want one of {', '.join(QUERY_SIDES)}")
        if len(idf) != encoder.vocab_size:
            raise ValueError(f"{len(idf)} query weights for a vocabulary of {encoder.vocab_size} tokens")
        weights = idf_vector(idf, encoder.vocab_size, default=0.0)
        self.encoder, self.query_side = encoder, query_side
        self._given_idf = weights
        if query_side in ("binary", "idf-at-search"):
            weights = torch.ones_like(weights)
        weights = weights.clone().to(encoder.device)
        self.query_weights = nn.Parameter(weights, requires_grad=query_side == "learned-idf")

    @property
    def idf(self) -> Tensor:
        """[V] weights of query tokens in training, >= 0, special tokens 0."""
        return torch.relu(self.query_weights) * self.encoder.term_mask

    @property
    def search_idf(self) -> Tensor:
        """[V] weights of query tokens in search: those of training, but for "idf-at-search"."""
        if self.query_side == "idf-at-search":
            return self._given_idf.to(self.encoder.term_mask) * self.encoder.term_mask
        return self.idf

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encode a batch of nblib.train.collator.Collator.

        Each process encodes its own share of the documents (and, with a siamese side, of the queries).

        Args:
            batch: the whole batch, the same in every process.

        Returns:
            q_reps: [Q, V] of all queries. d_reps: [D_own, V] of this process's documents.
        """
        d_reps = self._encode_own(batch["input_ids"], batch["attention_mask"])
        if self.query_side != "siamese":
            return batch["q_bags"] * self.idf, d_reps
        return gather_rows(self._encode_own(batch["q_input_ids"], batch["q_attention_mask"])), d_reps

    def _encode_own(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode this process's share of the rows: [N, L] -> [N_own, V]."""
        own = own_share(len(input_ids))
        if own.start == own.stop:  # fewer texts than processes: DDP still waits for this one's gradients
            return self.encoder(input_ids[:1], attention_mask[:1])[:0]
        return self.encoder(input_ids[own], attention_mask[own])

    def save_query_weights(self, file: Path) -> None:
        """Write {token: weight} in the order of the ids, the form of 02's idf.json."""
        tokens = self.encoder.tokenizer.convert_ids_to_tokens(range(self.encoder.vocab_size))
        write_json(file, dict(zip(tokens, self.idf.tolist(), strict=True)))
