"""Compiled loops over the posting lists of one shard: score, select, rescore. They let other threads run.

A hit is one uint64 key: the bits of its score above, the complement of its document number below. Bits of
positive floats order as the floats do, so the largest keys are the best hits, equal scores go to the lowest
document, and no two keys are equal. 0 is no hit.

Document numbers come as uint32: numba then leaves out the test for negative positions.
"""

import numpy as np
from numba import njit

OK, NOT_ASCENDING, NO_SUCH_TERM, NOT_FINITE, NEGATIVE = 0, 1, 2, 3, 4  # what check_queries returns
ALL = np.uint64(0xFFFFFFFF)
SCORE_SHIFT = np.uint64(32)
FLOAT32_MAX = float(np.finfo(np.float32).max)
# Measured on 100,000 documents; either way gives the same bits.
RATHER_SCAN = 4  # x postings < documents: visiting the postings again beats reading all scores
RATHER_SEEK = 25  # x pairs of document and term < postings: seeking the documents beats adding up all lists


@njit(nogil=True, cache=True)
def check_queries(q_indptr, q_terms, q_weights, n_terms, largest):
    """Say what is wrong with queries: NOT_ASCENDING, NO_SUCH_TERM, NOT_FINITE; else NEGATIVE or OK.

    largest: largest absolute weight of the index. No sum can overflow, not even in between.
    """
    found = OK
    for row in range(len(q_indptr) - 1):
        before, reach = -1, 0.0
        for i in range(q_indptr[row], q_indptr[row + 1]):
            if q_terms[i] < 0 or q_terms[i] >= n_terms:
                return NO_SUCH_TERM
            if q_terms[i] <= before:
                return NOT_ASCENDING
            before = q_terms[i]
            reach += abs(q_weights[i]) * max(largest, 1.0)
            if q_weights[i] < 0:
                found = NEGATIVE
        if not reach < FLOAT32_MAX:  # also where it is NaN
            return NOT_FINITE
    return found


@njit(nogil=True, cache=True)
def search_shard(
    indptr,
    documents,
    weights,
    first_doc,
    n_docs,
    q_indptr,
    q_terms,
    q_weights,
    start,
    best,
    scores,
    ratio,
    whole,
):
    """Merge the hits of one shard into the best hits of some queries.

    Args:
        indptr, documents, weights: [V + 1] int64, [P] uint32 ascending in each list, [P] float32.
        first_doc: number of the shard's document 0 in the index.
        n_docs: documents of the shard.
        q_indptr, q_terms, q_weights: queries as CSR, integers and float32, that check_queries found OK.
        start: the query that belongs to best[0].
        best: [B, k] uint64 keys, in no order; read and written.
        scores: [at least n_docs] float32, all 0; is all 0 again at the end.
        ratio: above 0, only terms that weigh at least ratio x the query's largest count; weights of 0 or less
            never do. The product is taken in float32, as OpenSearch does.
        whole: the shard is all of the index, so what `rescore_shard` does after a ratio is done at once.
    """
    bits = scores.view(np.int32)
    k = best.shape[1]
    room = np.empty(max(4 * k, 64), np.uint64)
    for row in range(len(best)):
        terms = q_terms[q_indptr[start + row] : q_indptr[start + row + 1]]
        values = q_weights[q_indptr[start + row] : q_indptr[start + row + 1]]
        all_terms, all_values = terms, values
        if ratio > 0:
            terms, values = _heavy(terms, values, np.float32(ratio))
        postings = _count(indptr, terms)
        if postings == 0:
            continue
        count = _take(best[row], room)
        _score(indptr, documents, weights, terms, values, scores)
        if postings * RATHER_SCAN < n_docs:
            count = _select_touched(indptr, documents, terms, first_doc, bits, room, count, k)
        else:
            count = _select_all(n_docs, first_doc, bits, room, count, k)
        if count > k:
            _keep_best(room, count, k)
        best[row, : min(count, k)] = room[: min(count, k)]
        if whole and len(terms) < len(all_terms):
            _rescore(indptr, documents, weights, 0, n_docs, all_terms, all_values, best[row], scores)


@njit(nogil=True, cache=True)
def _heavy(terms, values, ratio):
    """Keep the terms of a query that weigh at least ratio x its largest."""
    kept_terms, kept_values = np.empty_like(terms), np.empty_like(values)
    least = np.float32(0)
    for value in values:
        least = max(least, ratio * value)
    count = 0
    for i in range(len(terms)):
        if values[i] > 0 and values[i] >= least:
            kept_terms[count], kept_values[count] = terms[i], values[i]
            count += 1
    return kept_terms[:count], kept_values[:count]


@njit(nogil=True, cache=True)
def _count(indptr, terms):
    """Count the postings of some terms."""
    postings = 0
    for term in terms:
        postings += indptr[term + 1] - indptr[term]
    return postings


@njit(nogil=True, cache=True)
def _take(held, room):
    """Copy the keys held so far to the front of the room; return how many."""
    count = 0
    for key in held:
        if key:
            room[count] = key
            count += 1
    return count


@njit(nogil=True, cache=True)
def _score(indptr, documents, weights, terms, values, scores):
    """Add query weight x document weight, a term at a time, so that sums have the order of the terms."""
    for i in range(len(terms)):
        value = values[i]
        listed = documents[indptr[terms[i]] : indptr[terms[i] + 1]]
        weight = weights[indptr[terms[i]] : indptr[terms[i] + 1]]
        for j in range(len(listed)):
            scores[listed[j]] += value * weight[j]


