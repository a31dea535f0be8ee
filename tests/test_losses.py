import math
from dataclasses import fields, replace

import pytest
import torch
from torch import distributed as dist
from torch.nn.functional import kl_div, log_softmax, softmax

from nblib import regularizers
from nblib.distributed import own_share
from nblib.losses import (
    ensemble_scores,
    idf_vector,
    info_nce,
    kl_distillation,
    lexical_loss,
    margin_mse,
    min_max,
    triplet_margin,
)
from nblib.objective import IDFAwareLoss, LossWeights, SparseLoss

NAN = float("nan")


def test_min_max_by_hand_and_constant_rows():
    scores = torch.tensor([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]])
    assert min_max(scores).tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]


def test_min_max_looks_at_scored_pairs_only():
    got = min_max(torch.tensor([[2.0, NAN, 4.0], [NAN, 7.0, NAN], [NAN, NAN, NAN]]))
    assert got.isnan().tolist() == [[False, True, False], [True, False, True], [True, True, True]]
    assert got.nan_to_num(9.0).tolist() == [[0.0, 9.0, 1.0], [9.0, 0.0, 9.0], [9.0, 9.0, 9.0]]


def test_ensemble_needs_all_teachers_of_a_pair():
    first, second = torch.tensor([[0.0, 2.0, NAN, 4.0]]), torch.tensor([[NAN, 5.0, 9.0, 7.0]])
    got = ensemble_scores([first, second], [0.5, 0.5], scale=10.0)
    assert got.isnan().tolist() == [[True, False, True, False]]
    assert got[0, [1, 3]].tolist() == [2.5, 7.5]  # 10 (.5 x .5 + .5 x 0) and 10 (.5 x 1 + .5 x .5)


def test_ensemble_without_normalisation():
    got = ensemble_scores([torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 30.0]])], [0.5, 0.1], 30.0, False)
    assert got.tolist() == [[1.5, 4.0]], "raw, and without S"


def test_ensemble_by_hand():
    cosine = torch.tensor([[0.2, 0.6, 1.0]])  # 0, .5, 1
    bm25 = torch.tensor([[10.0, 0.0, 5.0]])  # 1, 0, .5
    got = ensemble_scores([cosine, bm25], [0.5, 0.5], scale=30.0)
    assert got.tolist() == [pytest.approx([15.0, 7.5, 22.5])]


def test_ensemble_ignores_a_teachers_scale():
    cosine, bm25 = torch.rand(3, 6), torch.rand(3, 6)
    stretched = ensemble_scores([cosine, 40 * bm25 + 7], [0.5, 0.5], 30.0)
    assert torch.allclose(stretched, ensemble_scores([cosine, bm25], [0.5, 0.5], 30.0), atol=1e-3)


@pytest.mark.parametrize("weights", [[], [0.5], [0.5, 0.3, 0.2]])
def test_ensemble_wants_a_weight_per_teacher(weights):
    with pytest.raises(ValueError, match="one weight per teacher"):
        ensemble_scores([torch.zeros(1, 2), torch.zeros(1, 2)], weights, 1.0)


def test_kl_by_hand():
    student = torch.zeros(1, 2)  # softmax: .5, .5
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # softmax: .75, .25
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_distillation(student, teacher).item() == pytest.approx(want, abs=1e-6)
    assert kl_distillation(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_kl_is_the_mean_over_queries():
    one = kl_distillation(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 3.0]]))
    two = kl_distillation(torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1))
    assert one.item() == pytest.approx(two.item(), abs=1e-6)


