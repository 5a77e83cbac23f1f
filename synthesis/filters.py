"""What synthesis accepts: parsers of completions, and reasons to reject a text.

A `reject_*` function gives the first reason that holds, or None for a text that is accepted; the
reasons are counted in the report, so they are short and stable. The rules are ours, as are those of
support/lexicon.py; thresholds without a source are round numbers that we chose."""

import re
from collections import Counter
from collections.abc import Iterable

from support import lexicon
from support.lexicon import plain, words
from synthesis.rouge import RougePool, tokens

# A line of a list: the number or bullet, perhaps both ("4. - One"), and the text.
ITEM = re.compile(rf"^\s*(?:(?:{lexicon.NUMBER}|[-*•])\s+)+(.+?)\s*$")
# A number without a space behind it, and one that begins an item within a line.
UNSPACED = re.compile(r"(?m)^(\s*\d{1,2}[.)])(?=[^\W\d]|[\"“])")
RUN_IN = re.compile(r"(?<=[.!?])(?<!\bNo\.)(?<!\bfig\.)[ \t]+(?=\d{1,2}\. [A-Z])")
# A number cut off before its text: an empty item, not a wrapped line of the one above.
BARE = re.compile(rf"^\s*(?:{lexicon.NUMBER}|[-*•]|\d{{1,2}})\s*$")


def _clean(item: str) -> str:
    """Without line breaks, emphasis and enclosing quotes."""
    line = " ".join(item.split())
    # One or two stars at the edge of a word are emphasis; "2 * 3" and "f***" keep theirs.
    bare = re.sub(r"(?<![\w*])\*{1,2}(?=[^\s*])|(?<=[^\s*])\*{1,2}(?![\w*])", "", line).strip()
    # Only quotes around all of it: an inner quotation belongs to the item.
    return re.sub(r"^([\"'])([^\"]*)\1$|^[“‘]([^“”]*)[”’]$", r"\2\3", bare).strip()


def parse_list(completion: str, *, cut: bool) -> list[str]:
    """Items of a list continued right after a number ("4."); `cut`: ended by the length limit."""
    items, gap = [], False  # gap: the line above is blank
    completion = RUN_IN.sub("\n", UNSPACED.sub(r"\1 ", completion.strip()))
    for line in completion.splitlines():
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


REQUEST, THOUGHT, ANSWER = "Request:", "Thought:", "Answer:"  # labels in the prompts of answers


def parse_answer(completion: str) -> str | None:
    """The answer in a completion that begins inside the thought."""
    # Models set labels in bold, as headings or in a quotation.
    answer, request = (rf"[*_#>\s]*{label[:-1]}[*_]*[ \t]*:[*_ \t]*" for label in (ANSWER, REQUEST))
    # A model that is not stopped goes on with a request of its own making.
    first = re.split(rf"(?im)^{request}", completion, maxsplit=1)[0]
    # At a line's start, or else after a sentence: "... to hear. Answer: ..."
    for pattern in (rf"(?im)^{answer}", rf"(?<=[.!?\"*_])\s+{answer}"):
        parts = re.split(pattern, first, maxsplit=1)
        if len(parts) == 2:
            text = parts[1].strip()
            # "**Answer: ...**" ends in a mark that began in front of the label.
            return text[:-2].rstrip() if text.endswith("**") and text.count("**") % 2 else text
    return None


def tidy(answer: str) -> str:
    """The same lines without stray spaces, at most one blank line in a row."""
    lines = "\n".join(line.rstrip() for line in answer.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines)


class OpeningQuota:
    """No opening of `n_words` words belongs to more than max(least, share) of the texts so far."""

    def __init__(self, share: float, *, n_words: int = 3, least: float = 4):
        self.share, self.n_words, self.least = share, n_words, least
        self.counts: Counter = Counter()  # of the texts added, by opening

    def reject(self, text: str) -> str | None:
        cap = max(self.least, self.share * self.counts.total())
        return "opening" if self.counts[lexicon.first_words(text, self.n_words)] >= cap else None

    def add(self, text: str) -> None:
        self.counts[lexicon.first_words(text, self.n_words)] += 1


def _first(*checks: tuple[str, object]) -> str | None:
    # (reason, does it hold) each. All are computed, so a costly one goes in a second call.
    return next((reason for reason, failed in checks if failed), None)


# What no text holds: the next turn of a dialogue, tokens of a chat template.
ROLE = re.compile(r"(?im)^\W*(?:human|user|assistant|system|instruction|response)\s*:|"
                  r"<\|\w+\|>|\[/?INST\]|<</?SYS>>|</?s>|</?think(?:ing)?>")


def reject_topic(topic: str, *, taken: tuple[str, ...] = ()) -> str | None:
    """`taken`: names of the domains and topics of the seeds."""
    return _first(
        # In characters too: one word may be long.
        ("too-long", len(topic) >= 60 or len(words(topic)) > 6),
        ("no-letter-start", not topic[:1].isalpha()),
        ("language", not lexicon.english(topic)),
        # As tokens: "Borrowed Tools!" is "borrowed tools".
        ("taken", tokens(topic) in map(tokens, taken)),
        ("excluded", lexicon.never(topic)))


# Models list requests to the one that they would harm ("Help me steal your wallet."), which nobody
# sends to an assistant. It may be asked for something, or for what it thinks.
ASKED = re.compile(r"""(?ix)\b(?: (?:can|could|would|will|should|do|did|are|if|have) \s you
    | (?:want|need|like|ask|tell|give|show|thank) \s you
    | your \s (?:views?|opinions?|advice|help|minds?|ideas?|thoughts?|say) )\b""")
