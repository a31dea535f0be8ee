"""How a model of 03 or 04 reads queries: what its folder says of it, without loading the model."""

from pathlib import Path

from nblib.files import read_json

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
