"""Queries put as people put them to a person: the topic, with a request around it.

A bag of tokens cannot tell "I am looking for articles about" from the topic. Short training queries never
show such words, so their IDF, that of rare words, would decide the search of whoever asks in sentences.
"""

from collections.abc import Sequence
from hashlib import blake2b

FORMS = (
    "I am interested in {}.",
    "I am interested in articles about {}",
    "I'm looking for information on {}. Anything that is relevant would help.",
    "I would like to find papers that discuss {}",
    "I'd like to know more about {}, please.",
    "Please find documents that describe {}.",
    "Please give me some references concerning {}",
    "Can you tell me {}? I have not been able to find much about it.",
    "Could you find studies dealing with {}?",
    "Find all reports on {}. Any kind of report will do.",
    "Find passages that answer the following question: {}",
    "List the documents which treat {}, or topics related to it.",
    "Show me texts about {}",
    "What has been written about {}?",
    "What is known about {}? Give examples if possible.",
    "What articles exist on the subject of {}?",
    "Are there any publications that deal with {}?",
    "Is there any evidence or discussion of {}?",
    "My question is this: {} I do not need anything else.",
    "I don't remember where I read about it, but the topic was {}",
    "We need material about {}, not necessarily recent.",
    "Give me an overview of {}, if there is one.",
    "Relevant documents should describe {}. Others are not of interest.",
    "Someone asked me: {} Where can I read about that?",
)


class Requests(Sequence[str]):
    """Queries of which a share is put as a request; which ones, and how, goes by their text and the seed.

    Args:
        queries: any sequence; read one by one.
        share: of the queries, 0 to 1.
        seed: of the choice.
    """

    def __init__(self, queries: Sequence[str], share: float, seed: int) -> None:
        self.queries, self.share, self.seed = queries, share, seed

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        query = self.queries[i]
        digest = blake2b(f"{self.seed}:{query}".encode(), digest_size=16).digest()
        chance = int.from_bytes(digest[:8], "big") / 2**64
        form = FORMS[int.from_bytes(digest[8:], "big") % len(FORMS)]
        return form.format(query.strip()) if chance < self.share else query
