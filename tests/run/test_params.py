import pytest
from pydantic import ValidationError

from nblib.files import ROOT
from nblib.run.keys import cell_defaults
from nblib.run.params import BY_NOTEBOOK, BeirEvalParams, IdfParams

IDF = {
    "data_dir": "outputs/lab/01_data_prep",
    "dataset": "api-docs",
    "more_datasets": [],
    "corpus": "",
    "tokenizer": "some/model",
    "default_idf": 1.0,
    "idf_stemmer": "",
    "weigh_signs": True,
    "batch_size": 10,
    "seed": 13,
    "run_dir": "outputs/lab/02_idf",
}


def test_from_cell_takes_only_its_names():
    namespace = {**IDF, "json": object(), "In": ["", "import json"], "rows": 3}
    assert IdfParams.from_cell(namespace).model_dump() == IDF


def test_from_cell_refuses_what_papermill_injected_unasked():
    namespace = {**IDF, "batch_sise": 5, "In": ["", "batch_size = 10", "# Parameters\nbatch_sise = 5\n"]}
    with pytest.raises(ValidationError, match="batch_sise"):
        IdfParams.from_cell(namespace)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "10"),  # text is no number
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 1.5),
        ("default_idf", float("nan")),
        ("default_idf", -0.1),
        ("tokenizer", ""),
        ("seed", -1),
    ],
)
def test_wrong_type_or_range_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        IdfParams(**{**IDF, name: value})


def test_a_missing_value_is_named():
    with pytest.raises(ValidationError, match="tokenizer"):
        IdfParams.from_cell({k: v for k, v in IDF.items() if k != "tokenizer"})


def test_an_integer_serves_as_a_float_and_the_values_are_frozen():
    params = IdfParams(**{**IDF, "default_idf": 1})
    assert isinstance(params.default_idf, float)
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 5


@pytest.mark.parametrize("name", sorted(BY_NOTEBOOK))
def test_no_model_holds_a_default(name):
    fields = BY_NOTEBOOK[name].model_fields
    assert "run_dir" in fields and {"seed", "seeds"} & set(fields)
    assert [field for field, info in fields.items() if not info.is_required()] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"systems": ["bm25", "bm25"]}, "bm25 twice"),
        ({"dense_teacher": ""}, "dense_teacher is empty"),
        ({"variants": {"x": {"of": "bm25", "ratoi": 0.1}}}, "variants.x.ratoi"),
        ({"variants": {"x": {"two_phase": True}}}, "variants.x.of"),
        ({"variants": {"x": {"of": "bm25"}}}, "this is 'bm25' itself: set an option"),
        ({"variants": {"x": {"of": "dense", "doc_top_k": 3}}}, "no posting lists"),
        ({"variants": {"x": {"of": "bm25", "two_phase_ratio": 0.3}}}, "two_phase_ratio without two_phase"),
        ({"variants": {"x": {"of": "bm25", "two_phase": True, "engine": "seismic"}}}, "of the exact engine"),
        ({"variants": {"x": {"of": "bm25", "two_phase": True, "two_phase_window": 49}}}, "two_phase_window"),
        ({"variants": {"x": {"of": "bm25", "doc_max_ratio": 1.0}}}, "doc_max_ratio"),
        ({"variants": {"a b": {"of": "bm25", "doc_top_k": 3}}}, "variants"),
        ({"variants": {"../x": {"of": "bm25", "doc_top_k": 3}}}, "variants"),
        ({"variants": {"bm25": {"of": "bm25", "doc_top_k": 3}}}, "bm25: two of systems, variants"),
        (
            {"systems": ["bm25"], "variants": {"x": {"of": "finetuned", "doc_top_k": 3}}},
            "'x' is of 'finetuned', which is not in systems",
        ),
        ({"hybrids": {"rrf": ["bm25", "bmx"]}}, "hybrid 'rrf' of bmx: it can fuse bm25, bm25-tokens"),
        ({"hybrids": {"rrf": ["bm25"]}}, "hybrids.rrf"),
        ({"hybrids": {"rrf": ["bm25", "bm25"]}}, "names a system twice"),
    ],
)
def test_systems_that_cannot_search_are_refused(change, words):
    cell = cell_defaults(ROOT / "notebooks" / "05_beir_eval.ipynb")
    BeirEvalParams(**cell)
    with pytest.raises(ValidationError, match=words):
        BeirEvalParams(**cell | change)


def test_variants_and_hybrids_of_variants_are_taken_and_survive_a_round_trip():
    cell = cell_defaults(ROOT / "notebooks" / "05_beir_eval.ipynb")
    variants = {"two": {"of": "finetuned", "two_phase": True, "two_phase_ratio": 0.5}}
    params = BeirEvalParams(**cell | {"variants": variants, "hybrids": {"rrf": ["bm25", "two", "dense"]}})
    assert params.variants["two"].two_phase_ratio == 0.5 and params.variants["two"].query_top_k == 0
    assert BeirEvalParams(**params.model_dump()) == params, "as the runner hands them to papermill"
