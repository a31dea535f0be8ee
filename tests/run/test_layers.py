from typing import Annotated, Any

import pytest

from nblib.files import at_root
from nblib.run.keys import read_cells
from nblib.run.layers import BadRequest, Project, resolve
from nblib.run.params import NotebookParams, Recipe
from nblib.run.runner import Request, plan
from tests.run.tiny import layer, open_project, tiny_project, write_notebook


@pytest.fixture
def folder(tmp_path):
    tiny_project(tmp_path)
    return tmp_path


def steps(folder, *overrides, profiles=("small",), **options):
    request = Request(list(profiles), list(overrides), outputs=folder / "out", **options)
    return {step.name: step for step in plan(open_project(folder), request)}


def refusal(folder, *overrides, **options) -> str:
    with pytest.raises(BadRequest) as caught:
        steps(folder, *overrides, **options)
    assert not (folder / "out").exists(), "refused, so nothing may have started"
    return str(caught.value)


def test_order_of_the_layers(folder):
    layer(folder, "mine", "01_make", "rate: 3.0\nsource: here\n")
    assert steps(folder)["01_make"].params["rate"] == 2.0e-5  # over the cell's 0.5
    assert steps(folder, profiles=("small", "mine"))["01_make"].params["rate"] == 3.0
    assert steps(folder, profiles=("mine", "small"))["01_make"].params["rate"] == 2.0e-5
    step = steps(folder, "rate=4.5", profiles=("small", "mine"))["01_make"]
    assert (step.params["rate"], step.params["source"], step.params["words"]) == (4.5, "here", ["a", "b"])


def test_the_runner_sets_folders(folder):
    all_steps = steps(folder, profiles=("small",))
    assert all_steps["02_train"].params["make_dir"] == str(folder / "out/small/01_make")
    assert all_steps["02_train"].params["run_dir"] == str(folder / "out/small/02_train")
    assert all_steps["02_train"].inputs() == {"01_make": folder / "out/small/01_make"}


def test_folders_inside_the_repository_are_written_from_its_root(folder):
    from nblib.files import ROOT

    request = Request(["small"], outputs=ROOT / "outputs")
    step = plan(open_project(folder), request)[1]
    assert step.params["run_dir"] == "outputs/small/02_train"
    assert step.upstream == {"make_dir": ROOT / "outputs/small/01_make"}


def test_an_override_reaches_all_who_have_it_or_one(folder):
    all_steps = steps(folder, "seed=7", "02.num_steps=9", 'words=["x", "y"]', "source=")
    assert (all_steps["01_make"].params["seed"], all_steps["02_train"].params["seed"]) == (7, 7)
    assert all_steps["02_train"].params["num_steps"] == 9
    assert (all_steps["01_make"].params["words"], all_steps["01_make"].params["source"]) == (["x", "y"], "")


def test_a_folder_may_be_named_without_dir(folder):
    for given in (folder / "notebooks", "notebooks"):  # absolute, and from the repository
        upstream = steps(folder, f"make={given}")["02_train"].upstream
        assert upstream == {"make_dir": at_root(given)}
    assert "only 02_train has it" in refusal(folder, "01.make=x")
    assert "unknown parameter seed_dir" in refusal(folder, "seed_dir=x")


def test_typos_are_refused_with_a_guess(folder):
    assert "-p num_stepz=4: unknown parameter num_stepz" in refusal(folder, "num_stepz=4")
    assert "did you mean num_steps?" in refusal(folder, "num_stepz=4")
    assert "only 02_train has it" in refusal(folder, "01.num_steps=4")
    assert "unknown notebook 03_train; did you mean 02_train?" in refusal(folder, only="03_train")
    assert "unknown profile smal; did you mean small?" in refusal(folder, profiles=["smal"])
    assert "want key=value" in refusal(folder, "num_steps")
    layer(folder, "bad", "02_train", "# why\nnum_stepz: 4\n")
    message = refusal(folder, profiles=["small", "bad"])
    assert "params/bad/02_train.yaml, line 2: unknown parameter num_stepz of 02_train" in message
    assert "did you mean num_steps?" in message
    layer(folder, "stray", "02_trian", "num_steps: 4\n")
    assert "02_trian.yaml: no notebook reads it; did you mean 02_train.yaml?" in refusal(
        folder, profiles=["stray"]
    )


def test_wrong_types_and_ranges_name_file_line_and_value(folder):
    layer(folder, "bad", "02_train", 'seed: 3\nnum_steps: "450"\n')
    layer(folder, "bad", "01_make", "rate: 0\nsource: no\n")
    lines = refusal(folder, profiles=["small", "bad"]).splitlines()
    assert len(lines) == 3, "all that is wrong at once"
    assert "bad/01_make.yaml, line 1: rate = 0: input should be greater than 0" in lines[1] + lines[0]
    assert "line 2: source = False" in lines[0] + lines[1] and "put text in quotes" in lines[0] + lines[1]
    assert "bad/02_train.yaml, line 2: num_steps = '450': input should be a valid integer" in lines[2]


@pytest.mark.parametrize(
    ("bad", "good"), [("2e-5", "2.0e-5"), ("2e5", "2.0e+5"), ("1.5e3", "1.5e+3"), ("-1e-3", "-1.0e-3")]
)
def test_the_yaml_trap_of_exponents(folder, bad, good):
    assert f"YAML reads {bad} as text: write {good}" in refusal(folder, f"rate={bad}")


