from pathlib import Path

import pytest

from nblib.files import ROOT
from nblib.run.keys import cell_defaults, data_hashes, explain, imported_modules, key_of, key_parts
from nblib.run.params import DataPrepParams, FinetuneParams, OpenSearchParams, ParetoParams
from tests.run.tiny import MAKE, MakeParams, TrainParams, write_notebook


def notebook(folder: Path, parameters: str, *cells: str) -> Path:
    write_notebook(folder / "01_make.ipynb", [parameters, *cells])
    return folder / "01_make.ipynb"


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__.py": "",
        "a.py": "from lib.sub import b\n",
        "sub/__init__.py": "from . import shared\n",
        "sub/b.py": "def late():\n    from ..c import x\n",
        "sub/shared.py": "",
        "c.py": "import json\nx = 1\n",
        "unused.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path / "lib"


def test_defaults_with_an_equals_sign_in_the_comment(tmp_path):
    path = notebook(tmp_path, "a = 1  # 0 = all\nb: float = -2e-5\nc = ['x']  # papermill's reader loses a\n")
    assert cell_defaults(path) == {"a": 1, "b": -2e-5, "c": ["x"]}


@pytest.mark.parametrize("bad", ["steps // 10", "Path('x')", "f'{steps}'", "steps"])
def test_a_derived_default_is_refused_with_its_line(tmp_path, bad):
    path = notebook(tmp_path, f"steps = 10\nwarmup = {bad}\n")
    with pytest.raises(
        ValueError, match=r"01_make\.ipynb, parameters cell, line 2.*warmup must be a literal"
    ):
        cell_defaults(path)


def test_an_import_in_the_parameters_cell_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1: only `name = literal`"):
        cell_defaults(notebook(tmp_path, "import os\n"))


def test_two_parameters_cells_are_refused(tmp_path):
    write_notebook(tmp_path / "x.ipynb", ["a = 1"])
    text = (tmp_path / "x.ipynb").read_text().replace('"parameters"', '"other"')
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(ValueError, match="0 cells are tagged"):
        cell_defaults(tmp_path / "x.ipynb")


def test_imports_are_followed_through_packages(package):
    assert list(imported_modules(["import os\nimport lib.a"], package)) == [
        *("lib", "lib.a", "lib.c", "lib.sub", "lib.sub.b", "lib.sub.shared")
    ]
    assert list(imported_modules(["from lib.c import x"], package)) == ["lib", "lib.c"]
    assert imported_modules(["import numpy"], package) == {}


def test_magics_do_not_break_the_reading(package):
    assert list(imported_modules(["%matplotlib inline\nfrom lib import c"], package)) == ["lib", "lib.c"]


def parts(folder, package, cell="import lib.a", upstream=None, **params):
    path = notebook(folder, MAKE[0], cell)
    values = {"words": ["a"], "source": "nothing", "rate": 0.5, "seed": 13, "run_dir": "x"} | params
    return key_parts(path, MakeParams, values, upstream or {}, package, folder / "requirements.lock")


def test_what_changes_the_key_and_how_it_is_said(tmp_path, package):
    first = parts(tmp_path, package)
    assert key_of(first) == key_of(parts(tmp_path, package, run_dir="elsewhere"))
    assert len(key_of(first)) == 64

    def why(**changes):
        now = parts(tmp_path, package, **changes)
        assert key_of(now) != key_of(first)
        return explain(first, now)

    assert why(rate=0.25) == "parameters changed: rate 0.5 -> 0.25"
    assert why(upstream={"00_x": "k"}) == "upstream changed: 00_x"
    assert why(cell="import lib.a  # other") == "code changed: cells of the notebook"
    (tmp_path / "requirements.lock").write_text("torch==1\n")
    assert why() == "requirements.lock changed"


def test_a_module_three_imports_away_changes_the_key_and_an_unused_one_does_not(tmp_path, package):
    first = parts(tmp_path, package)
    (package / "unused.py").write_text("changed = 1\n")
    assert parts(tmp_path, package) == first
    (package / "c.py").write_text("x = 2\n")
    assert explain(first, parts(tmp_path, package)) == "code changed: lib.c"


def test_the_content_behind_a_path_enters_the_key(tmp_path):
    data = tmp_path / "corpus.jsonl"
    params = {"words": ["a"], "source": str(data), "rate": 0.5, "seed": 1, "run_dir": "x"}
    assert data_hashes(MakeParams, params) == {}  # a hub id, say: no such path
    data.write_text("one")
    one = data_hashes(MakeParams, params)
    data.write_text("two")
    assert list(one) == [f"source={data}"] and data_hashes(MakeParams, params) != one
    two = data_hashes(MakeParams, params)
    (tmp_path / "queries.jsonl").write_text("beside it: rows of ids refer to them")
    assert data_hashes(MakeParams, params) != two
    assert data_hashes(MakeParams, params | {"source": ""}) == {}  # not the repository's root


