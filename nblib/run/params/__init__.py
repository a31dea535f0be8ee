"""One typed model per notebook. No defaults here: defaults live in the notebook's parameters cell."""

from nblib.run.params.data import DataPrepParams, IdfParams
from nblib.run.params.evaluation import BeirEvalParams, ExportParams, Variant
from nblib.run.params.fields import DataPath, From, Neutral, NotebookParams, Recipe, marked
from nblib.run.params.opensearch import OpenSearchParams
from nblib.run.params.speed import SpeedParams
from nblib.run.params.sweeps import Ablation, AblationParams, OwnVariant, ParetoParams
from nblib.run.params.training import FinetuneParams, PretrainParams

__all__ = [
    "BY_NOTEBOOK",
    "Ablation",
    "DataPath",
    "From",
    "Neutral",
    "NotebookParams",
    "OwnVariant",
    "Recipe",
    "Variant",
    "marked",
]

BY_NOTEBOOK: dict[str, type[NotebookParams]] = {
    "01_data_prep": DataPrepParams,
    "02_idf": IdfParams,
    "03_pretrain": PretrainParams,
    "04_finetune": FinetuneParams,
    "05_beir_eval": BeirEvalParams,
    "06_export": ExportParams,
    "07_opensearch": OpenSearchParams,
    "08_pareto": ParetoParams,
    "12_speed": SpeedParams,
    "13_ablation": AblationParams,
}
