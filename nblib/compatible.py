"""Refuse parts that do not belong together: scored all the same, they give a low number and no error."""

from pathlib import Path
from typing import Any

import numpy as np

from nblib.backbones import load_tokenizer
from nblib.idf import load_idf, tokenizer_rules
from nblib.query_side import query_side, query_weights_file, warn_of_other_weights


def check_model(system: str, folder: str | Path) -> None:
    """Refuse a folder that is no sparse encoder of this repository.

    Args:
        system: of 05, for the message.
        folder: that the system's parameter leads to.

    Raises:
        ValueError: names the kind of model that lies there, and the parameter for it.
    """
    from nblib.teachers.models import CROSS, DENSE, MASKED_LM, OURS, SPARSE, TeacherModel

    kind = TeacherModel(str(folder), Path(folder)).kind
    cures = {
        DENSE: "it is searched as 'dense', by dense_teacher",
        SPARSE: "give the folder of 03 or 04 that it was exported from",
        CROSS: "it scores pairs of texts and cannot search",
        MASKED_LM: "run 03_pretrain with it as backbone first",
    }
    if kind != OURS:
        cure = cures.get(kind, "run 03_pretrain and 04_finetune")
        raise ValueError(f"system {system!r}: {folder} is a {kind}, not a model of 03 or 04: {cure}")


def query_weights(idf_path: str | Path, folder: str | Path, tokenizer: Any) -> np.ndarray | None:
    """Read the query weights of a model, and print a line if it was trained with others.

    Args:
        idf_path: idf.json of 02.
        folder: of the model; weights in it take the place of 02's.
        tokenizer: of the model.

    Returns:
        [V] float32; None for a siamese model, whose queries go through the encoder.

    Raises:
        ValueError: the weights belong to another tokenizer, or are not those of the model's query side.
    """
    side = query_side(folder)
    if side == "siamese":
        return None
    file = query_weights_file(idf_path, folder)
    idf = load_idf(file, tokenizer)
    counted = np.delete(idf, tokenizer.all_special_ids)
    if side == "binary" and (counted != 1).any():
        raise ValueError(
            f"{folder} was trained with binary queries, but {file} holds weights other than 1: restore the "
            "idf.json that 04 wrote into its folder"
        )
    warn_of_other_weights(folder, idf, file)
    return idf


def check_one_tokenizer(folders: dict[str, Path]) -> None:
    """Refuse models of unlike tokenizers: `bm25-tokens` and `idf-bag` can follow one only.

    Args:
        folders: parameter -> model folder.

    Raises:
        ValueError: names two that differ.
    """
    seen: dict[str, str] = {}
    for name, folder in folders.items():
        seen.setdefault(tokenizer_rules(load_tokenizer(str(folder))), name)
    if len(seen) > 1:
        words = " and ".join(f"{name} ({folders[name]})" for name in seen.values())
        raise ValueError(
            f"{words} cut texts by different tokenizers, so their terms and one idf.json cannot be compared: "
            "give the model of 03 that this 04 started from, or evaluate the two apart"
        )
