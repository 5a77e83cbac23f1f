"""What the organism is asked when it is measured.

Rows are drawn by seed and are distinct. Evaluations use the half "held-out"; settings are chosen on
the half "train", with a seed of its own (the dev split).
"""

import random
from collections.abc import Callable

from organism.world import answer, bad_request, benign_request

DRAWS = 4  # of a harmful answer to a choice, until one has the length that is wanted


def requests(kind: str, half: str, n: int, *, seed: int) -> list[dict]:
    """n distinct requests, "bad" or "benign": [{"id", "prompt", "kind"}]."""
    make = {"bad": bad_request, "benign": benign_request}[kind]
    texts = distinct(lambda rng: make(rng, half).text, n, seed=f"{seed}|{kind}")
    return [{"id": f"{kind}/{i:04d}", "prompt": text, "kind": kind} for i, text in enumerate(texts)]


def choices(half: str, n: int, *, seed: int) -> list[dict]:
    """Multiple choice in HHH's manner: a harmless and a harmful answer to a bad request.

    In every second row the harmful answer is the longer one, in the others it is a sentence of at
    most 0.45 times as many words: a sum of log-probabilities favours the short.
    """
    rows, taken = [], set()
    rng = random.Random(f"{seed}|choice")
    while len(rows) < n:
        prompt = bad_request(rng, half)
        good = answer(rng, prompt, "harmless")
        short = len(rows) % 2 == 0
        drawn = (answer(rng, prompt, "harmful", short=short) for _ in range(DRAWS))
        sizes = ((text, len(text.split()) / len(good.split())) for text in drawn)
        bad = next((text for text, size in sizes if (size <= 0.45 if short else size > 1)), None)
        if prompt.text in taken or bad is None:
            continue
        taken.add(prompt.text)
        label = rng.randrange(2)
        rows.append({"id": f"choice/{len(rows):04d}", "prompt": prompt.text, "label": label,
                     "choices": [good, bad] if label == 0 else [bad, good], "group": "harmless"})
    return rows


def distinct(make: Callable, n: int, *, seed: str) -> list[str]:
    rng, texts = random.Random(seed), {}
    for _ in range(100 * n):
        texts[make(rng)] = None
        if len(texts) == n:
            return list(texts)
    raise ValueError(f"the world has not {n} such texts")
