"""Parameters of the speed measurements: notebook 12."""

from typing import Annotated, Literal

from pydantic import Field

from nblib.run.params.fields import (
    Analyzer,
    Count,
    DataDir,
    DataPath,
    IdfDir,
    Name,
    NotebookParams,
    OptionalModel,
    Positive,
    PositiveFloat,
    PretrainDir,
    Seed,
    Weight,
)

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
