"""Parameters of the sweeps: notebooks 08 and 13."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
from nblib.run.params.training import FinetuneParams, PretrainParams

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


class OwnVariant(BaseModel):
    """What a variant of one's own changes in the recipe: parameters of 03 and of 04.

    given_idf: search with the IDF of 02, whatever query weights the model was trained with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    given_idf: bool = False

    @model_validator(mode="after")
    def check_names(self) -> Self:
        """Refuse a change of nothing, and of what is no parameter; 03 and 04 check the values."""
        for given, model in ((self.pretrain, PretrainParams), (self.finetune, FinetuneParams)):
            if unknown := sorted(given.keys() - model.model_fields.keys()):
                raise ValueError(f"{', '.join(unknown)}: no parameter of {model.__name__}")
        if not self.pretrain and not self.finetune:
            raise ValueError("it changes nothing: give pretrain or finetune a parameter")
        return self


class AblationParams(_SweepParams):
    pretrain: PretrainRecipe
    variants: Annotated[list[Ablation], Field(min_length=1)]
    more_variants: dict[str, OwnVariant]  # of one's own, beside the paper's
    lambda_idf: Weight  # of the penalty that holds IDF

    @field_validator("variants")
    @classmethod
    def check_full(cls, variants: list[str]) -> list[str]:
        """Refuse a list without the recipe that all others are compared with."""
        if "full" not in variants:
            raise ValueError("'full' is missing: the others are compared with it")
        return variants

    @field_validator("more_variants")
    @classmethod
    def check_own(cls, own: dict[str, OwnVariant]) -> dict[str, OwnVariant]:
        """Refuse a name that one of the paper's variants has."""
        if taken := sorted(own.keys() & set(get_args(Ablation))):
            raise ValueError(f"{', '.join(taken)}: variants of the paper have these names")
        return own
