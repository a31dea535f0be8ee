"""Check the zips of 06 before the upload: what OpenSearch would refuse late, or take and get wrong."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nblib.export.opensearch import TokenFormat, token_strings
from nblib.files import read_json, sha256_file

ENCODER, TOKENIZER = "SPARSE_ENCODING", "SPARSE_TOKENIZE"
NEWEST_TORCH = (2, 13)  # whose traces were seen to load in OpenSearch's libtorch 2.5.1
NEWEST_FORMAT = 10  # of a TorchScript file, by libtorch 2.5.1
NOTES = ("torch", "prune_ratio")  # that nblib.export.trace leaves in a .pt
AGAIN = "run 06_export again"


@dataclass(frozen=True)
class Package:
    """A zip that was checked: its file, and the body of its register call.

    max_length: tokens kept of a text. prune_ratio: weights of at most this share of a document's largest are
    dropped; 0 of a query tokenizer.
    """

    file: Path
    config: dict[str, Any]
    max_length: int
    prune_ratio: float

    @property
    def name(self) -> str:
        """The model's name in the cluster."""
        return self.config["name"]

    @property
    def digest(self) -> str:
        """sha256 of the zip, by which a cluster knows a model again."""
        return self.config["model_content_hash_value"]


def open_package(file: str | Path, token_format: TokenFormat = "WORD") -> Package:
    """Read a zip of 06 and the configuration beside it.

    Args:
        file: the zip.
        token_format: what an index is keyed by; "WORD" needs tokens that decode to unlike strings.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: they do not belong together, or the zip is not what its function_name says; a trace that
            OpenSearch's libtorch may not load; a tokenizer whose tokens would be merged, or that has no cut;
            a token without a weight. Names the file and the cure.
    """
    file = Path(file)
    beside = file.with_name(f"{file.stem}.ml-commons_model_config.json")
    for needed in (file, beside):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed} is not there: {AGAIN}")
    config = read_json(beside)
    if (digest := sha256_file(file)) != config.get("model_content_hash_value"):
        raise ValueError(
            f"{file} has sha256 {digest[:12]}..., {beside.name} has "
            f"{str(config.get('model_content_hash_value'))[:12]}...: they are of two exports; {AGAIN}"
        )
    try:
        with zipfile.ZipFile(file) as held:
            max_length, prune_ratio = _check_content(file, held, config.get("function_name"), token_format)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is no zip ({error}): {AGAIN}") from None
    return Package(file, config, max_length, prune_ratio)


def _check_content(
    file: Path, held: zipfile.ZipFile, function: str | None, token_format: TokenFormat
) -> tuple[int, float]:
    names = held.namelist()
    traces = [name for name in names if name.endswith(".pt")]
    is_a = ENCODER if traces else TOKENIZER if "idf.json" in names else None
    if is_a is None or "tokenizer.json" not in names or len(traces) > 1 or any("/" in n for n in names):
        raise ValueError(
            f"{file} holds {', '.join(names[:6])}: want one .pt and tokenizer.json, or idf.json and "
            f"tokenizer.json, without folders; {AGAIN}"
        )
    if function != is_a:
        raise ValueError(f"{file} holds what {is_a} wants, but its function_name is {function}: {AGAIN}")
    settings = json.loads(held.read("tokenizer.json"))
    if not (cut := (settings.get("truncation") or {}).get("max_length")):
        raise ValueError(f"{file}: tokenizer.json has no truncation, so the server would cut at 512: {AGAIN}")
    terms = _terms(file, settings) if token_format == "WORD" or not traces else []
    if traces:
        return cut, _check_trace(file, held.read(traces[0]))
    if lacking := sorted(set(terms) - json.loads(held.read("idf.json")).keys()):
        raise ValueError(
            f"{file}: idf.json lacks {len(lacking)} tokens, such as {lacking[0]!r}, which the server would "
            f"weigh 1.0: {AGAIN}"
        )
    return cut, 0.0


def _terms(file: Path, settings: dict[str, Any]) -> list[str]:
    """Name the terms of the index as the server will."""
    core = Tokenizer.from_str(json.dumps(settings))
    special_ids = [row["id"] for row in settings["added_tokens"] if row["special"]]
    try:
        return token_strings(core, special_ids, core.get_vocab_size())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _check_trace(file: Path, content: bytes) -> float:
    """Refuse what OpenSearch may not load; returns the trace's prune_ratio."""
    with zipfile.ZipFile(io.BytesIO(content)) as trace:
        parts = {name.split("/", 1)[-1]: name for name in trace.namelist()}
        version = next((parts[name] for name in (".data/version", "version") if name in parts), None)
        written = int(trace.read(version)) if version else 0
        notes = {
            name: trace.read(parts[f"extra/{name}"]).decode() for name in NOTES if f"extra/{name}" in parts
        }
    if written > NEWEST_FORMAT:
        raise ValueError(
            f"{file}: its trace has format {written}, OpenSearch's libtorch reads up to {NEWEST_FORMAT}: "
            f"install torch {'.'.join(map(str, NEWEST_TORCH))} or older, and {AGAIN}"
        )
    if len(notes) < len(NOTES):
        raise ValueError(
            f"{file}: its trace lacks the notes {', '.join(NOTES)} of this package's exports: {AGAIN}"
        )
    by = notes["torch"]
    if tuple(int(part) for part in by.split(".")[:2]) > NEWEST_TORCH:
        raise ValueError(
            f"{file} was traced by torch {by}; {'.'.join(map(str, NEWEST_TORCH))} is the newest whose traces "
            f"were seen to load in OpenSearch's libtorch: install that, and {AGAIN}"
        )
    return float(notes["prune_ratio"])
