"""One typed model per notebook. No defaults here: defaults live in the notebook's parameters cell."""

import ast
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import Stemmer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


@dataclass(frozen=True)
class From:
    """Marks a field that holds the folder of an earlier step; the runner fills it in.

    A layer or -p may still name another folder, or none ("") where the field allows it.
    """

    notebook: str


@dataclass(frozen=True)
class DataPath:
    """Marks a string (or several: a list, or the keys of a dict) that may be a path; what lies there enters
    the step's key. A kind of teacher before it ("sparse:", "cross:") is no part of the path.

    within: the parameter that names a folder in which the path is looked for first; "" = none.
    """

    within: str = ""


@dataclass(frozen=True)
class Neutral:
    """Marks a field that changes no result: a finished step stays done, a stopped training goes on."""


@dataclass(frozen=True)
class Recipe:
    """Marks a dictionary of another notebook's parameters, less its folders: what a sweep varies.

    The runner fills in what the profile's layers and -p make of them; by hand, what differs from that
    notebook's parameters cell is enough.
    """

    notebook: str


class NotebookParams(BaseModel):
    """Base of the models: strict types ("450" is no int), no unknown names, no infinity, no change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def from_cell(cls, namespace: dict[str, Any]) -> Self:
        """Check the values that the parameters cells left in globals().

        Args:
            namespace: globals() of the notebook.

        Raises:
            pydantic.ValidationError: a value is missing, of a wrong type, out of range, or papermill
                injected a name that the notebook does not know (it would only log a line).
        """
        names = list(cls.model_fields) + injected_names(namespace)
        return cls(**{name: namespace[name] for name in names if name in namespace})


def marked(model: type[NotebookParams], mark: type) -> dict[str, Any]:
    """List the fields of a model that carry a mark (From, DataPath, Neutral, Recipe): name -> the mark."""
    fields = model.model_fields.items()
    return {name: m for name, field in fields for m in field.metadata if isinstance(m, mark)}


def injected_names(namespace: dict[str, Any]) -> list[str]:
    """List the names assigned in papermill's injected cell, found in the kernel's history `In`."""
    cells = [source for source in namespace.get("In", []) if source.startswith("# Parameters\n")]
    nodes = [node for source in cells for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)]


def _known_stemmer(language: str) -> str:
    if language and language not in Stemmer.algorithms():
        raise ValueError(f"no stemmer {language!r}; there are {', '.join(Stemmer.algorithms())}")
    return language


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range that numpy accepts
Name = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[\w.+-]+$")]  # enters file names and TREC files
Analyzer = Literal["english", "korean", "whitespace"]
Stems = Annotated[str, AfterValidator(_known_stemmer)]  # language of a Snowball stemmer; "" = none
Precision = Literal["auto", "fp32", "bf16", "fp16"]
# A hub id, or a local folder whose content then enters the key.
Model = Annotated[str, Field(min_length=1), DataPath()]
OptionalModel = Annotated[str, DataPath()]
# Folder in which data sets are looked up first; "" = none. The sets found there enter the key, not its place.
SetsDir = Annotated[str, Neutral()]
DataDir = Annotated[str, Field(min_length=1), From("01_data_prep")]
IdfDir = Annotated[str, Field(min_length=1), From("02_idf")]
PretrainDir = Annotated[str, Field(min_length=1), From("03_pretrain")]
ModelDir = Annotated[str, Field(min_length=1), From("04_finetune")]
EvalDir = Annotated[str, Field(min_length=1), From("05_beir_eval")]


class DataPrepParams(NotebookParams):
    # "api-docs", a BEIR folder, a rows file or a hub id
    source: Annotated[str, Field(min_length=1), DataPath("sets_dir")]
    dataset: Name  # name of the set that a folder or file becomes
    more_sources: Annotated[list[str], DataPath("sets_dir")]  # built as well, each under its own name
    sets_dir: SetsDir
    hf_split: str  # split of a Hugging Face dataset
    strict: bool  # stop at the first bad row
    tokenizer: Model
    max_train_queries: Count  # 0 = all
    max_dev_queries: Count
    max_test_queries: Count
    max_test_docs: Count  # 0 = the whole corpus; judged documents always stay
    num_hard_negatives: Count  # K per training query
    negative_depth: Positive  # ranks that negatives are taken from
    mining_teacher: OptionalModel  # a dense model that ranks beside BM25; "" = none
    bm25_analyzer: Analyzer
    max_length: Positive  # tokens; the line in the length histogram
    seed: Seed
    run_dir: Name


class IdfParams(NotebookParams):
    data_dir: DataDir
    dataset: Name  # the set whose corpus is counted
    more_datasets: list[str]  # sets counted with it
    corpus: Annotated[str, DataPath()]  # "" = that set; else a corpus.jsonl[.gz]
    tokenizer: Model
    default_idf: Weight  # of a token that the corpus does not hold
    batch_size: Positive  # documents
    seed: Seed
    run_dir: Name


class _TrainParams(NotebookParams):
    """What 03 and 04 share."""

    data_dir: DataDir
    idf_dir: IdfDir
    dataset: Name
    dense_teacher: OptionalModel  # "" = none
    dense_weight: Weight
    sparse_weight: Weight
    bm25_analyzer: Analyzer
    more_datasets: list[str]  # built sets beside `dataset`; a batch comes from one
    mixing: list[Weight]  # share of each set; [] = by size
    max_length: Positive  # tokens of a document
    max_train_docs: Count  # 0 = all
    num_steps: Count
    batch_size: Positive
    num_hard_negatives: Count  # K per training query
    learning_rate: PositiveFloat  # encoder
    learning_rate_head: PositiveFloat
    warmup_steps: Count
    lambda_flops: Weight
    lambda_ramp_steps: Count  # quadratic ramp of lambda
    scale_constant_S: PositiveFloat  # of the teachers' min-max scores
    infonce_weight: Weight
    lexical_weight: Weight  # pulls a document's own tokens towards BM25's weights
    lexical_stemmer: Stems  # language whose stems stand for each other in them; "" = none
    temperature: PositiveFloat
    query_side: Literal["idf", "learned-idf", "binary", "siamese"]
    kl_weight: Weight  # of the distillation
    normalise_teachers: bool
    dropout: Ratio
    precision: Precision
    save_steps: Positive
    save_total_limit: Annotated[Positive, Neutral()]
    seed: Seed
    run_dir: Name

    @model_validator(mode="after")
    def check_mixing(self) -> Self:
        """Refuse weights that do not fit the data sets."""
        sets = 1 + len(self.more_datasets)
        if self.mixing and len(self.mixing) != sets:
            raise ValueError(f"mixing names {len(self.mixing)} weights for {sets} data sets")
        return self


class PretrainParams(_TrainParams):
    backbone: Model
    pooling: Literal["max", "sum"]  # over the positions of a text
    activation: Literal["relu", "log1p_relu"]  # log1p once or twice
    activation_threshold: Weight  # smaller weights become 0
    head_steps: Count  # masked-LM warm-up of the head, encoder frozen
    head_batch_size: Positive
    head_learning_rate: PositiveFloat
    mask_ratio: Ratio
    keep_ratio: Ratio
    target_active_terms: Positive  # of a document, after the warm-up's shift of the bias


class FinetuneParams(_TrainParams):
    pretrain_dir: PretrainDir
    gradient_accumulation_steps: Positive
    guard_steps: Positive  # bad steps in a row (collapsed or dense reps) that stop the run
    learning_rate_idf: PositiveFloat  # of learned-idf
    query_max_length: Count  # tokens, 0 = all
    margin_mse_weight: Weight
    triplet_weight: Weight
    margin: Weight
    lambda_flops_queries: Weight  # of queries that an encoder reads, or whose weights are trained
    lambda_l1: Weight
    lambda_idf: Weight  # IDF inside the penalty
    idf_alpha: Weight
    idf_beta: Weight
    stop_tokens: list[str]  # that lambda_idf treats harder
    stopword_penalty: Weight
    lambda_df: Weight  # DF-FLOPS
    anti_zero_weight: Weight
    l0_threshold: Count  # documents of so few terms are free of penalties
    sparse_teacher: OptionalModel  # "" = BM25
    cross_teacher: OptionalModel  # "" = none
    cross_weight: Weight
    more_teachers: Annotated[
        dict[str, Weight], DataPath()
    ]  # bm25:analyzer, sparse:model, cross:model or a SentenceTransformer
    teacher_max_length: Count  # tokens that teachers read of a text, 0 = max_length
    given_weight: Weight  # of the scores in the training rows
    hard_negative_ratio: Ratio  # the rest are random documents
    stages: list[dict]  # of a curriculum
    stream_texts: Annotated[bool, Neutral()]  # texts and token ids stay in files
    bucket_factor: Count  # 0 = no bucketing by length
    pad_to_multiple_of: Count
    workers: Annotated[Count, Neutral()]
    processes: Positive  # that train together
    num_epochs: Weight  # above 0 it replaces num_steps
    warmup_ratio: Ratio  # above 0 it replaces warmup_steps
    lr_scheduler: Literal["linear", "cosine", "constant"]
    num_cycles: PositiveFloat
    weight_decay: Weight
    max_grad_norm: Weight
    gradient_checkpointing: bool
    compile: bool
    lora_r: Count  # 0 = all weights train
    lora_alpha: Positive
    lora_dropout: Ratio
    dev_set: str  # "" = none
    eval_steps: Count
    patience: Count
    min_delta: Weight
    early_stop_on: Literal["ndcg_at_10", "loss"]
    wandb: Annotated[bool, Neutral()]

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Refuse settings that need each other, before any step starts."""
        if self.patience and not self.eval_steps:
            raise ValueError("patience without eval_steps: say how often dev data are measured")
        if self.eval_steps and not self.dev_set:
            raise ValueError("eval_steps without dev_set: name a built set with a dev split")
        if self.patience and self.save_steps != self.eval_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is not eval_steps {self.eval_steps}: "
                "they must be equal, so that the best model is kept"
            )
        if self.cross_weight and not self.cross_teacher:
            raise ValueError("cross_weight without cross_teacher: name a cross-encoder")
        if self.lambda_flops_queries and self.query_side not in ("siamese", "learned-idf"):
            raise ValueError(f"lambda_flops_queries with query_side {self.query_side}: its queries are fixed")
        return self