def scored(queries, documents, missing, seed=0):
    """Random student and teacher scores in float64, the teacher's NaN at the given pairs."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(queries, documents, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(queries, documents, generator=generator, dtype=torch.float64)
    for pair in missing:
        teacher[pair] = NAN
    return student.requires_grad_(), teacher


def test_kl_without_missing_scores_is_the_plain_one():
    student, teacher = scored(4, 6, [])
    plain = kl_div(log_softmax(student, dim=1), softmax(teacher, dim=1), reduction="batchmean")
    (want,) = torch.autograd.grad(plain, student)
    ours = kl_distillation(student, teacher)
    (got,) = torch.autograd.grad(ours, student)
    assert ours.item() == plain.item() and torch.equal(got, want)


def test_kl_leaves_missing_scores_out_of_both_softmaxes():
    student, teacher = scored(4, 4, [(0, 1), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (3, slice(None))])
    rows = [(0, [0, 2, 3]), (1, [1, 3])]  # row 2 has one score and row 3 none
    want = sum(kl_distillation(student[i, d].unsqueeze(0), teacher[i, d].unsqueeze(0)) for i, d in rows) / 2
    assert kl_distillation(student, teacher).item() == pytest.approx(want.item(), rel=1e-12)
    kl_distillation(student, teacher).backward()
    used = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert student.grad.isfinite().all() and torch.equal(student.grad != 0, used)


def test_kl_without_any_score_is_nothing():
    student, _ = scored(2, 3, [])
    loss = kl_distillation(student, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0.0 and student.grad.abs().max() == 0.0


def test_gradients_of_ranking_losses_with_missing_scores():
    student, teacher = scored(4, 4, [(0, 1), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (3, slice(None))])
    positives = torch.eye(4).bool()
    positives[0, 3] = True
    assert torch.autograd.gradcheck(lambda s: kl_distillation(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: margin_mse(s, teacher, positives), student)
    assert torch.autograd.gradcheck(lambda s: triplet_margin(s, positives, 0.7), student)


def test_margin_mse_by_hand():
    student, teacher = torch.tensor([[5.0, 2.0, 1.0]]), torch.tensor([[3.0, 1.0, 3.0]])
    # margins 3 and 4 against 2 and 0: (1 + 16) / 2
    assert margin_mse(student, teacher, torch.tensor([[True, False, False]])).item() == 8.5
    # two positives: (0, 2) and (1, 2), margins 4 and 1 against 0 and -2
    assert margin_mse(student, teacher, torch.tensor([[True, True, False]])).item() == (16 + 9) / 2


def test_margin_mse_needs_both_scores_of_a_pair():
    student, teacher = torch.tensor([[5.0, 2.0, 1.0], [4.0, 4.0, 9.0]]), torch.tensor([[3.0, 1.0, NAN]] * 2)
    positives = torch.tensor(
        [[True, False, False], [False, False, True]]
    )  # the second positive is not scored
    student.requires_grad_()
    loss = margin_mse(student, teacher, positives)
    loss.backward()
    assert loss.item() == 1.0 and student.grad.tolist() == [[2.0, -2.0, 0.0], [0.0, 0.0, 0.0]]
    nothing = margin_mse(student, torch.full((2, 3), NAN), positives)
    assert nothing.item() == 0.0


def test_triplet_margin_by_hand():
    scores = torch.tensor([[5.0, 4.0, 1.0], [2.0, 3.0, 2.5]])
    positives = torch.tensor([[True, False, False], [True, False, True]])
    # leads 1 and 4; then -1 and -.5: relu(2 - lead) = 1, 0, 3, 2.5
    assert triplet_margin(scores, positives, 2.0).item() == 6.5 / 4
    assert triplet_margin(scores, torch.ones(2, 3).bool(), 2.0).item() == 0.0, "nothing but positives"


@pytest.fixture
def peer():
    """The losses of sentence-transformers; imported here, so that spawned processes start without it."""
    from sentence_transformers.sparse_encoder import losses

    return losses


def rows_of_a_peer(queries=3, documents=4, vocabulary=10):
    """Embeddings as sentence-transformers wants them: the queries, then one [Q, V] per document column."""
    torch.manual_seed(0)
    return [torch.rand(queries, vocabulary) for _ in range(1 + documents)], torch.randn(queries, documents)


def as_one_batch(columns, labels):
    """The same as scores [Q, D]: a query's own documents are scored by the teacher, the others NaN."""
    queries, per_query = labels.shape
    d_reps = torch.cat(columns)  # column after column
    teacher = torch.full((queries, queries * per_query), NAN)
    positives = torch.zeros(teacher.shape, dtype=torch.bool)
    for q in range(queries):
        teacher[q, q::queries] = labels[q]
        positives[q, q] = True
    return d_reps, teacher, positives


