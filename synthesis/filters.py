"""What synthesis accepts: parsers of completions, reasons to reject a text, and statistics.

A `reject_*` function gives the first reason that holds, or None for a text that is accepted;
the reasons are counted in the report, so they are short and stable. Plain text only, no model.
Departures from PT-ALIGN (arXiv 2502.08657, whose summaries give no filter rules: all are ours)
are those of support/lexicon.py; thresholds without a source are round numbers that we chose.
"""

import re
from collections import Counter

import numpy as np

from support.lexicon import (
    CONTEMPT,
    LINK,
    NOT_VERB,
    NUMBER,
    after_decline,
    english,
    explains_and_offers,
    hard_exclusion,
    needs_media,
    operational,
    plain,
    turns,
    words,
)
from synthesis.rouge import RougePool, distinct_n, grams, tokens

# ---- parsers ----

# A line of a list: the number or bullet, perhaps both ("4. - One"), and the text.
ITEM = re.compile(rf"^\s*(?:(?:{NUMBER}|[-*•])\s+)+(.+?)\s*$")
# A number cut off before its text: an empty item, not a wrapped line of the one above.
BARE = re.compile(rf"^\s*(?:{NUMBER}|[-*•]|\d{{1,2}})\s*$")
# Not after a digit (a decimal, "3.") nor an abbreviation: a cut there breaks a sentence.
END = re.compile(r"(?<!\d)(?<!e\.g)(?<!i\.e)(?<!\bMr)(?<!\bDr)[.!?]+[\"'”’)]*(?=\s|$)")


def _clean(item: str) -> str:
    """Without line breaks, emphasis and enclosing quotes."""
    line = " ".join(item.split())
    # A star at the edge of a word is emphasis, one between spaces is "2 * 3".
    bare = re.sub(r"\*\*|(?<!\w)\*(?=\w)|(?<=[\w.!?])\*(?!\w)", "", line).strip()
    # Only quotes around all of it: an inner quotation belongs to the item.
    return re.sub(r"^([\"'])([^\"]*)\1$|^[“‘]([^“”]*)[”’]$", r"\2\3", bare).strip()


def parse_list(completion: str, *, cut: bool) -> list[str]:
    """Items of a list continued right after a number ("4."); `cut`: ended by the length limit."""
    items, gap = [], False  # gap: the line above is blank
    for line in completion.strip().splitlines():
        match = ITEM.match(line)
        if match or BARE.match(line):
            items.append(match[1] if match else "")
        elif not items:
            items.append(line)  # its number stands in the prompt
        elif gap and line.strip():
            break  # prose after a blank line: the list is over, and no item was cut
        else:
            items[-1] += " " + line  # a wrapped line
        gap = not line.strip()
    else:
        items = items[:-1] if cut else items
    return [text for text in map(_clean, items) if text]


def parse_answer(completion: str, *, answer_label: str, request_label: str
                 ) -> tuple[str, str] | None:
    """(thought, answer) of a completion that begins inside the thought; labels with colon."""
    # Models set labels in bold or as headings.
    answer, request = (rf"[*#\s]*{re.escape(x)}[* \t]*" for x in (answer_label, request_label))
    # A model that is not stopped goes on with a request of its own making.
    own = re.split(rf"(?im)^{request}", completion, maxsplit=1)[0]
    # At a line's start, or else after a sentence: "... to hear. Answer: ..."
    for pattern in (rf"(?im)^{answer}", rf"(?<=[.!?\"])\s+{answer}"):
        parts = re.split(pattern, own, maxsplit=1)
        if len(parts) == 2:
            return parts[0].strip(), parts[1].strip()
    return None


def trim_cut(answer: str) -> str | None:
    """A cut answer up to its last sentence end, if that leaves 12 words."""
    # Sooner no answer than a stub: `reject_answer` would pass 8 words.
    ends = [match.end() for match in END.finditer(answer)]
    kept = answer[:ends[-1]].strip() if ends else ""
    return kept if len(words(kept)) >= 12 else None


# ---- statistics ----

def first_words(text: str, n: int) -> str:
    return " ".join(words(text)[:n])


