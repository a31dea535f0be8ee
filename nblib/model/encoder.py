"""Encoder of texts: a masked-LM whose logits become one weight per vocabulary term.

w_j(d) = max over positions i of log(1 + relu(z_ij)), special tokens 0 (SPLADE-max, arXiv:2109.10086).

Letters: B documents, L tokens, H hidden size, V vocabulary.
"""

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nblib.backbones import load, load_tokenizer
from nblib.bags import query_matrix
from nblib.files import read_json, write_json
from nblib.model.head import max_logits, sum_weights
from nblib.model.padding import pad, trim
from nblib.model.pooling import Pooling, activate

CONFIG = "sparse_config.json"
CPU_SLICE = 8  # documents of unlike length that go through the backbone together on a CPU


def _identity(hidden: Tensor) -> Tensor:
    return hidden


class NeuralSparseEncoder(nn.Module):
    """Encode documents into [B, V] term weights.

    The name and the first arguments are those of the published guides (guide 002).

    Args:
        model_name: folder, Hugging Face id or the embedded model's id; an architecture that
            AutoModelForMaskedLM knows.
        max_length: tokens kept per document, special tokens included.
        use_relu: kept for the guides' signature; False is refused, since without relu every weight is
            non-zero and nothing can be indexed.
        fresh_head: accept a backbone whose masked-LM head is not in its weights (03_pretrain warms it up).
        pooling: how logits become weights.

    Raises:
        ValueError: use_relu is False, the head is freshly initialised, or max_length exceeds the positions.
    """

    def __init__(
        self,
        model_name: str,
        max_length: int = 256,
        use_relu: bool = True,
        fresh_head: bool = False,
        pooling: Pooling | None = None,
    ) -> None:
        from transformers import AutoModelForMaskedLM

        super().__init__()
        if not use_relu:
            raise ValueError("use_relu=False leaves all terms active; a sparse index needs the relu")
        self.mlm, info = load(
            AutoModelForMaskedLM.from_pretrained, model_name, output_loading_info=True, dtype=torch.float32
        )
        self.tokenizer = load_tokenizer(model_name)
        self.positions = usable_positions(self.mlm)
        if self.positions and max_length > self.positions:
            raise ValueError(
                f"max_length {max_length} exceeds the {self.positions} positions of {model_name}"
            )
        self.decoder = self.mlm.get_output_embeddings()  # nn.Linear(H, V), tied to the input embeddings
        missing = _head_keys(self.mlm, info["missing_keys"])
        self.has_trained_head = not missing
        if missing and not fresh_head:
            raise ValueError(
                f"{model_name}: the masked-LM head is freshly initialised (missing "
                f"{', '.join(missing[:3])} ...). Its logits mean nothing. "
                "Run 03_pretrain, which warms the head up, or choose a backbone with a masked-LM head"
            )
        self.max_length = max_length
        self.use_relu = use_relu
        self.pooling = pooling or Pooling()
        self.query_side = "idf"  # what it was trained with, see nblib.model.retriever
        self.query_max_length = 0  # tokens kept per query; 0 keeps all
        self.pad_to_multiple_of = 0  # widths of batches in training, where the texts were padded to it
        self.mini_batch = 0  # documents per slice that the backward pass computes anew; 0 keeps all in memory
        self.screen = False  # see max_logits; nblib.precision sets it where it pays
        self.adapters: tuple = ()  # peft's view of the backbone, see nblib.model.lora; not a submodule
        # The tokenizer's ids only: embeddings may be padded to a multiple of 64, and those rows mean nothing.
        self.vocab_size = len(self.tokenizer)
        self.special_ids = sorted(set(self.tokenizer.all_special_ids))
        self.register_buffer("term_mask", torch.ones(self.vocab_size), persistent=False)
        self.term_mask[self.special_ids] = 0.0
        # The model then ends with the transformed hidden states [B, L, H]; max_logits applies the decoder.
        self.decoder.forward = _identity

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.term_mask.device

    @contextmanager
    def plain_mlm(self):
        """Give the masked-LM model with its usual logits [B, L, V] for the length of the block."""
        del self.decoder.forward
        try:
            yield self.mlm
        finally:
            self.decoder.forward = _identity

    def set_dropout(self, rate: float) -> None:
        """Set every dropout layer's rate (0..1); 0 also lets the CPU use its fast attention in training."""
        for module in self.mlm.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate

    def decoder_bias(self) -> Tensor:
        """Return the decoder's bias [V], zeros if the architecture has none."""
        bias = self.decoder.bias
        return bias if bias is not None else self.decoder.weight.new_zeros(self.decoder.out_features)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Run backbone and head transform: [B, L] ids and mask -> [T, H] inputs of the decoder, packed.

        The batch goes through in slices where that saves memory or padding. With `mini_batch`, a slice keeps
        nothing for the backward pass, which computes it again with the same dropout (GradCache,
        arXiv:2101.06983): memory follows the slice, and the gradient is that of the whole batch. The
        documents come out in the order of `attention_mask`, token after token.
        """
        lengths = attention_mask.sum(dim=1)
        parts: list[Tensor] = [None] * len(lengths)
        for rows in self._slices(lengths):
            ids, mask = trim(input_ids[rows], attention_mask[rows], self.pad_to_multiple_of)
            if self.mini_batch and torch.is_grad_enabled():
                hidden = checkpoint(self._backbone, ids, mask, use_reentrant=False)
            else:
                hidden = self._backbone(ids, mask)  # [slice, width, H]
            pieces = hidden[mask.bool()].split(lengths[rows].tolist())
            for row, piece in zip(rows.tolist(), pieces, strict=True):
                parts[row] = piece
        return torch.cat(parts)  # [T, H]

    def _backbone(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.mlm(input_ids=input_ids, attention_mask=attention_mask).logits

    def _slices(self, lengths: Tensor) -> Sequence[Tensor]:
        """Cut a batch into rows that go through the backbone together.

        On a CPU documents of like length share a slice, since a kernel over padding costs as much as one over
        tokens; documents that are all of one length need no cut.
        """
        on_cpu = self.device.type == "cpu" and bool((lengths != lengths[0]).any())
        size = min(filter(None, (self.mini_batch, CPU_SLICE if on_cpu else 0)), default=len(lengths))
        order = lengths.argsort(stable=True) if size < len(lengths) else torch.arange(len(lengths))
        return order.split(size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode one batch.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L] 1 for a token, 0 for padding.

        Returns:
            d_reps: [B, V] float, >= 0; special tokens 0.
        """
        packed = self.hidden_states(input_ids, attention_mask)  # [T, H]
        lengths = attention_mask.sum(dim=1).tolist()
        weight, bias = self.decoder.weight, self.decoder_bias()
        if len(weight) > self.vocab_size:  # the gradient of a cut is a copy as large as the vocabulary
            weight, bias = weight[: self.vocab_size], bias[: self.vocab_size]
        if self.pooling.strategy == "max":
            screen = self.screen and not torch.is_autocast_enabled(packed.device.type)
            top = max_logits(packed, lengths, weight, bias, screen)  # [T, H] -> [B, V]
            reps = activate(top, self.pooling.activation)
        else:
            reps = sum_weights(packed, lengths, weight, bias, self.pooling.activation)
        if self.pooling.activation_threshold:
            reps = reps * (reps >= self.pooling.activation_threshold)
        return reps * self.term_mask

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Turn texts into unpadded ids, cut at max_length. Raises ValueError on an empty text."""
        for i, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"document {i} of the batch is empty; drop it before encoding")
        return self.tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length or self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    @torch.inference_mode()
    def encode_documents(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
        max_length: int | None = None,
    ) -> sparse.csr_matrix:
        """Encode documents into a sparse matrix; the order of `texts` is kept.

        Documents of like length share a batch, so hardly any padding is computed.

        Args:
            texts: N documents, none empty.
            batch_size: documents per batch.
            progress: called with the number of documents encoded so far.
            max_length: tokens kept per text, if not the encoder's own.

        Returns:
            [N, V] float32 CSR.
        """
        if not len(texts):
            return sparse.csr_matrix((0, self.vocab_size), dtype=np.float32)
        was_training = self.training
        self.eval()
        ids = self.tokenize(texts, max_length)
        order = np.argsort([-len(x) for x in ids], kind="stable")  # longest first: memory peaks at once
        parts = []
        for start in range(0, len(order), batch_size):
            batch = [ids[i] for i in order[start : start + batch_size]]
            reps = self(*pad(batch, self.tokenizer.pad_token_id, self.device))  # [B, V]
            parts.append(sparse.csr_matrix(reps.float().cpu().numpy()))
            if progress:
                progress(min(start + batch_size, len(order)))
        self.train(was_training)
        inverse = np.empty(len(order), dtype=np.int64)
        inverse[order] = np.arange(len(order))
        return sparse.vstack(parts, format="csr")[inverse]

    def encode_queries(
        self, queries: Sequence[str], idf: np.ndarray, batch_size: int = 32
    ) -> sparse.csr_matrix:
        """Encode queries as this model was trained to: bags of weighted tokens, or siamese, by the encoder.

        Args:
            queries: Q texts.
            idf: [V] weights of query tokens; a siamese model does not read them.
            batch_size: queries per batch of a siamese model.

        Returns:
            [Q, V] float32 CSR.
        """
        length = self.query_max_length or None
        if self.query_side == "siamese":
            return self.encode_documents(queries, batch_size, max_length=length)
        return query_matrix(queries, self.tokenizer, idf, length)

    def get_sparsity_stats(self, d_reps: Tensor) -> dict[str, float]:
        """Summarise [B, V] reps under the guides' key names; a term counts as active above 1e-6."""
        active = (d_reps.abs() > 1e-6).float()
        return {
            "avg_nonzero_terms": active.sum(dim=1).mean().item(),
            "avg_l1_norm": d_reps.abs().sum(dim=1).mean().item(),
            "avg_max_value": d_reps.amax(dim=1).mean().item(),
            "sparsity_ratio": 1.0 - active.mean().item(),
        }

    def get_top_k_terms(self, rep: Tensor, k: int = 10) -> list[tuple[str, float]]:
        """Name the k heaviest terms of one rep [V], heaviest first, zeros left out."""
        weights, ids = rep.topk(k)
        tokens = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return [(t, w) for t, w in zip(tokens, weights.tolist(), strict=True) if w > 0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face masked-LM folder, plus sparse_config.json and neural_sparse_head.pt.

        AutoModelForMaskedLM loads the folder. neural_sparse_head.pt repeats the head without the tied
        embedding (transform and bias), under the file name of guide 002.
        """
        folder = Path(folder)
        with self.plain_mlm() as mlm:
            for adapted in self.adapters:
                mlm = copy.deepcopy(adapted).merge_and_unload()
            mlm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = self.mlm.state_dict()
        tied = {id(self.decoder.weight)} | {id(p) for p in self.mlm.get_input_embeddings().parameters()}
        base = self.mlm.base_model_prefix + "."
        own = {n for n, p in self.mlm.named_parameters() if not n.startswith(base) and id(p) not in tied}
        torch.save({n: state[n].cpu() for n in own}, folder / "neural_sparse_head.pt")
        write_json(folder / CONFIG, self.settings())

    def settings(self, max_length: int | None = None) -> dict:
        """Give what sparse_config.json holds, with another max_length if one is given."""
        return {
            "max_length": max_length or self.max_length,
            "use_relu": self.use_relu,
            "pooling": asdict(self.pooling),
            "query_side": self.query_side,
            "query_max_length": self.query_max_length,
        }

    @classmethod
    def load(cls, folder: str | Path, max_length: int | None = None) -> "NeuralSparseEncoder":
        """Load a folder that save_pretrained wrote, with its own max_length unless one is given.

        Raises:
            FileNotFoundError: the folder is not one of ours.
        """
        if not os.path.exists(Path(folder) / CONFIG):
            raise FileNotFoundError(f"{folder} holds no {CONFIG}; run 03_pretrain or 04_finetune first")
        config = read_json(Path(folder) / CONFIG)
        pooling = Pooling(**config.get("pooling", {}))
        encoder = cls(str(folder), max_length or config["max_length"], config["use_relu"], pooling=pooling)
        encoder.query_side = config.get("query_side", "idf")
        encoder.query_max_length = config.get("query_max_length", 0)
        return encoder


def usable_positions(model: nn.Module) -> int:
    """Count the tokens that a model's position embeddings have room for; 0 if nothing limits them."""
    positions = getattr(model.config, "max_position_embeddings", 0) or 0
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return positions - module.padding_idx - 1  # RoBERTa counts from behind the padding's row
    return positions


def _head_keys(mlm: nn.Module, missing: Sequence[str]) -> list[str]:
    """Pick the weights of the masked-LM head out of the keys that a checkpoint lacks."""
    return sorted(key for key in missing if not key.startswith(mlm.base_model_prefix + "."))