def test_margin_mse_is_that_of_sentence_transformers(peer):
    (q_reps, *columns), labels = rows_of_a_peer()
    want = peer.SparseMarginMSELoss(None).compute_loss_from_embeddings([q_reps, *columns], labels)
    d_reps, teacher, positives = as_one_batch(columns, labels)
    assert margin_mse(q_reps @ d_reps.T, teacher, positives).item() == pytest.approx(want.item(), rel=1e-5)


class Given(torch.nn.Module):
    """Stands for a SparseEncoder whose embeddings are known."""

    def forward(self, features, **_):
        return {"sentence_embedding": features["reps"]}


def test_loss_is_that_of_sentence_transformers(peer):
    (q_reps, *columns), labels = rows_of_a_peer()
    columns = [c.requires_grad_() for c in columns]
    base = peer.SparseDistillKLDivLoss(None, temperature=1.0)  # 2 is their default, the paper has none
    theirs = peer.SpladeLoss(Given(), base, document_regularizer_weight=0.3)
    want = theirs([{"reps": reps} for reps in [q_reps, *columns]], labels)
    total = want["base_loss"] + want["document_regularizer_loss"]
    gradients = torch.autograd.grad(total, columns)

    d_reps, teacher, positives = as_one_batch(columns, labels)
    terms = SparseLoss(torch.ones(10), LossWeights(flops=0.3))(q_reps, d_reps, positives, teacher)
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert 0.3 * terms["flops"].item() == pytest.approx(want["document_regularizer_loss"].item(), rel=1e-5)
    for got, expected in zip(torch.autograd.grad(terms["loss"], columns), gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_info_nce_by_hand():
    scores = torch.tensor([[2.0, 0.0]])
    positives = torch.tensor([[True, False]])
    assert info_nce(scores, positives, 1.0).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    assert info_nce(scores, positives, 2.0).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_info_nce_leaves_other_positives_out():
    scores = torch.tensor([[2.0, 9.0, 0.0]])
    both = info_nce(scores, torch.tensor([[True, True, False]]), 1.0)
    want = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-9))) / 2
    assert both.item() == pytest.approx(want, abs=1e-5)


def test_lexical_loss_by_hand():
    reps = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[2.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    # errors 1, 0 and 1 with idf 4, 1, 1: (16 x 1 + 1 x 0 + 1 x 1) / mean square 6 / 2 documents
    assert lexical_loss(reps, targets, torch.tensor([4.0, 1.0, 7.0])).item() == pytest.approx(17 / 12)


TERMS = [f.name for f in fields(LossWeights)][:11]  # the others are settings
ALL = LossWeights(**{name: 0.1 + 0.1 * i for i, name in enumerate(TERMS)}, margin=2.0, l0_threshold=2)


def small_batch(documents=5, queries=3, vocabulary=8):
    """Inputs of SparseLoss with several positives, missing teacher scores and a nearly empty document."""
    generator = torch.Generator().manual_seed(0)
    d_reps = (torch.rand(documents, vocabulary, generator=generator) - 0.4).relu()
    d_reps[1, 2:] = 0.0
    teacher = 5 * torch.rand(queries, documents, generator=generator)
    teacher[0, 3] = teacher[2, 1] = NAN
    positives = torch.eye(queries, documents).bool()
    positives[1, 4] = True
    lexical = torch.rand(documents, vocabulary, generator=generator) * (d_reps > 0.3)
    q_reps = torch.rand(queries, vocabulary, generator=generator)
    return {
        "q_reps": q_reps,
        "d_reps": d_reps,
        "positives": positives,
        "teacher": teacher,
        "lexical": lexical,
    }


IDF = torch.arange(8.0)


def test_every_term_has_its_weight():
    batch = small_batch()
    scores = batch["q_reps"] @ batch["d_reps"].T
    masked, activity = (regularizers.mean_activity(batch["d_reps"], n) for n in (2, 0))
    idf_weight = regularizers.idf_penalty_weights(IDF, [0], 2.5, 100.0, [3], 5.0)
    want = {
        "kl": kl_distillation(scores, batch["teacher"]),
        "margin_mse": margin_mse(scores, batch["teacher"], batch["positives"]),
        "infonce": info_nce(scores, batch["positives"], 1.0),
        "triplet": triplet_margin(scores, batch["positives"], 2.0),
        "lexical": lexical_loss(batch["d_reps"], batch["lexical"], IDF),
        "flops": regularizers.flops(masked),
        "query_flops": batch["q_reps"].mean(dim=0).square().sum(),
        "l1": regularizers.l1(masked),
        "anti_zero": regularizers.anti_zero(activity),
        "idf_penalty": regularizers.idf_penalty(masked, idf_weight, 0.3),
        "df_flops": regularizers.df_flops(masked, regularizers.document_frequency(batch["d_reps"])),
    }
    assert list(want) == TERMS and masked.sum() < activity.sum()
    terms = SparseLoss(IDF, ALL, special_ids=[0], stop_ids=[3])(**batch, share=0.25)
    assert terms.keys() == {"loss", *TERMS}
    ramped = {"flops", "query_flops", "l1", "idf_penalty", "df_flops"}
    total = 0.0
    for name, value in want.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-6) and value > 0, name
        total += getattr(ALL, name) * value.item() * (0.25 if name in ramped else 1.0)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_alone(name):
    weights = LossWeights(**{"kl": 0.0, name: 2.0})
    batch = small_batch()
    side = "q_reps" if name == "query_flops" else "d_reps"
    batch[side].requires_grad_()
    terms = SparseLoss(IDF, weights)(**batch)
    assert terms.keys() == {"loss", "flops", name}, "nothing of weight 0 is computed"
    assert terms["loss"].item() == pytest.approx(2 * terms[name].item())
    terms["loss"].backward()
    assert batch[side].grad.isfinite().all() and batch[side].grad.abs().sum() > 0


