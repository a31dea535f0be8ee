"""Words of a vocabulary that share a stem."""

import numpy as np
import Stemmer

SHORTEST = 3  # letters of a word that has a stem worth sharing


def stem_groups(tokenizer, stemmer: str) -> np.ndarray | None:
    """Put the whole words of a vocabulary that share a stem into one group.

    Word pieces that are no word of their own, numbers, signs and words of one or two letters stay alone.

    Args:
        tokenizer: fast tokenizer, V = len(tokenizer).
        stemmer: language of a Snowball stemmer, such as "english"; "" = none.

    Returns:
        [V] int64: the lowest token of each token's group; None without a stemmer.

    Raises:
        KeyError: no stemmer of that name.
    """
    if not stemmer:
        return None
    stem = Stemmer.Stemmer(stemmer)
    words = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    core = tokenizer.backend_tokenizer
    core.no_padding()  # as the tokenizer's file may have it: no word would be a piece of its own
    pieces = core.encode_batch_fast(words, add_special_tokens=False)
    groups, first = np.arange(len(words)), {}
    for i, (word, piece) in enumerate(zip(words, pieces, strict=True)):
        word = word.strip().lower()
        if piece.ids == [i] and word.isalpha() and len(word) >= SHORTEST:
            groups[i] = first.setdefault(stem.stemWord(word), i)
    return groups
