"""Texts in a nameless file: those that went in, at the cost of their places."""

import tracemalloc

import numpy as np
import pytest

from nblib.data.texts import SpooledTexts


def test_they_are_those_that_went_in(tmp_path, english_texts):
    held = ["", "naïve 한국어 😀", *english_texts, "\n"]
    texts = SpooledTexts(iter(held), tmp_path / "made" / "anew")
    assert list(texts) == held and len(texts) == len(held)
    assert texts[-2] == held[-2] and texts[np.int64(1)] == held[1]
    assert texts[1:9:3] == held[1:9:3] and texts[len(held) :] == []
    with pytest.raises(IndexError):
        texts[len(held)]
    assert list(SpooledTexts([], tmp_path)) == [] and list(SpooledTexts([""], tmp_path)) == [""]


def test_only_their_places_are_held(tmp_path):
    tracemalloc.start()
    texts = SpooledTexts((f"{number:06d}" * 100 for number in range(20_000)), tmp_path)  # 12 MB
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts[12_345] == "012345" * 100
    assert now < 16 * 20_000 and peak < 2**20