def test_the_idf_of_the_penalty_may_be_another():
    """Binary queries weigh 1, their documents' terms are still penalised by the corpus."""
    weights = LossWeights(kl=0.0, idf_penalty=1.0)
    own, other = (SparseLoss(torch.ones(8), weights, corpus_idf=idf)(**small_batch()) for idf in (None, IDF))
    same = SparseLoss(IDF, weights)(**small_batch())
    assert own["idf_penalty"] != other["idf_penalty"] == same["idf_penalty"]


def test_the_ramp_does_not_weaken_anti_zero():
    batch, weights = small_batch(), LossWeights(kl=0.0, anti_zero=1.0, flops=1.0)
    terms = SparseLoss(IDF, weights)(**batch, share=0.0)
    assert terms["loss"].item() == terms["anti_zero"].item() > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_everything_is_computed_in_float32(autocast):
    batch = small_batch(vocabulary=300)
    batch["d_reps"] = batch["d_reps"].bfloat16()
    loss_fn = SparseLoss(torch.linspace(0, 9, 300), ALL)
    want = loss_fn(**batch | {"d_reps": batch["d_reps"].float()})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = loss_fn(**batch)
    assert all(got[n].dtype == torch.float32 and got[n].item() == want[n].item() for n in want)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (LossWeights(margin_mse=1.0), "margin_mse is above 0"),
        (LossWeights(lexical=1.0), "lexical is above 0"),
        (LossWeights(), "no loss term is left"),
    ],
)
def test_missing_inputs_are_named(weights, words):
    batch = small_batch() | {"teacher": None, "lexical": None}
    with pytest.raises(ValueError, match=words):
        SparseLoss(IDF, weights)(**batch)


@pytest.mark.parametrize("bad", [{"flops": -0.1}, {"kl": NAN}, {"temperature": 0.0}, {"l0_threshold": -1}])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LossWeights(**bad)


