import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from torch import nn
from transformers import Trainer, TrainingArguments

from nblib.train.plan import BatchPlan, PlannedLoader, spread
from nblib.train.stages import Stage, read_stages


def epoch_of(plan, epoch=0):
    plan.set_epoch(epoch)
    return list(plan)


def test_every_row_comes_once_in_an_order_of_its_own():
    plan = BatchPlan(64, 4, seed=13)
    first, second = epoch_of(plan, 0), epoch_of(plan, 1)
    assert len(plan) == len(first) == 16 and {len(batch) for batch in first} == {4}
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(64))
    assert first != second and list(chain(*first)) != list(range(64))
    assert epoch_of(BatchPlan(64, 4, seed=14)) != first


def test_order_depends_on_seed_and_epoch_alone():
    wanted = epoch_of(BatchPlan(64, 4, seed=13), 3)
    for noise in (1, 2):
        random.seed(noise), np.random.seed(noise), torch.manual_seed(noise)  # noqa: NPY002
        plan = BatchPlan(64, 4, seed=13)
        epoch_of(plan, noise)
        assert epoch_of(plan, 3) == wanted


def test_rows_that_make_no_whole_batch():
    plan = BatchPlan(10, 4, seed=1)
    left_out = {epoch: set(range(10)) - set(chain(*epoch_of(plan, epoch))) for epoch in range(20)}
    assert len(plan) == 2 and all(len(rows) == 2 for rows in left_out.values())
    assert set().union(*left_out.values()) == set(range(10)), "others each epoch"
    plan = BatchPlan(10, 4, seed=1, drop_last=False)
    assert len(plan) == 3 and sorted(map(len, plan)) == [2, 4, 4]
    assert sorted(chain(*plan)) == list(range(10))


SOURCE = np.array([0] * 40 + [1] * 20)


def batches_per_set(plan, epochs):
    return Counter(int(SOURCE[batch[0]]) for epoch in range(epochs) for batch in epoch_of(plan, epoch))


def test_a_batch_holds_one_data_set():
    plan = BatchPlan(60, 4, seed=2, source=SOURCE)
    assert all(len(set(SOURCE[batch])) == 1 for batch in plan)
    assert sorted(chain(*plan)) == list(range(60)) and batches_per_set(plan, 1) == {0: 10, 1: 5}
    turns = [int(SOURCE[batch[0]]) for batch in plan]
    assert turns != sorted(turns), "the sets take turns"
    mixed = BatchPlan(60, 4, seed=2, source=SOURCE, homogeneous=False)
    assert sorted(chain(*mixed)) == list(range(60))
    assert any(len(set(SOURCE[batch])) == 2 for batch in mixed)


def test_mixing_weights_are_shares_of_the_batches():
    plan = BatchPlan(60, 4, seed=2, source=SOURCE, mixing=[1, 2])
    assert len(plan) == 15 and batches_per_set(plan, 1) == {0: 5, 1: 10}
    seen = Counter(chain(*plan))
    assert {seen[row] for row in range(40, 60)} == {2}, "ten batches are two passes over 20 rows"
    assert all(seen[row] <= 1 for row in range(40))
    assert batches_per_set(BatchPlan(60, 4, seed=2, source=SOURCE, mixing=[0, 7]), 1) == {1: 5}


def test_mixing_weights_are_shares_of_the_rows_where_batches_mix():
    plan = BatchPlan(60, 4, seed=2, source=SOURCE, mixing=[1, 2], homogeneous=False)
    rows = list(chain(*plan))
    assert Counter(SOURCE[rows].tolist()) == {0: 20, 1: 40} and len(set(rows)) == 40
    assert any(len(set(SOURCE[batch])) == 2 for batch in plan)


def test_spread_by_hand():
    rng = np.random.default_rng(1)
    assert spread(15, np.array([1, 2]), rng).tolist() == [5, 10]
    draws = np.array([spread(5, np.array([1, 2, 1]), rng) for _ in range(2000)])  # 1.25, 2.5, 1.25
    assert (draws.sum(axis=1) == 5).all() and draws.min(axis=0).tolist() == [1, 2, 1]
    assert draws.max(axis=0).tolist() == [2, 3, 2]
    assert draws.mean(axis=0) == pytest.approx([1.25, 2.5, 1.25], abs=0.05)