def test_a_key_given_twice_and_broken_yaml(folder):
    layer(folder, "twice", "02_train", "num_steps: 1\nseed: 2\nnum_steps: 3\n")
    assert "line 3: num_steps stands twice" in refusal(folder, profiles=["twice"])
    layer(folder, "broken", "02_train", "num_steps: [1\n")
    assert "02_train.yaml: not YAML" in refusal(folder, profiles=["broken"])
    layer(folder, "list", "02_train", "- 1\n")
    assert "want lines of `key: value`" in refusal(folder, profiles=["list"])


def test_run_dir_belongs_to_the_runner(folder):
    assert "use --outputs" in refusal(folder, "run_dir=/tmp/x")


def test_a_step_without_its_input_is_refused(folder):
    message = refusal(folder, only="02")
    assert "which is not there; run that step too, e.g. --from 01" in message
    other = folder / "other"
    other.mkdir()
    assert steps(folder, f"make_dir={other}", only="02")["02_train"].inputs() == {f"make_dir={other}": other}


def test_a_notebook_whose_defaults_are_no_literals_is_refused(folder):
    path = folder / "notebooks/01_make.ipynb"
    assert "rate = 0.5" in read_cells(path)[0]
    path.write_text(path.read_text().replace("rate = 0.5", "rate = 1 / 2"))
    assert "line 3: the default of rate must be a literal" in refusal(folder)


def test_a_profile_says_what_it_runs(folder):
    assert list(steps(folder)) == ["01_make", "02_train", "05_beir_eval"]
    (folder / "params" / "few").mkdir()
    file = folder / "params" / "few" / "profile.yaml"
    file.write_text('notebooks: ["02", 01_make]\n')
    assert list(steps(folder, profiles=("few",))) == ["01_make", "02_train"]
    assert list(steps(folder, profiles=("few", "small"))) == ["01_make", "02_train"]
    for bad in ("notebooks: 02\n", "other: 1\n"):
        file.write_text(bad)
        assert "profile.yaml: want the one line" in refusal(folder, profiles=("few",))
    file.write_text('notebooks: ["77"]\n')
    assert "unknown notebook 77" in refusal(folder, profiles=("few",))


def test_notebooks_beyond_the_chain_run_only_when_asked(folder):
    extra = folder / "notebooks" / "12_extra.ipynb"
    extra.write_text((folder / "notebooks" / "01_make.ipynb").read_text())
    assert "12_extra" not in steps(folder)


def test_values_that_do_not_go_together_and_options_inside_a_value(tmp_path):
    """A whole model's refusal has no key, and one inside a dict has a longer path."""

    def refused(**given):
        with pytest.raises(BadRequest) as caught:
            resolve(Project(), [], "05_beir_eval", {k: (v, f"-p {k}") for k, v in given.items()}, tmp_path)
        return str(caught.value)

    assert refused(systems=["bm25", "bm25"]) == "05_beir_eval: systems names bm25 twice"
    variant = {"of": "bm25", "ratoi": 1}
    assert refused(variants={"x": variant}) == "-p variants: unknown option ratoi in variants.x"
    assert "-p variants: variants.x.of is missing" in refused(variants={"x": {"two_phase": True}})
    assert "variants.x = {'of': 'bm25'}: this is 'bm25' itself" in refused(variants={"x": {"of": "bm25"}})


@pytest.fixture
def sweep(folder):
    """A fourth notebook that holds 02's parameters as a recipe."""
    made = ["recipe = {}\nrun_dir = 'outputs/lab/08_sweep'\n", "pass"]
    write_notebook(folder / "notebooks/08_sweep.ipynb", made)
    layer(folder, "small", "02_train", "num_steps: 5\n")
    project = open_project(folder)
    project.models["08_sweep"] = SweepParams
    yield project
    del project.models["08_sweep"]


class SweepParams(NotebookParams):
    recipe: Annotated[dict[str, Any], Recipe("02_train")]
    run_dir: str


def recipe_of(project, folder, *overrides):
    request = Request(["small"], list(overrides), only="08", outputs=folder / "out")
    return plan(project, request)[0].params["recipe"]


def test_a_recipe_is_what_the_layers_make_of_the_other_notebook(sweep, folder):
    cell = {"num_steps": 5, "pause_s": 0.0, "break_at": -1, "seed": 13}
    assert recipe_of(sweep, folder) == cell, "all but the folders"
    assert recipe_of(sweep, folder, "02.num_steps=7")["num_steps"] == 7
    assert recipe_of(sweep, folder, "seed=3")["seed"] == 3
    layer(folder, "small", "08_sweep", "recipe: {num_steps: 6, break_at: 2}\n")
    got = recipe_of(sweep, folder, "02.break_at=1")
    assert (got["num_steps"], got["break_at"]) == (6, 1)


def test_a_bad_value_in_a_recipe_is_refused_with_its_place(sweep, folder):
    with pytest.raises(BadRequest, match="-p 02.num_steps=0: num_steps = 0: input should be greater than 0"):
        recipe_of(sweep, folder, "02.num_steps=0")
    for key in ("make_dir", "make"):  # the sweep sets it, so it would do nothing
        with pytest.raises(BadRequest, match=f"unknown parameter {key} of 02_train, 08_sweep"):
            recipe_of(sweep, folder, f"{key}=x")
    layer(folder, "small", "08_sweep", "recipe: {num_stepz: 6}\n")
    with pytest.raises(BadRequest, match="08_sweep.yaml, line 1: unknown parameter num_stepz of 02_train"):
        recipe_of(sweep, folder)