def test_a_set_in_sets_dir_enters_the_key_by_its_content(tmp_path):
    for place, text in {"a": "one", "b": "one", "c": "two"}.items():
        (tmp_path / place / "set").mkdir(parents=True)
        (tmp_path / place / "set" / "corpus.jsonl").write_text(text)
    params = {"source": "set", "more_sources": [], "tokenizer": "x", "mining_teacher": ""}
    a, b, c = (
        data_hashes(DataPrepParams, params | {"sets_dir": str(tmp_path / place)}) for place in ("a", "b", "c")
    )
    assert list(a) == ["source=set"] and a == b != c


def test_a_set_of_a_recipe_counts_where_its_sets_dir_has_it(tmp_path):
    (tmp_path / "set").mkdir()
    held = {"finetune": {}, "evaluation": {"datasets": ["set"], "sets_dir": str(tmp_path)}}
    found = []
    for text in ("one", "two"):
        (tmp_path / "set" / "corpus.jsonl").write_text(text)
        found.append(data_hashes(ParetoParams, held | {"dev_datasets": []}))
    assert list(found[0]) == ["evaluation.datasets=set"] and found[0] != found[1]


def test_upstream_folders_count_by_content_not_by_path(tmp_path):
    path = notebook(tmp_path, "a = 1", "pass")
    values = {"make_dir": "one", "num_steps": 1, "pause_s": 0.0, "break_at": -1, "seed": 1, "run_dir": "x"}
    one = key_parts(path, TrainParams, values, {"01_make": "k"})
    assert one == key_parts(path, TrainParams, values | {"make_dir": "two"}, {"01_make": "k"})


def test_the_runner_itself_is_not_in_a_key(tmp_path):
    cell = "from nblib.run.params import IdfParams\nfrom nblib.files import at_root"
    made = key_parts(
        notebook(tmp_path, "a = 1", cell), MakeParams, {"source": "", "words": []}, {}, ROOT / "nblib"
    )
    assert "nblib.files" in made["modules"]
    assert not [name for name in made["modules"] if name.startswith("nblib.run")]


def test_what_changes_no_result_is_no_part_of_the_key():
    path = ROOT / "notebooks" / "04_finetune.ipynb"
    cell = cell_defaults(path)

    def key(**change):
        return key_of(key_parts(path, FinetuneParams, cell | change, {}))

    neutral = {"workers": 3, "wandb": True, "save_total_limit": 9, "stream_texts": True}
    assert key() == key(**neutral) != key(processes=2)


def test_another_cluster_is_another_result(monkeypatch):
    path = ROOT / "notebooks" / "07_opensearch.ipynb"
    parts = []
    for url in ("", "https://name:secret@here:9200", "https://there:9200"):
        monkeypatch.setenv("OPENSEARCH_URL", url)
        parts.append(key_parts(path, OpenSearchParams, cell_defaults(path), {}))
    monkeypatch.delenv("OPENSEARCH_URL")
    assert key_parts(path, OpenSearchParams, cell_defaults(path), {}) == parts[0]
    assert explain(parts[1], parts[2]) == "environment changed: OPENSEARCH_URL"
    assert "secret" not in str(parts), "it goes into the manifest"


def test_teachers_named_in_a_dictionary_count_by_content(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("one")
    params = cell_defaults(ROOT / "notebooks" / "04_finetune.ipynb")
    params |= {"more_teachers": {f"cross:{tmp_path / 'model'}": 0.5, "bm25:english": 0.5}}
    first = data_hashes(FinetuneParams, params)
    assert [name for name in first if "more_teachers" in name] == [
        f"more_teachers=cross:{tmp_path / 'model'}"
    ]
    (tmp_path / "model" / "weights").write_text("two")
    assert data_hashes(FinetuneParams, params) != first


def test_a_teacher_inside_a_recipe_counts_by_content(tmp_path):
    (tmp_path / "weights").write_text("one")
    params = cell_defaults(ROOT / "notebooks" / "08_pareto.ipynb") | {
        "finetune": {"dense_teacher": str(tmp_path)}
    }
    first = data_hashes(ParetoParams, params)
    assert [name for name in first if "finetune" in name] == [f"finetune.dense_teacher={tmp_path}"]
    (tmp_path / "weights").write_text("two")
    assert data_hashes(ParetoParams, params) != first


def test_a_recipe_counts_parameter_by_parameter():
    path = ROOT / "notebooks" / "08_pareto.ipynb"
    cell, recipe = cell_defaults(path), cell_defaults(ROOT / "notebooks" / "04_finetune.ipynb")
    first = key_parts(path, ParetoParams, cell | {"finetune": recipe}, {})
    same = recipe | {"workers": 3, "run_dir": "elsewhere", "pretrain_dir": "elsewhere"}
    assert first == key_parts(path, ParetoParams, cell | {"finetune": same, "minutes": 5.0}, {})
    other = key_parts(path, ParetoParams, cell | {"finetune": recipe | {"num_steps": 7}}, {})
    assert explain(first, other) == "parameters changed: finetune.num_steps 320 -> 7"