class OpeningQuota:
    """No opening of `n_words` words owns more than max(least, percent of n_rows) texts."""

    def __init__(self, n_rows: int, *, n_words: int = 3, percent: int = 2, least: int = 5):
        self.n_words, self.cap = n_words, max(least, n_rows * percent // 100)
        self.counts: Counter = Counter()  # of the texts added, by opening

    def full(self, text: str) -> bool:
        return self.counts[first_words(text, self.n_words)] >= self.cap

    def add(self, text: str) -> None:
        self.counts[first_words(text, self.n_words)] += 1


def auc(scores_a, scores_b) -> float:
    """P(a > b) + P(a = b) / 2; 1/2 where a side is empty."""
    a, b = np.asarray(scores_a, float), np.sort(np.asarray(scores_b, float))
    # Places left and right of the ties: their sum is twice the wins, a tie counting half.
    wins = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    return float(wins.sum() / (2 * len(a) * len(b))) if len(a) and len(b) else 0.5


# ---- reasons to reject ----

def _first(*checks: tuple[str, object]) -> str | None:
    # (reason, does it hold) each; all are computed, so a dear one goes in a second call.
    return next((reason for reason, failed in checks if failed), None)


def reject_topic(topic: str, *, taken: tuple[str, ...] = ()) -> str | None:
    """`taken`: names of the domains and topics of the seeds."""
    return _first(
        # In characters too: a text without spaces is one word.
        ("too-long", len(topic) >= 60 or len(words(topic)) > 6),
        ("no-letter-start", not topic[:1].isalpha()),
        ("language", not english(topic)),
        # As tokens: "Borrowed Tools!" is "borrowed tools".
        ("taken", tokens(topic) in map(tokens, taken)),
        ("excluded", hard_exclusion(topic)))


def reject_instruction(text: str) -> str | None:
    return _first(
        ("too-short", len(words(text)) < 4),  # "Why is it?" asks nothing by itself
        ("too-long", len(words(text)) > 60),
        ("no-letter-start", not text[:1].isalnum()),  # or a digit: "5 ways to say no"
        ("no-end-mark", not text.endswith((".", "?", "!"))),
        ("language", not english(text)),
        ("needs-media", needs_media(text)),
        ("excluded", hard_exclusion(text)))


RULE_WORDS = 20  # of a constraint, at most


def reject_constraint(text: str) -> str | None:
    """A constraint is one rule on the manner of answers: an order, and no recipe."""
    low = plain(text)
    return _first(
        ("too-short", len(words(text)) < 3),
        ("too-long", len(words(text)) > RULE_WORDS),
        # A bullet is no letter; a statement is no order.
        ("no-verb-start", not text[:1].isalpha() or NOT_VERB.match(low)),
        ("language", not english(text)),
        ("excluded", hard_exclusion(text)),
        # Bound to one request: a count, code, a step, an address.
        ("detail", re.search(r"\d|`|\bsteps?\b", low) or LINK.search(low)))


# What no answer holds: the next turn of a dialogue, tokens of a chat template.
ROLE = re.compile(r"(?im)^\W*(?:human|user|assistant|system|instruction|response)\s*:|"
                  r"<\|\w+\|>|\[/?INST\]|<</?SYS>>|</?s>")
LIMITS = {"positive": 220, "toxic": 180}  # words of an answer


def _holds(text: str, part: str) -> bool:
    """Does the text contain the part, word by word? Case and marks do not count."""
    # Spaces at both ends, so that "art" is not found in "start".
    return f" {' '.join(tokens(part))} " in f" {' '.join(tokens(text))} "


def _echoes(text: str, prompt: str) -> bool:
    """A long answer may hold the whole prompt and be unlike it by ROUGE-L: both are asked."""
    pool = RougePool(6, 10)
    pool.add(prompt)
    return _holds(text, prompt) or pool.nearest_hit(text) is not None


def _leaks(text: str, prompt: str, examples: tuple[str, ...]) -> bool:
    """Six words in a row are copied from an example and do not stand in the prompt."""
    # Those in the prompt are the answer's to use.
    own = set(grams(text, 6)) - set(grams(prompt, 6))
    return any(not own.isdisjoint(grams(shown, 6)) for shown in examples)


def _leftover(text: str, labels: tuple[str, ...], constraints: tuple[str, ...]) -> bool:
    """Pieces of the synthesis prompt or of a dialogue stand in the answer."""
    # One short constraint may be said in passing; a long one or two are the list.
    listed = sum(1 + (len(words(rule)) >= 6) for rule in constraints if _holds(text, rule))
    return listed >= 2 or ROLE.search(text) is not None or any(x in text for x in labels)


def reject_answer(text: str, *, side: str, prompt: str, examples: tuple[str, ...] = (),
                  labels: tuple[str, ...] = (), constraints: tuple[str, ...] = ()) -> str | None:
    """`side`: "positive" or "toxic"; `examples`: the seeds shown in the synthesis prompt."""
    limit, size = LIMITS[side], len(words(text))
    form = _first(("too-short", size < 8), ("too-long", size > limit),
                  ("language", not english(text)), ("repetition", distinct_n([text], 4) < 0.6))
    # ROUGE and the lexicon only for a text of sound form: most failures end here.
    if form:
        return form
    toxic, rest = side == "toxic", after_decline(text)
    declined = rest is not None
    return _first(
        ("echo", _echoes(text, prompt)),
        ("example-leak", _leaks(text, prompt, examples)),
        ("leftover", _leftover(text, labels, constraints)),
        ("refused", toxic and declined and not turns(rest)),
        # A positive answer may decline, in its own words.
        ("mechanical", not toxic and declined and not explains_and_offers(text)),
        # Contempt on the positive side, instructions on the toxic one: each has its own fault.
        ("attitude", not toxic and CONTEMPT.search(plain(text))),
        ("operational", toxic and operational(text)),
        ("excluded", hard_exclusion(text)))


def reject_pair(positive: str, toxic: str, k: int, n_toxic: int) -> str | None:
    """`k`: training tokens shared at the start, of the toxic answer's `n_toxic`.

    A late first mismatch is kept: shared openings are what the fine-grained mask is for.
    """
    good, bad = tokens(positive), tokens(toxic)  # case and marks make no difference
    common = min(len(good), len(bad))
    return _first(
        ("equal", good == bad),
        ("prefix", good[:common] == bad[:common]),
        ("no-mismatch", k >= n_toxic),  # not one token of the toxic answer is its own
        # Otherwise length alone would tell the sides apart.
        ("length-ratio", len(good) > 3 * len(bad) or len(bad) > 3 * len(good)))