DIFFICULTY = np.array([0] * 16 + [1] * 24 + [2] * 40)  # 20 batches of 4 make an epoch
GUIDE = [
    {"epoch": [0, 1], "difficulty": "easy"},
    {"epoch": [1, 2.5], "difficulty": ["easy", "medium"]},
    {"epoch": [2.5, 4], "difficulty": ["easy", "medium", "hard"]},
]


def hardest(batches):
    return [int(DIFFICULTY[batch].max()) for batch in batches]


def test_stages_by_epoch():
    plan = BatchPlan(80, 4, seed=3, difficulty=DIFFICULTY, stages=read_stages(GUIDE))
    first = epoch_of(plan, 0)
    assert len(first) == len(plan) == 20, "an epoch keeps its length"
    assert Counter(chain(*first)) == dict.fromkeys(range(16), 5), "four batches, five times over"
    assert max(hardest(epoch_of(plan, 1))) == 1
    third = hardest(epoch_of(plan, 2))
    assert max(third[:10]) == 1 and max(third[10:]) == 2
    assert sorted(chain(*epoch_of(plan, 3))) == list(range(80))
    assert sorted(chain(*epoch_of(plan, 9))) == list(range(80)), "the last stage stays"
    assert [plan.stage_at(step) for step in (0, 19, 20, 49, 50, 500)] == [0, 0, 1, 1, 2, 2]


def test_stages_by_step_count_accumulated_batches():
    stages = [Stage(8, ("easy",), "step"), Stage(100, ("hard",), "step")]
    plan = BatchPlan(80, 4, seed=3, difficulty=DIFFICULTY, stages=stages, accumulation=3)
    # 20 batches are 7 steps, the last of 2 batches: step 8 begins with batch 3 of the second epoch
    assert set(hardest(epoch_of(plan, 0))) == {0}
    assert hardest(epoch_of(plan, 1)) == [0] * 3 + [2] * 17
    assert [plan.stage_at(step) for step in (7, 8)] == [0, 1]


def test_stages_by_share_of_all_steps():
    stages = read_stages(
        [{"share": [0, 0.25], "difficulty": "easy"}, {"share": [0.25, 1], "difficulty": "hard"}]
    )
    plan = BatchPlan(80, 4, seed=3, difficulty=DIFFICULTY, stages=stages, total_steps=40)
    assert hardest(epoch_of(plan, 0)) == [0] * 10 + [2] * 10


def test_a_data_set_without_rows_for_a_stage_sits_it_out():
    source = np.arange(80) % 2
    source[:16] = 0
    plan = BatchPlan(80, 4, seed=3, source=source, difficulty=DIFFICULTY, stages=read_stages(GUIDE))
    assert all(source[batch].max() == 0 for batch in epoch_of(plan, 0))
    assert {int(source[batch[0]]) for batch in epoch_of(plan, 1)} == {0, 1}


def padding(lengths, batches):
    return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches)


def test_rows_of_like_length_share_a_batch():
    lengths = np.random.default_rng(5).integers(1, 100, 400)
    plain = epoch_of(BatchPlan(400, 4, seed=5))
    bucketed = epoch_of(BatchPlan(400, 4, seed=5).sort_by(lengths, 100))
    assert sorted(chain(*bucketed)) == list(range(400))
    assert padding(lengths, bucketed) < 0.25 * padding(lengths, plain)
    longest = [int(lengths[batch].max()) for batch in bucketed]
    assert abs(np.corrcoef(longest, np.arange(100))[0, 1]) < 0.3, "short ones do not come first"
    one = epoch_of(BatchPlan(400, 4, seed=5).sort_by(lengths, 1))
    assert {frozenset(b) for b in one} == {frozenset(b) for b in plain}, (
        "a stretch of one batch sorts nothing"
    )


class Numbers(torch.utils.data.Dataset):
    """Rows that are their own numbers."""

    def __len__(self):
        return 80

    def __getitem__(self, i):
        return i


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_gives_the_rest_of_the_unbroken_order(workers):
    plan = BatchPlan(80, 4, seed=7, difficulty=DIFFICULTY, stages=read_stages(GUIDE))
    loader = PlannedLoader(Numbers(), batch_sampler=plan, num_workers=workers)
    loader.set_epoch(2)
    whole = [batch.tolist() for batch in loader]
    assert whole == epoch_of(BatchPlan(80, 4, seed=7, difficulty=DIFFICULTY, stages=read_stages(GUIDE)), 2)
    rest = skip_first_batches(loader, 7)
    assert len(rest) == 13 and [batch.tolist() for batch in rest] == whole[7:]