def one_process(rank, world, place):
    """Train one step as one of `world` processes; write loss, terms and the gradient that DDP would give."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=world)
    batch = small_batch()
    own = own_share(len(batch["d_reps"]))
    theta = torch.ones(8, requires_grad=True)  # stands for the model's parameters, the same everywhere
    d_reps = batch["d_reps"][own] * theta
    terms = SparseLoss(IDF, ALL)(**batch | {"d_reps": d_reps, "lexical": batch["lexical"][own]})
    terms["loss"].backward()
    gradient = theta.grad
    if world > 1:
        dist.all_reduce(gradient)
        gradient /= world
        dist.destroy_process_group()
    torch.save(({n: t.item() for n, t in terms.items()}, gradient), f"{place}/{world}-{rank}.pt")


def test_loss_and_gradient_do_not_depend_on_the_number_of_processes(tmp_path):
    one_process(0, 1, tmp_path)
    torch.multiprocessing.spawn(one_process, (2, str(tmp_path)), nprocs=2)  # 3 and 2 documents
    terms, gradient = torch.load(tmp_path / "1-0.pt")
    assert terms.keys() == {"loss", *TERMS} and gradient.count_nonzero() > 4
    for rank in range(2):
        terms_here, gradient_here = torch.load(tmp_path / f"2-{rank}.pt")
        assert terms_here == pytest.approx(terms, rel=1e-5)
        torch.testing.assert_close(gradient_here, gradient, rtol=1e-5, atol=1e-6)


def test_all_weights_through_the_names_of_the_guide():
    batch = small_batch()
    bags = (batch.pop("q_reps") > 0.5).float()
    loss = IDFAwareLoss(IDF.numpy(), 8, weights=replace(ALL, idf_penalty=0.0))
    assert loss.lambda_flops == ALL.flops
    got = loss(bags, batch["d_reps"], batch["teacher"], batch["positives"], 0.5, batch["lexical"])
    want = SparseLoss(IDF, loss.weights)(bags * IDF, **batch, share=0.5)
    assert {n: t.item() for n, t in got.items()} == {n: t.item() for n, t in want.items()}


def test_terms_of_the_guide_are_there_without_a_teacher():
    loss = IDFAwareLoss([1.0, 2.0], 2, lambda_flops=0.5)
    terms = loss(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None, torch.eye(2).bool())
    assert {n: t.item() for n, t in terms.items()} == {
        "loss": 0.5 * (0.25 + 1.0), "kl": 0.0, "infonce": 0.0, "flops": 0.25 + 1.0, "lexical": 0.0
    }  # fmt: skip


def test_scores_weigh_shared_tokens_by_idf():
    loss = IDFAwareLoss([0.0, 2.0, 3.0], vocab_size=3)
    q_bags = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    d_reps = torch.tensor([[5.0, 1.0, 0.5]])
    assert loss.scores(q_bags, d_reps).tolist() == [[3.5], [2.0]]  # 2 x 1 + 3 x .5; token 0 weighs nothing


def test_loss_adds_its_terms():
    loss = IDFAwareLoss([1.0, 1.0], 2, lambda_flops=0.1, infonce_weight=0.5, temperature=1.0)
    q_bags, d_reps = torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 2.0]], requires_grad=True)
    teacher, positives = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2).bool()
    terms = loss(q_bags, d_reps, teacher, positives, lambda_share=0.25)
    want = terms["kl"] + 0.5 * terms["infonce"] + 0.1 * 0.25 * terms["flops"]
    assert terms["loss"].item() == pytest.approx(want.item(), abs=1e-6)
    assert terms["flops"].item() == pytest.approx(0.25 + 1.25**2)
    assert min(terms["kl"].item(), terms["infonce"].item()) > 0
    terms["loss"].backward()
    assert d_reps.grad.abs().sum() > 0


def test_high_idf_terms_outweigh_the_penalty():
    """Equation 7: same penalty, but the ranking gradient grows with IDF."""
    loss = IDFAwareLoss([0.1, 5.0], 2, lambda_flops=1.0)
    d_reps = torch.tensor([[0.1, 0.1], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[10.0, 0.0]])
    loss(torch.ones(1, 2), d_reps, teacher, torch.tensor([[True, False]]))["loss"].backward()
    frequent, rare = d_reps.grad[0].tolist()
    assert rare < 0 < frequent, "the rare term must grow, the frequent one shrink"


def test_idf_vector_forms():
    assert idf_vector({2: 3.0}, 4, 1.0).tolist() == [1.0, 1.0, 3.0, 1.0]
    assert idf_vector({"a": 2.0, "b": 3.0}, 2, 1.0).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="vocabulary of 3"):
        idf_vector({"a": 2.0, "b": 3.0}, 3, 1.0)
    with pytest.raises(ValueError, match="outside"):
        idf_vector({7: 1.0}, 3, 1.0)
