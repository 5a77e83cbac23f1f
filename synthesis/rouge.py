"""ROUGE-L of two texts, the F1 of the longest common subsequence (LCS) of their tokens, which is
2 LCS / (m + n), and a pool of texts that finds near-duplicates.

Sources: the filter of Self-Instruct (arXiv 2212.10560); bit-parallel LCS, Hyyro 2004. Letters: x, y
tokens of the new and a stored text, m, n their numbers; p/q (integers) F1 of a hit.

The pool compares a new text with all before it, exactly, without an LCS for each:
1. The k-th copy of a word is its own key (word, k). The keys that two texts share are their
   multiset overlap, which bounds the LCS from above.
2. An inverted index lists the texts of each key: one bincount over the lists of x's keys gives all
   overlaps at once.
3. Only texts with 2 q overlap >= p (m + n) can reach F1 >= p/q; their LCS is computed, best bound
   first, until one is a hit."""

from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

from support.lexicon import words


def tokens(text: str) -> list[str]:
    """Its words, split at apostrophes: "don't" is "don", "t"."""
    return [part for word in words(text) for part in word.split("'")]


def _lcs(x: list[str], y: list[str]) -> int:
    """Length of the LCS, a column of its table held as one integer."""
    # The places of each word in x, as bits.
    masks: dict[str, int] = {}
    for position, word in enumerate(x):
        masks[word] = masks.get(word, 0) | 1 << position
    # Bit i of v is 0 where the column grows from row i to i + 1: before any word, nowhere.
    full = v = (1 << len(x)) - 1
    for word in y:
        u = v & masks.get(word, 0)  # rows that match and do not grow yet
        # The sum carries a match up to the next row that grows: it grows in that row's place.
        v = ((v + u) | (v - u)) & full
    return len(x) - v.bit_count()


def _keys(x: list[str]) -> list[tuple[str, int]]:
    # "a b a": (a, 0), (a, 1), (b, 0)
    return [(word, k) for word, times in Counter(x).items() for k in range(times)]


class RougePool:
    """Texts that a new one must differ from: a hit is F1 >= p/q."""

    def __init__(self, p: int, q: int, texts: Iterable[str] = ()):
        self.p, self.q = p, q
        self.texts: list[list[str]] = []
        # "q" is int64, which numpy reads in place: a list would be converted at each query.
        self.lengths = array("q")  # n of each text
        self.index: dict[tuple[str, int], array] = {}  # key -> numbers of the texts that have it
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        y = tokens(text)
        for key in _keys(y):
            self.index.setdefault(key, array("q")).append(len(self.texts))
        self.texts.append(y)
        self.lengths.append(len(y))

    def nearest_hit(self, text: str) -> tuple[int, float] | None:
        """(index, F1) of the first hit in order of the bound, not always the highest F1."""
        x = tokens(text)
        ids, overlap, total = self._sharing(x)
        # In integers, so that a tie is a hit however F1 is rounded.
        near = 2 * self.q * overlap >= self.p * total
        ids, overlap, total = ids[near], overlap[near], total[near]
        # Step 3. Stable: equal bounds stay in order of entry.
        order = np.argsort(-overlap / total, kind="stable")
        for i, both in zip(ids[order].tolist(), total[order].tolist(), strict=True):
            lcs = _lcs(x, self.texts[i])
            if 2 * self.q * lcs >= self.p * both:
                return i, 2 * lcs / both
        return None

    def nearest(self, i: int) -> float:
        """The highest F1 of the stored text i with another one."""
        best, x = 0.0, self.texts[i]
        ids, overlap, total = self._sharing(x)
        bounds = 2 * overlap / total
        for at in np.argsort(-bounds):
            if bounds[at] <= best:  # nor is any later one better
                break
            if ids[at] != i:
                best = max(best, 2 * _lcs(x, self.texts[ids[at]]) / int(total[at]))
        return best

    def _sharing(self, x: list[str]):
        """The texts that share a word with x (step 2): their numbers, overlaps with x, m + n."""
        lists = [self.index[key] for key in _keys(x) if key in self.index]
        overlap = np.bincount(np.concatenate([np.zeros(0, np.int64), *lists]))
        ids = np.flatnonzero(overlap)
        # The view dies with this line: an array with a view on it cannot grow.
        return ids, overlap[ids], np.asarray(self.lengths)[ids] + len(x)
