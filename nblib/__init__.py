"""Train learned sparse retrievers for OpenSearch; the notebooks call this package and explain it.

The names of the published guides are importable from here. They load on first use, so that `python -m nblib`
starts without torch.
"""

import importlib
import warnings

# Progress goes to the runner's live line; the notebook widgets that tqdm misses would not show there.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOMES = {
    "NeuralSparseEncoder": "nblib.model.encoder",
    "compute_idf_weights": "nblib.idf",
    "IDFAwareLoss": "nblib.objective",
    "EnsembleTeacher": "nblib.teachers",
    "train_step": "nblib.train.step",
    "evaluate_model": "nblib.evaluate",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nblib' has no attribute {name!r}")
