"""Parameters of evaluation and export: notebooks 05 and 06."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nblib.run.params.fields import (
    Analyzer,
    Count,
    DataDir,
    DataPath,
    EvalDir,
    FileName,
    From,
    IdfDir,
    ModelDir,
    Name,
    NotebookParams,
    OptionalModel,
    Positive,
    PruneRatio,
    Ratio,
    Seed,
    SetsDir,
    Stems,
)

System = Literal["bm25", "bm25-tokens", "dense", "idf-bag", "pretrained", "finetuned"]


class Variant(BaseModel):
    """Another way to search what a sparse system encoded. An option that is left out is off."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    of: System
    query_max_ratio: PruneRatio = 0.0  # query terms up to this share of the query's largest weight go
    query_top_k: Count = 0  # query terms kept, the heaviest; 0 = all
    doc_max_ratio: PruneRatio = 0.0
    doc_top_k: Count = 0
    two_phase: bool = False  # heavy query terms find, all terms rank; the three numbers are OpenSearch's
    two_phase_ratio: PruneRatio = 0.4
    two_phase_expansion: Annotated[float, Field(ge=1)] = 5.0
    two_phase_window: Annotated[int, Field(ge=50)] = 10_000
    engine: Literal["exact", "seismic"] = "exact"
    corpus_idf: Ratio = 0.0  # share of the searched corpus's IDF in the query weights
    idf_stemmer: Stems = ""  # language: words of one stem are counted together for corpus_idf; "" = none
    query_counts: bool = False  # a token that the query holds n times weighs n times its IDF

    @model_validator(mode="after")
    def check_options(self) -> Self:
        """Refuse options that could change nothing."""
        if self.of == "dense":
            raise ValueError("of 'dense': its vectors have no terms to prune and no posting lists")
        if (self.corpus_idf or self.query_counts) and self.of in ("bm25", "bm25-tokens"):
            raise ValueError(f"{self.of!r} weighs by the searched corpus and counts query words already")
        if self.idf_stemmer and not self.corpus_idf:
            raise ValueError("idf_stemmer without corpus_idf: it says how that is counted")
        if self == Variant.model_construct(of=self.of):
            raise ValueError(f"this is {self.of!r} itself: set an option")
        own = {name for name in type(self).model_fields if name.startswith("two_phase_")}
        changed = {name for name in own if getattr(self, name) != type(self).model_fields[name].default}
        if changed and not self.two_phase:
            raise ValueError(f"{', '.join(sorted(changed))} without two_phase: true")
        if self.two_phase and self.engine != "exact":
            raise ValueError(f"two_phase is a search of the exact engine, not of {self.engine}")
        return self


class BeirEvalParams(NotebookParams):
    data_dir: Annotated[str, From("01_data_prep")]  # "" = no built sets
    idf_dir: Annotated[str, From("02_idf")]  # "" as for the models: if no system needs it
    pretrain_dir: Annotated[str, From("03_pretrain")]
    model_dir: Annotated[str, From("04_finetune")]
    datasets: Annotated[
        list[Name], Field(min_length=1), DataPath("sets_dir")
    ]  # built sets, BEIR folders or collections (nblib/data/collections.yaml)
    sets_dir: SetsDir
    split: Name
    systems: Annotated[list[System], Field(min_length=1)]
    variants: dict[FileName, Variant]
    hybrids: dict[FileName, Annotated[list[str], Field(min_length=2)]]  # of systems and variants
    dense_teacher: OptionalModel
    bm25_analyzer: Analyzer
    max_length: Positive
    max_queries: Count  # 0 = all
    batch_size: Positive
    precision: Literal["fp32", "bf16"]  # of the documents' encoding
    top_k: Positive
    ignore_identical_ids: bool  # a document with its query's id is dropped before scoring
    seed: Seed
    run_dir: Name

    @model_validator(mode="after")
    def check_systems(self) -> Self:
        """Refuse what 05 could not search with, before any step starts."""
        if twice := sorted({s for s in self.systems if self.systems.count(s) > 1}):
            raise ValueError(f"systems names {', '.join(twice)} twice")
        if "dense" in self.systems and not self.dense_teacher:
            raise ValueError(
                "systems has 'dense' but dense_teacher is empty: name a model, or take 'dense' out of systems"
            )
        return self

    @model_validator(mode="after")
    def check_names(self) -> Self:
        """Refuse variants and hybrids of what is not searched, and a name that two would share."""
        for name, variant in self.variants.items():
            if variant.of not in self.systems:
                raise ValueError(f"variant {name!r} is of {variant.of!r}, which is not in systems")
        parts = [*self.systems, *self.variants]
        for name, fused in self.hybrids.items():
            if unknown := [part for part in fused if part not in parts]:
                raise ValueError(f"hybrid {name!r} of {', '.join(unknown)}: it can fuse {', '.join(parts)}")
            if len(set(fused)) < len(fused):
                raise ValueError(f"hybrid {name!r} names a system twice")
        names = [*parts, *self.hybrids]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: two of systems, variants and hybrids have this name")
        return self


class ExportParams(NotebookParams):
    data_dir: DataDir
    idf_dir: IdfDir
    model_dir: ModelDir
    eval_dir: EvalDir
    dataset: Name
    model_name: Name
    model_version: Name
    max_length: Positive
    prune_ratio: PruneRatio
    check_documents: Positive
    licence: Name
    seed: Seed
    run_dir: Name