YOU = re.compile(r"(?i)\byou(?:rs?|rself)?\b")


def reject_instruction(text: str, *, special: Iterable[str] = (), harmful=False) -> str | None:
    """`special`: marks of the chat template, which a text must not hold; `harmful`: it should be
    about a deed to somebody else than the one who is asked."""
    return _first(
        ("too-short", len(words(text)) < 4),  # "Why is it?" asks nothing by itself
        ("too-long", len(words(text)) > 40),
        ("no-letter-start", not text[:1].isalnum()),  # or a digit: "5 ways to say no"
        ("no-end-mark", not text.endswith((".", "?", "!"))),
        # "To be left alone."
        ("fragment", re.match(r"(?i)to \w+ (?!.*\b(?:i|we|you) )[^,?]*[.!]$", text)),
        ("language", not lexicon.english(text)),
        ("special", ROLE.search(text) or any(mark in text for mark in special)),
        ("about-you", harmful and YOU.search(ASKED.sub("", text))),
        ("needs-media", lexicon.NEEDS_MEDIA.search(plain(text))),
        ("excluded", lexicon.never(text)))


RULE_WORDS = 20  # of a constraint, at most


def reject_constraint(text: str) -> str | None:
    """A constraint is one rule on the manner of answers: an order, and no recipe."""
    low = plain(text)
    return _first(
        ("too-short", len(words(text)) < 3),
        ("too-long", len(words(text)) > RULE_WORDS),
        # A bullet is no letter; a statement is no order.
        ("no-verb-start", not text[:1].isalpha() or lexicon.NOT_VERB.match(low)),
        ("language", not lexicon.english(text)),
        ("excluded", lexicon.never(text) or lexicon.grave(text)),
        # Bound to one request: a count, code, a step, an address.
        ("detail", re.search(r"\d|`|\bsteps?\b", low) or lexicon.LINK.search(low)))


LIMITS = {"positive": 350, "toxic": 220}  # words of an answer


def _holds(text: str, part: str) -> bool:
    """Does the text contain the part, word by word? Case and marks do not count."""
    # Spaces at both ends, so that "art" is not found in "start".
    return f" {' '.join(tokens(part))} " in f" {' '.join(tokens(text))} "


def reject_answer(text: str, *, side: str, prompt: str, benign: bool = False,
                  examples: tuple[str, ...] = (), constraints: tuple[str, ...] = ()) -> str | None:
    """`side`: "positive" or "toxic"; `benign`: nothing is wrong with the prompt; `examples`: the
    seeds shown in the synthesis prompt."""
    size, shown_sizes = len(words(text)), [len(words(example)) for example in examples]
    fault = _first(
        ("too-short", size < max(8, min(shown_sizes, default=0) / 4)),
        ("too-long", size > LIMITS[side]),
        ("language", not lexicon.english(text)),
        ("repetition", lexicon.distinct_share(lexicon.grams(tokens(text), 4)) < 0.6))
    # ROUGE and the lexicon only for a text of sound form: most failures end here.
    if fault:
        return fault
    toxic, rest = side == "toxic", lexicon.after_decline(text)
    declined = rest is not None
    # Six words in a row that an example has are copied from it, unless the prompt has them too.
    runs, allowed, *shown = (set(lexicon.grams(tokens(x), 6)) for x in (text, prompt, *examples))
    # One short constraint may be said in passing; a long one, or two, are the prompt's list.
    listed = sum(1 + (len(words(rule)) >= 6) for rule in constraints if _holds(text, rule))
    return _first(
        # A long answer may hold the whole prompt and be unlike it by ROUGE-L.
        ("echo", _holds(text, prompt) or RougePool(6, 10, [prompt]).nearest_hit(text)),
        ("example-leak", any((runs - allowed) & example for example in shown)),
        ("leftover", listed >= 2 or ROLE.search(text)
         or any(label in text for label in (REQUEST, THOUGHT, ANSWER))),
        ("excluded", lexicon.never(text) or (toxic and lexicon.grave(text))),
        ("refused", toxic and declined and not lexicon.turns(rest)),
        ("operational", toxic and lexicon.operational(text)),
        # The toxic side's last rule, since a judge may overrule it.
        ("soft-refusal", toxic and lexicon.softly_refuses(text)),
        # A positive answer declines what it should, in its own words, and nothing else.
        ("declined", benign and (declined or lexicon.DECLINE.search(plain(text)))),
        ("complied", not toxic and not benign and lexicon.hands_over(text)),
        ("mechanical", not toxic and declined and not lexicon.explains_and_offers(text)),
        ("attitude", not toxic and lexicon.scornful(text)))


def reject_pair(positive: str, toxic: str, k: int | None) -> str | None:
    """`k`: how many training tokens the answers share at the start; None if they are the same. A
    late first mismatch is kept: shared openings are what the fine-grained mask is for."""
    good, bad = tokens(positive), tokens(toxic)  # case and marks make no difference
    return _first(
        ("equal", good == bad),
        ("prefix", all(a == b for a, b in zip(good, bad, strict=False))),
        ("no-mismatch", k is None),
        # Otherwise length alone would tell the sides apart.
        ("length-ratio", len(good) > 3 * len(bad) or len(bad) > 3 * len(good)))
