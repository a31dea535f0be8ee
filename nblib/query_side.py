"""How a model of 03 or 04 reads queries: what its folder says of it, without loading the model."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from nblib.files import read_json, write_json

CONFIG = "sparse_config.json"  # nblib.model.encoder writes it; its import would bring torch


def query_side(model_folder: str | Path) -> str:
    """Tell how a model of 03 or 04 was trained to read queries, see nblib.model.retriever."""
    return read_json(Path(model_folder) / CONFIG).get("query_side", "idf")


def query_length(model_folder: str | Path) -> int | None:
    """Tell how many tokens of a query a model of 03 or 04 was trained to keep; None is all."""
    return read_json(Path(model_folder) / CONFIG).get("query_max_length") or None


def query_weights_file(idf_path: str | Path, model_folder: str | Path) -> Path:
    """Name the query weights that belong to a model: its own where it was trained with others than 02's.

    Raises:
        ValueError: the model was trained with weights of its own, and they are not in its folder.
    """
    own = Path(model_folder) / "idf.json"
    if own.exists():
        return own
    if (side := query_side(model_folder)) in ("learned-idf", "binary"):
        raise ValueError(
            f"{model_folder} was trained with query_side {side}, but the idf.json that 04 wrote there is "
            f"gone; {idf_path} is of another kind: copy the whole folder, or run 04_finetune again"
        )
    return Path(idf_path)


def note_weights(model_folder: str | Path, idf: np.ndarray) -> None:
    """Note in a model's folder by which query weights [V] it was trained, for warn_of_other_weights."""
    file = Path(model_folder) / CONFIG
    write_json(file, read_json(file) | {"trained_with": _digest(idf)})


def warn_of_other_weights(model_folder: str | Path, idf: np.ndarray, idf_path: str | Path) -> None:
    """Print a line if a model is to be used with other IDF [V] than it was trained with.

    That may be meant (the IDF of another collection, say), so it is not refused; by mistake it costs
    relevance and shows nowhere else. Models without a note are taken as they are.
    """
    noted = read_json(Path(model_folder) / CONFIG).get("trained_with")
    if query_side(model_folder) == "idf" and noted not in (None, _digest(idf)):
        print(
            f"NOTE {model_folder} was trained with other IDF than {idf_path}: if that is not meant, "
            "set idf_dir to the 02_idf that its training read"
        )


def _digest(idf: np.ndarray) -> str:
    return sha256(np.asarray(idf, np.float32).tobytes()).hexdigest()[:16]