System = Literal["bm25", "bm25-tokens", "dense", "idf-bag", "pretrained", "finetuned"]
PruneRatio = Annotated[float, Field(ge=0, lt=1)]  # 1 would drop every term


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
    corpus_idf: bool = False  # query weights counted on the corpus that is searched, not 02's

    @model_validator(mode="after")
    def check_options(self) -> Self:
        """Refuse options that could change nothing."""
        if self.of == "dense":
            raise ValueError("of 'dense': its vectors have no terms to prune and no posting lists")
        if self.corpus_idf and self.of in ("bm25", "bm25-tokens"):
            raise ValueError(f"corpus_idf of {self.of!r}: its weights are the searched corpus's already")
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


SpeedPart = Literal["steps", "memory", "encode", "idf", "search", "quality"]


class SpeedParams(NotebookParams):
    data_dir: DataDir
    idf_dir: IdfDir
    pretrain_dir: PretrainDir
    dataset: Name
    dev_set: Name
    parts: Annotated[list[SpeedPart], Field(min_length=1)]
    step_documents: Annotated[list[Positive], Field(min_length=1)]  # batch sizes
    step_length: Positive  # tokens
    repeats: Positive
    memory_documents: Positive
    memory_length: Positive
    large_vocabulary: Annotated[int, Field(ge=2000)]
    peer_documents: Annotated[list[Positive], Field(min_length=2)]
    encode_documents: Positive
    encode_length: Positive
    idf_passages: Annotated[int, Field(ge=10)]
    search_documents: Annotated[int, Field(ge=10)]  # generated; also those of a shard on disk
    search_terms: Positive  # of a generated document
    search_queries: Positive
    real_sets: Annotated[list[str], DataPath()]  # built sets or BEIR folders with a split "test"
    project_documents: Annotated[int, Field(ge=10)]  # generated, indexed on disk
    minutes: PositiveFloat  # of training, each side
    dense_teacher: OptionalModel
    dense_weight: Weight
    sparse_weight: Weight
    bm25_analyzer: Analyzer
    max_length: Positive
    max_train_docs: Count
    batch_size: Positive
    num_hard_negatives: Positive
    learning_rate: PositiveFloat
    learning_rate_head: PositiveFloat
    lambda_flops: Weight
    scale_constant_S: PositiveFloat
    infonce_weight: Weight
    lexical_weight: Weight
    temperature: PositiveFloat
    seed: Seed
    run_dir: Name


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


BY_NOTEBOOK: dict[str, type[NotebookParams]] = {
    "01_data_prep": DataPrepParams,
    "02_idf": IdfParams,
    "03_pretrain": PretrainParams,
    "04_finetune": FinetuneParams,
    "05_beir_eval": BeirEvalParams,
    "06_export": ExportParams,
    "08_pareto": ParetoParams,
    "12_speed": SpeedParams,
    "13_ablation": AblationParams,
}