class Recorder(Trainer):
    """A real Trainer over a plan that notes the rows it sees."""

    def get_train_dataloader(self):
        return PlannedLoader(
            self.train_dataset, batch_sampler=BatchPlan(80, 4, seed=9), collate_fn=lambda rows: {"rows": rows}
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), inputs["rows"]]
        return model(torch.ones(1, 1)).sum()


def seen_by_trainer(folder, resume=None):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=22,  # 10 steps an epoch
        gradient_accumulation_steps=2,
        save_steps=14,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = Recorder(model=nn.Linear(1, 1), args=arguments, train_dataset=Numbers())
    trainer.train(resume_from_checkpoint=resume)
    return trainer.seen


def test_the_trainer_resumes_in_mid_epoch(tmp_path):
    whole = seen_by_trainer(tmp_path)
    plan = BatchPlan(80, 4, seed=9)
    assert whole == [batch for epoch in range(3) for batch in epoch_of(plan, epoch)][:44]
    assert seen_by_trainer(tmp_path, str(tmp_path / "checkpoint-14")) == whole[28:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_rows": 3}, "batch_size 4 is larger than the 3 training rows: lower batch_size"),
        ({"batch_rows": 0}, "batch_rows is 0; want 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"source": np.arange(80) // 77}, "data set 1 has 3 rows, fewer than batch_size 4"),
        ({"source": np.zeros(5, int)}, "source has 5 entries for 80 rows"),
        ({"source": np.arange(80) // 40, "mixing": [1.0]}, r"\[1.0\] for 2 data sets"),
        ({"source": np.arange(80) // 40, "mixing": [1.0, -1.0]}, "not all 0"),
        ({"source": np.arange(80) // 40, "mixing": [0.0, 0.0]}, "not all 0"),
        ({"stages": [Stage(1, ("easy",))]}, "load the set with difficulty=True"),
        (
            {"stages": [Stage(1, ("easy",)), Stage(2, ("hard",))], "difficulty": np.zeros(80, int)},
            "the stage until epoch 2 has 0 rows of class hard, which make no batch of 4",
        ),
        (
            {"stages": [Stage(1, ("easy",)), Stage(9, ("easy",), "step")], "difficulty": np.zeros(80, int)},
            "several units",
        ),
        (
            {"stages": [Stage(2, ("easy",)), Stage(1, ("easy",))], "difficulty": np.zeros(80, int)},
            "each must end",
        ),
        ({"stages": [Stage(1, ("easy",), "share")], "difficulty": np.zeros(80, int)}, "need total_steps"),
    ],
)
def test_what_cannot_be_is_refused_at_once(change, words):
    with pytest.raises(ValueError, match=words):
        BatchPlan(**{"n_rows": 80, "batch_rows": 4, "seed": 1} | change)


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths has 5 entries for 80 rows"):
        BatchPlan(80, 4, seed=1).sort_by(np.zeros(5, int))
    with pytest.raises(ValueError, match="bucket_factor is 0"):
        BatchPlan(80, 4, seed=1).sort_by(np.zeros(80, int), 0)


def test_a_set_of_weight_0_may_be_small():
    assert len(BatchPlan(80, 4, seed=1, source=np.arange(80) // 77, mixing=[1.0, 0.0])) == 19


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"epoch": [0, 3], "difficulty": "simple"}], "'simple'.*easy, medium, hard"),
        ([{"epoch": [0, 3]}], 'stage 1 is .*write {"epoch"'),
        ([{"epoch": [1, 3], "difficulty": "easy"}], "stage 1 begins at epoch 1; it must begin at 0"),
        ([{"epoch": 3, "difficulty": "easy"}], r"stage 1 lasts 3; write \[begin, end\]"),
        ([{"epoch": [0, "3"], "difficulty": "easy"}], "begin and end are numbers"),
        ([GUIDE[0], GUIDE[2]], "stage 2 begins at epoch 2.5; it must begin at 1"),
        ([{"share": [0, 3], "difficulty": "easy"}], "share at most 1"),
        ([{"epoch": [0, 3], "difficulty": []}], "classes of a stage"),
    ],
)
def test_wrong_stages_are_named(stages, words):
    with pytest.raises(ValueError, match=words):
        read_stages(stages)


def test_the_unit_of_a_stage():
    with pytest.raises(ValueError, match='"minute"; take one of epoch, step, share'):
        Stage(1, ("easy",), "minute")
