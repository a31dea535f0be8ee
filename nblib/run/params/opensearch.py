"""Parameters of the live cluster: notebook 07."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from nblib.run.params.fields import (
    Analyzer,
    Count,
    DataPath,
    From,
    IdfDir,
    ModelDir,
    Name,
    NotebookParams,
    Positive,
    Seed,
    SetsDir,
)

ExportDir = Annotated[str, Field(min_length=1), From("06_export")]


class OpenSearchParams(NotebookParams):
    environment: ClassVar[tuple[str, ...]] = ("OPENSEARCH_URL",)

    data_dir: Annotated[str, From("01_data_prep")]  # "" = no built sets
    idf_dir: IdfDir
    model_dir: ModelDir
    export_dir: ExportDir
    datasets: Annotated[list[Name], Field(min_length=1), DataPath("sets_dir")]
    sets_dir: SetsDir
    split: Name
    max_queries: Count  # 0 = all
    text_analyzer: Analyzer
    batch_size: Positive
    top_k: Annotated[int, Field(gt=0, le=10_000)]  # the most that OpenSearch gives
    ignore_identical_ids: bool
    documents_there: Positive
    clients: Annotated[list[Positive], Field(min_length=1)]
    searches: Positive
    hits: Annotated[int, Field(gt=0, le=10_000)]
    keep: bool
    seed: Seed
    run_dir: Name

    @model_validator(mode="after")
    def check_clients(self) -> Self:
        """Refuse too few searches for a percentile of each client."""
        if self.searches < 10 * max(self.clients):
            raise ValueError(f"searches {self.searches}: want 10 for each of {max(self.clients)} clients")
        return self