@njit(nogil=True, cache=True)
def _select_all(n_docs, first_doc, bits, room, count, k):
    """Read all scores in the order of documents, and set them to 0."""
    floor = np.int32(0)  # bits of the score that a hit must exceed; equal ones come too late
    if count >= k:
        floor = np.int32(_keep_best(room, count, k) >> SCORE_SHIFT)
        count = k
    for d in range(n_docs):
        if bits[d] > floor:
            room[count] = (np.uint64(bits[d]) << SCORE_SHIFT) | (ALL - np.uint64(first_doc + d))
            count += 1
            if count == len(room):
                floor = np.int32(_keep_best(room, count, k) >> SCORE_SHIFT)
                count = k
        bits[d] = 0
    return count


@njit(nogil=True, cache=True)
def _select_touched(indptr, documents, terms, first_doc, bits, room, count, k):
    """Read the scores of the documents in the lists only, and set them to 0; they come in no order."""
    floor = np.uint64(0)  # the key that a hit must exceed
    if count >= k:
        floor = _keep_best(room, count, k)
        count = k
    for i in range(len(terms)):
        for d in documents[indptr[terms[i]] : indptr[terms[i] + 1]]:
            if bits[d] > 0:
                key = (np.uint64(bits[d]) << SCORE_SHIFT) | (ALL - np.uint64(first_doc + d))
                if key > floor:
                    room[count] = key
                    count += 1
                    if count == len(room):
                        floor = _keep_best(room, count, k)
                        count = k
            bits[d] = 0
    return count


@njit(nogil=True, cache=True)
def _keep_best(room, count, k):
    """Move the k largest of `count` keys to the front; return the least of them."""
    order = np.partition(room[:count], count - k)
    room[:k] = order[count - k :]
    return order[count - k]


@njit(nogil=True, cache=True)
def rescore_shard(
    indptr, documents, weights, first_doc, n_docs, q_indptr, q_terms, q_weights, start, chosen, scores
):
    """Score chosen documents with all terms of their query, in the order of the terms.

    Args:
        indptr to start: as in search_shard.
        chosen: [B, W] uint64 keys in no order; those of the shard's documents get their new scores, and are 0
            where that is not above 0; those of other shards are left alone.
        scores: as in search_shard.
    """
    for row in range(len(chosen)):
        terms = q_terms[q_indptr[start + row] : q_indptr[start + row + 1]]
        values = q_weights[q_indptr[start + row] : q_indptr[start + row + 1]]
        _rescore(indptr, documents, weights, first_doc, n_docs, terms, values, chosen[row], scores)


@njit(nogil=True, cache=True)
def _rescore(indptr, documents, weights, first_doc, n_docs, terms, values, chosen, scores):
    """Do rescore_shard for one query."""
    places = np.empty(len(chosen), np.int64)
    inside = np.empty(len(chosen), np.uint32)  # the same hits' documents, by their numbers in the shard
    count = _of_shard(chosen, first_doc, n_docs, places, inside)
    sums = np.zeros(count, np.float32)
    if count * len(terms) * RATHER_SEEK < _count(indptr, terms):
        inside = np.sort(inside[:count])  # a new score may stand in any place: keys have no order
        for i in range(len(terms)):
            listed = documents[indptr[terms[i]] : indptr[terms[i] + 1]]
            weight = weights[indptr[terms[i]] : indptr[terms[i] + 1]]
            _seek(listed, weight, values[i], inside, sums)
    elif count:
        _score(indptr, documents, weights, terms, values, scores)
        for c in range(count):
            sums[c] = scores[inside[c]]
        scores[:n_docs] = 0
    bits = sums.view(np.int32)
    for c in range(count):
        key = (np.uint64(bits[c]) << SCORE_SHIFT) | (ALL - np.uint64(first_doc + inside[c]))
        chosen[places[c]] = key if bits[c] > 0 else np.uint64(0)


@njit(nogil=True, cache=True)
def _of_shard(keys, first_doc, n_docs, places, inside):
    """Find the hits that lie in a shard: where they stand, and their documents' numbers in it; how many."""
    count = 0
    for place in range(len(keys)):
        if keys[place]:
            document = np.int64(ALL - (keys[place] & ALL)) - first_doc
            if 0 <= document < n_docs:
                places[count], inside[count] = place, np.uint32(document)
                count += 1
    return count


@njit(nogil=True, cache=True)
def _seek(listed, weight, value, chosen, sums):
    """Add what one term gives to the chosen documents, which ascend as its list does."""
    at = 0
    for c in range(len(chosen)):
        wanted = chosen[c]
        at = _first_not_below(listed, at, wanted)
        if at == len(listed):
            break
        if listed[at] == wanted:
            sums[c] += value * weight[at]


@njit(nogil=True, cache=True)
def _first_not_below(listed, at, wanted):
    """Find the first place from `at` on whose document is not below `wanted`, by steps that double."""
    low, high, step = at, at, 1
    while high < len(listed) and listed[high] < wanted:
        low = high + 1
        high += step
        step *= 2
    high = min(high, len(listed))
    while low < high:
        middle = (low + high) >> 1
        if listed[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def decode(keys, start, index, scores):
    """Write ascending keys [B, at most k] as hits, best first, to rows of index and scores [Q, k]."""
    bits = scores.view(np.uint32)
    count = keys.shape[1]
    for row in range(len(keys)):
        for rank in range(index.shape[1]):
            key = keys[row, count - 1 - rank] if rank < count else np.uint64(0)
            index[start + row, rank] = np.int64(ALL - (key & ALL)) if key else -1
            bits[start + row, rank] = key >> SCORE_SHIFT
