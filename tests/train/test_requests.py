"""Queries put as requests: the asked share, the same at every look, and only for the student."""

import pytest

from nblib.train.requests import FORMS, Requests

QUERIES = [f"topic {i} {{x}}" for i in range(2000)]


def test_every_form_holds_the_query_once_and_adds_words():
    for form in FORMS:
        asked = form.format("THE QUERY")
        assert asked.count("THE QUERY") == 1 and len(asked.split()) > 4


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share(share):
    asked = Requests(QUERIES, share, seed=3)
    changed = [new != old for new, old in zip(asked, QUERIES, strict=True)]
    assert sum(changed) / len(changed) == pytest.approx(share, abs=0.04)
    assert all(old in new for new, old in zip(asked, QUERIES, strict=True))


def test_choice_goes_by_text_and_seed_alone():
    one, again = Requests(QUERIES, 0.5, 3), Requests(QUERIES[::-1], 0.5, 3)
    assert list(one) == list(again)[::-1] == one[:]
    assert list(one) != list(Requests(QUERIES, 0.5, 4))
    assert len({Requests(["one topic"], 1.0, seed)[0] for seed in range(200)}) == len(FORMS)
