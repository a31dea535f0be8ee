"""What the models of the notebooks are made of: their base, types of fields, marks on fields."""

import ast
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import Stemmer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
    environment: ClassVar[tuple[str, ...]] = ()  # variables that decide a result of the notebook, too

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
PruneRatio = Annotated[float, Field(ge=0, lt=1)]  # 1 would drop every term
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
