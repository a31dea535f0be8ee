"""Parameters of the training: notebooks 03 and 04."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from nblib.run.params.fields import (
    Analyzer,
    Count,
    DataDir,
    DataPath,
    IdfDir,
    Model,
    Name,
    Neutral,
    NotebookParams,
    OptionalModel,
    Positive,
    PositiveFloat,
    Precision,
    PretrainDir,
    Ratio,
    Seed,
    Stems,
    Weight,
)


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
    query_side: Literal["idf", "learned-idf", "binary", "idf-at-search", "siamese"]
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
        if self.cross_teacher and not self.cross_weight:
            raise ValueError("cross_teacher without cross_weight: it would not teach; say what it counts")
        if self.lambda_flops_queries and self.query_side not in ("siamese", "learned-idf"):
            raise ValueError(f"lambda_flops_queries with query_side {self.query_side}: its queries are fixed")
        return self
