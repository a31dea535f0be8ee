"""Parameters of the sweeps: notebooks 08 and 13."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nblib.run.params.fields import (
    DataDir,
    DataPath,
    IdfDir,
    Name,
    Neutral,
    NotebookParams,
    PretrainDir,
    Recipe,
    Seed,
    Weight,
)

PretrainRecipe = Annotated[dict[str, Any], Recipe("03_pretrain")]
FinetuneRecipe = Annotated[dict[str, Any], Recipe("04_finetune")]
EvalRecipe = Annotated[dict[str, Any], Recipe("05_beir_eval")]


class _SweepParams(NotebookParams):
    """What 08 and 13 share."""

    data_dir: DataDir
    idf_dir: IdfDir
    finetune: FinetuneRecipe
    evaluation: EvalRecipe
    seeds: Annotated[list[Seed], Field(min_length=1)]
    minutes: Annotated[Weight, Neutral()]  # after which a call begins no further run, 0 = no limit
    keep_weights: Annotated[bool, Neutral()]
    run_dir: Name

    @field_validator("seeds", "lambdas", "variants", check_fields=False)
    @classmethod
    def check_distinct(cls, values: list) -> list:
        """Refuse a value that stands twice: it would be averaged with itself."""
        if len(set(values)) < len(values):
            raise ValueError(f"{values} holds a value twice")
        return values


class ParetoParams(_SweepParams):
    pretrain_dir: PretrainDir
    lambdas: Annotated[list[Weight], Field(min_length=1)]
    dev_datasets: Annotated[list[str], Field(min_length=1), DataPath()]  # the knee is chosen on them
    dev_split: Name
    references: list[Literal["bm25", "bm25-tokens", "idf-bag", "pretrained"]]


Ablation = Literal[
    "full",
    "without IDF",
    "IDF at inference only",
    "IDF inside the penalty",
    "one dense teacher",
    "one sparse teacher",
    "ensemble without normalisation",
    "no pretraining",
    "InfoNCE pretraining",
]


class AblationParams(_SweepParams):
    pretrain: PretrainRecipe
    variants: Annotated[list[Ablation], Field(min_length=1)]
    lambda_idf: Weight  # of the penalty that holds IDF

    @field_validator("variants")
    @classmethod
    def check_full(cls, variants: list[str]) -> list[str]:
        """Refuse a list without the recipe that all others are compared with."""
        if "full" not in variants:
            raise ValueError("'full' is missing: the others are compared with it")
        return variants
