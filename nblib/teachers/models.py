"""Which weights a teacher's name stands for, of what kind they are, and whether all of them were trained."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nblib.backbones import load, resolve
from nblib.files import read_json, sha256_paths
from nblib.model.encoder import usable_positions

# Kinds; the first three are the model types that sentence-transformers writes.
DENSE, SPARSE, CROSS = "SentenceTransformer", "SparseEncoder", "CrossEncoder"
OURS, MASKED_LM, BARE = "sparse encoder of this repository", "masked LM", "encoder without a head"
SLOTS = {  # what is wanted -> (kinds that serve, in words)
    DENSE: ((DENSE, BARE), "a dense teacher, which is a SentenceTransformer"),
    SPARSE: (
        (SPARSE, OURS, MASKED_LM),
        "a sparse teacher, which is a SparseEncoder or a masked LM",
    ),
    CROSS: ((CROSS,), "a cross-encoder, which gives one score per pair"),
}
CURES = {  # what was found -> what to do
    DENSE: "name it as the dense teacher",
    SPARSE: "name it as the sparse teacher",
    OURS: "name it as the sparse teacher",
    CROSS: "name it as the cross-encoder",
    MASKED_LM: "an OpenSearch or SPLADE model goes in as the sparse teacher; a plain backbone cannot teach",
}
ENDINGS = {"ForMaskedLM": MASKED_LM, "ForSequenceClassification": CROSS, "Model": BARE}
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.py"]
OTHER_FORMATS = ["onnx/*", "openvino/*", "*.gguf"]


@dataclass(frozen=True)
class TeacherModel:
    """A model on this machine. name: as the user wrote it. from_hub: folder is a snapshot of a commit."""

    name: str
    folder: Path
    from_hub: bool = False

    @cached_property
    def identity(self) -> str:
        """Name the content: the commit of a model from the hub, else the hash of all files in its folder."""
        return f"{self.name}@{self.folder.name}" if self.from_hub else sha256_paths([self.folder])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Read what sentence-transformers keeps beside the weights: model type, prompts, similarity."""
        file = self.folder / "config_sentence_transformers.json"
        return read_json(file) if file.exists() else {}

    @cached_property
    def kind(self) -> str:
        """Tell by its files what the folder holds; nothing is loaded.

        Raises:
            ValueError: it holds no model.
        """
        modules, config = self.folder / "modules.json", self.folder / "config.json"
        if (self.folder / "sparse_config.json").exists():
            return OURS
        if modules.exists():
            is_sparse = "sparse_encoder" in modules.read_text(encoding="utf-8")
            return SPARSE if is_sparse else self.settings.get("model_type", DENSE)
        if not config.exists():
            raise ValueError(f"{self.name!r}: {self.folder} holds neither modules.json nor config.json")
        architecture = (read_json(config).get("architectures") or ["Model"])[0]
        return next((kind for end, kind in ENDINGS.items() if architecture.endswith(end)), architecture)

    def key(self, *more: str) -> list[str]:
        """List what decides its output besides the texts: content, prompts, similarity, and `more`."""
        names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_active_dims")
        return [self.identity, *(f"{name}={self.settings.get(name)!r}" for name in names), *more]


def find_model(name: str, wanted: str) -> TeacherModel:
    """Find the weights of a teacher, from the hub if need be, and refuse another kind of model.

    Args:
        name: a folder, the embedded model's id or a Hugging Face id.
        wanted: DENSE, SPARSE or CROSS.

    Raises:
        OSError: not on this machine and not to be had from the hub.
        ValueError: another kind of model; the message says where it belongs.
    """
    folder = Path(resolve(name))
    if folder.is_dir():
        model = TeacherModel(name, folder)
    else:
        model = TeacherModel(name, Path(load(snapshot, _full_name(name, wanted))), from_hub=True)
    kinds, words = SLOTS[wanted]
    if model.kind not in kinds:
        cure = CURES.get(model.kind, "name a model that was trained to rank")
        raise ValueError(f"{name!r} is a {model.kind}, not {words}: {cure}")
    return model


def _full_name(name: str, wanted: str) -> str:
    """Put the organisation before a bare name, as the loaders of sentence-transformers do."""
    import sentence_transformers

    organisation = getattr(sentence_transformers, wanted).default_huggingface_organization
    return name if "/" in name else f"{organisation}/{name}"


def snapshot(name: str, local_files_only: bool = False) -> str:
    """Bring the files of one commit to the hub's cache, weights in one format only, and give the folder.

    Raises:
        OSError: the name is no id, or the model is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def fetch(patterns: list[str], ignored: list[str], commit: str | None = None) -> Path:
        options = {"allow_patterns": patterns, "ignore_patterns": ignored, "revision": commit}
        return Path(snapshot_download(name, local_files_only=local_files_only, **options))

    try:
        folder = fetch([*SMALL_FILES, "*.safetensors"], OTHER_FORMATS)
    except HFValidationError as error:
        raise OSError(str(error)) from error
    if not local_files_only:
        fetch(["*.bin"], [*OTHER_FORMATS, *twice_there(folder)], folder.name)
    return str(folder)


def twice_there(folder: Path) -> list[str]:
    """List patterns of the .bin weights that lie beside .safetensors of the same module."""
    homes = {file.parent.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")}
    return sorted("pytorch_model*.bin" if home == "." else f"{home}/*.bin" for home in homes)


def cut_inputs(model: Any, max_length: int) -> None:
    """Let a sentence-transformers model read max_length tokens, or as many as it can if that is less."""
    limits = [limit for limit in (max_length, model.max_seq_length, usable_positions(model)) if limit]
    with suppress(AttributeError):  # a model of static embeddings reads any length
        model.max_seq_length = int(min(limits))


def refuse_untrained(name: str, folder: Path, loader: Any, cure: str) -> None:
    """Refuse weights that transformers would fill with random numbers, as it does with one line of log.

    Args:
        name: for the message.
        folder: of a transformers model.
        loader: the AutoModel class that it will be loaded by.
        cure: for the message.

    Raises:
        ValueError: the checkpoint lacks weights.
    """
    options = {"output_loading_info": True, "device_map": "meta"}  # names and shapes only
    _, info = load(loader.from_pretrained, str(folder), **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{name!r} lacks weights of its head ({', '.join(missing[:3])} ...), which would be random "
            f"numbers. {cure}"
        )
