"""Parameters of the data and its weights: notebooks 01 and 02."""

from typing import Annotated

from pydantic import Field

from nblib.run.params.fields import (
    Analyzer,
    Count,
    DataDir,
    DataPath,
    Model,
    Name,
    NotebookParams,
    OptionalModel,
    Positive,
    Seed,
    SetsDir,
    Stems,
    Weight,
)


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
    idf_stemmer: Stems  # language: words of one stem are counted together and weigh the same; "" = none
    weigh_signs: bool  # False: a token without letter or digit gets 0
    batch_size: Positive  # documents
    seed: Seed
    run_dir: Name
