"""rouge.py: ROUGE-L against the naive table, the pool against brute force over all pairs.
Plain text only, no model, CPU."""

import ast
import random
import time
from pathlib import Path

import pytest

from synthesis import rouge
from synthesis.rouge import RougePool

CUTS = [(1, 2), (6, 10), (7, 10), (8, 10), (9, 10)]


def rouge_l(a, b):
    """F1 with the pool's own LCS; two empty texts share nothing."""
    x, y = rouge.tokens(a), rouge.tokens(b)
    return 2 * rouge._lcs(x, y) / max(1, len(x) + len(y))


def table_lcs(x, y):
    """The textbook table, one row at a time."""
    row = [0] * (len(y) + 1)
    for a in x:
        above = row
        row = [0]
        for j, b in enumerate(y):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


def zipf_text(rng, n, vocabulary=40):
    weights = [1 / (i + 1) for i in range(vocabulary)]
    return " ".join(f"w{i}" for i in rng.choices(range(vocabulary), weights, k=n))


def mutated(rng, text):
    own = text.split()
    for _ in range(rng.randint(0, 3)):
        own[rng.randrange(len(own))] = f"x{rng.randint(0, 9)}"
    return " ".join(own)


def test_lcs_fuzz():
    rng = random.Random(0)
    for _ in range(300):
        vocabulary = rng.choice([2, 5, 40])  # 2: many ties between alignments
        a, b = (zipf_text(rng, rng.randint(1, 130), vocabulary) for _ in "ab")
        x, y = a.split(), b.split()
        assert rouge_l(a, b) == 2 * table_lcs(x, y) / (len(x) + len(y))


@pytest.mark.parametrize(("a", "b", "f1"), [
    ("the cat sat", "The CAT, sat!", 1.0),  # case and marks do not count
    ("a b c", "c b a", 1 / 3),
    ("", "a", 0.0), ("", "", 0.0), ("...", "a", 0.0),
    ("今天天气好", "今天天气很好", 10 / 11),  # five of six characters
    ("ความ", "ควาย", 3 / 4),
    ("привет мир", "привет друг", 1 / 2),
    ("don't go", "don t go", 1.0),
])
def test_rouge_table(a, b, f1):
    assert rouge_l(a, b) == pytest.approx(f1, abs=1e-15)


def test_tie_is_a_hit_in_integers():
    # LCS 7 of 10 + 10 and of 9 + 11: both are exactly 0.7, floats disagree about it.
    same = [f"s{i}" for i in range(7)]
    for left, right in ((3, 3), (2, 4)):
        pool = RougePool(7, 10)
        pool.add(" ".join(same + [f"l{i}" for i in range(left)]))
        assert pool.nearest_hit(" ".join(same + [f"r{i}" for i in range(right)])) == (0, 0.7)
        below = " ".join(same + [f"r{i}" for i in range(right + 1)])
        assert pool.nearest_hit(below) is None


@pytest.fixture(scope="module")
def zipf_texts():
    """300 texts, a third near-duplicates, and the LCS of each with all before it."""
    rng, texts = random.Random(0), []
    for i in range(300):
        text = zipf_text(rng, rng.randint(1, 90 if i % 20 == 0 else 20))
        texts.append(mutated(rng, rng.choice(texts)) if texts and rng.random() < 0.3 else text)
    own = [text.split() for text in texts]
    return texts, [[table_lcs(x, y) for y in own[:i]] for i, x in enumerate(own)]


@pytest.mark.parametrize(("p", "q"), CUTS)
def test_pool_equals_brute_force(zipf_texts, p, q):
    texts, lcs = zipf_texts
    size = [len(text.split()) for text in texts]
    pool, hits = RougePool(p, q), 0
    for i, text in enumerate(texts):
        reached = {j for j in range(i) if 2 * q * lcs[i][j] >= p * (size[i] + size[j])}
        found = pool.nearest_hit(text)
        assert (found is not None) == bool(reached)
        if found:
            hits += 1
            j, f1 = found
            assert j in reached and f1 == 2 * lcs[i][j] / (size[i] + size[j])
        pool.add(text)
    assert 20 < hits < 300


def test_pool_best_bound_first():
    pool = RougePool(1, 2)
    for text in ("a b c d", "a b c d e f", "a b c d e x"):
        pool.add(text)
    assert pool.nearest_hit("a b c d e f") == (1, 1.0)
    assert pool.nearest_hit("a b c d e y") == (1, 5 / 6)  # equal bounds: order of entry
    # The best bound (all words shared) fails in order, the next one is verified.
    pool = RougePool(9, 10)
    pool.add("j i h g f e d c b a")
    pool.add("a b c d e f g h i z")
    assert pool.nearest_hit("a b c d e f g h i j") == (1, 0.9)


def test_pool_empty_and_cjk():
    pool = RougePool(7, 10)
    assert pool.nearest_hit("a") is None
    pool.add("")
    pool.add("今天天气好")
    assert pool.nearest_hit("") is None and pool.nearest_hit("!!") is None
    assert pool.nearest_hit("今天天气很好") == (1, 10 / 11)


def test_imports_the_lexicon_only():
    tree = ast.parse(Path(rouge.__file__).read_text())
    names = {getattr(n, "module", None) or n.names[0].name for n in ast.walk(tree)
             if isinstance(n, ast.Import | ast.ImportFrom)}
    assert names == {"array", "collections", "collections.abc", "numpy", "support.lexicon"}


def test_nearest_is_exact():
    """Against every other text in turn."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(60)]
    pool = RougePool(1, 1, texts)
    for i, text in enumerate(texts):
        best = max(rouge_l(text, other) for j, other in enumerate(texts) if j != i)
        assert pool.nearest(i) == pytest.approx(best)


@pytest.mark.slow
def test_a_hundred_thousand_texts():
    """In less than a minute of a processor, where each is looked for before it is added."""
    rng, pool, began = random.Random(0), RougePool(7, 10), time.process_time()
    for _ in range(100_000):
        text = " ".join(f"w{rng.randrange(8000)}" for _ in range(rng.randint(8, 24)))
        assert pool.nearest_hit(text) is None
        pool.add(text)
    assert time.process_time() - began < 60
