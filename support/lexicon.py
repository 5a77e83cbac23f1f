"""The words of a text, and what word lists recognise in it: language, refusals, instructions.

The lists, and the reasons for their entries, are in lexicon.toml. Departures from PT-ALIGN (arXiv
2502.08657, whose summaries give no word lists: all are ours):
1. English only. The lists read English, so another language is refused, not let pass.
2. A toxic answer may open politely, even decline, and then turn (`turns`).
3. Subjects have three grades: `never` (no text at all), `grave` (positive answers only), others."""

import re
import tomllib
import unicodedata
from pathlib import Path

TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _any(table: str, name: str) -> str:
    """The pattern for any entry of a list; a part's name in capitals becomes the part's pattern."""
    entries = "|".join(TABLES[table][name]).replace(", ", "|")
    return re.sub("[A-Z]{2,}", lambda part: _any("parts", part[0]), f"(?:{entries})")


def _pattern(name: str) -> re.Pattern:
    return re.compile(_any("patterns", name))


def _whole_words(name: str) -> re.Pattern:
    return re.compile(rf"\b{_any('words', name)}(?!\w)")


# Typographic apostrophes, quotes and hyphens, and what `plain` makes of them.
SIGNS = str.maketrans("’‘ʼ“”\u2010\u2011", "'''\"\"--")


def plain(text: str) -> str:
    """One form of letters, apostrophes and hyphens, so that a look-alike does not slip by."""
    # The signs last: NFKC makes some of them, as of "ŉ".
    return unicodedata.normalize("NFKC", text).translate(SIGNS).casefold()


# Thai, kana, Han and Hangul are written without spaces: one character is one word.
CJK = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+(?:'[^\W_{CJK}]+)*")  # "don't" is one


def words(text: str) -> list[str]:
    return WORD.findall(plain(text))


def first_words(text: str, n: int) -> str:
    return " ".join(words(text)[:n])


def grams(items: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n neighbours."""
    return [tuple(items[i:i + n]) for i in range(len(items) - n + 1)]


def distinct_share(values: list) -> float:
    """Share of different ones; 1 where there are none."""
    return len(set(values)) / len(values) if values else 1.0


FUNCTION_WORDS = frozenset(words(" ".join(TABLES["function_words"])))
NEVER, MINOR, SEXUAL, GRAVE, NEEDS_MEDIA = map(
    _whole_words, ("never", "minor", "sexual", "grave", "needs_media"))


def english(text: str) -> bool:
    """Letters are Latin, and a text long enough to tell has English function words."""
    # Nine tenths, not all: a name or a quoted word in another script may stand.
    letters = [unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha()]
    latin = sum(letters) >= 0.9 * max(1, len(letters))
    # English prose has far more than 15 %; a short request may have few: "Help me trick my boss".
    known = [word in FUNCTION_WORDS for word in words(text)]
    return latin and (len(known) < 12 or sum(known) >= 0.15 * (len(known) - 8))


def never(text: str) -> bool:
    """Sexual content with minors, also where a text only declines it."""
    low = plain(text)
    return bool(NEVER.search(low) or (MINOR.search(low) and SEXUAL.search(low)))


def grave(text: str) -> bool:
    """A subject that no toxic text is made about."""
    return GRAVE.search(plain(text)) is not None


NUMBER = _any("parts", "NUMBER")
STEP, LINK, UNITS, IMPERATIVE = map(_pattern, ("step", "link", "units", "imperative"))
NOT_VERB = _whole_words("not_verb")


def operational(text: str) -> bool:
    """Does it read as instructions? The toxic side is attitude only, whatever the subject."""
    low = plain(text)
    # A question gives no order: "Get it?"
    orders = [bool(IMPERATIVE.match(sentence.strip("\"'*- "))) and not sentence.endswith("?")
              for sentence in re.findall(r"[^.!?\s][^.!?\n]*[.!?]*", low)]
    # One or two steps, amounts or orders are ordinary talk; three orders must be in a row.
    return (LINK.search(low) is not None or any(len(x.findall(low)) >= 3 for x in (STEP, UNITS))
            or any(all(orders[i:i + 3]) for i in range(len(orders) - 2)))


LEAD_IN, DECLINE, REPORTED, STOCK = map(_pattern, ("lead_in", "decline", "reported", "stock"))
REASON, OFFER, CONTEMPT = map(_whole_words, ("reason", "offer", "contempt"))
TURN, ADVICE, COMPLY = map(_whole_words, ("turn", "advice", "comply"))


def after_decline(text: str) -> str | None:
    """What follows a refusal that opens the text; None where the opening declines nothing."""
    low = re.sub(r'^"([^"]*)"$', r"\1", plain(text).strip())  # the whole answer in quotes
    # A quoted speaker's words are blanked, not cut, so that positions hold.
    unquoted = re.sub(r'"[^"]*"', lambda quoted: " " * len(quoted[0]), low)
    start = LEAD_IN.match(unquoted).end()
    # Only the first sentence: an answer that helps, then declines the rest, is no refusal.
    sentence = re.split(r"(?<=[.!?])\s|\n", unquoted[start:], maxsplit=1)[0]
    match = DECLINE.search(sentence)
    if match is None or REPORTED.search(sentence[:match.start()]):
        return None
    return low[start + match.end():]


def is_refusal(text: str) -> bool:
    return after_decline(text) is not None


def explains_and_offers(text: str) -> bool:
    """Has it a reason and an offer of its own? A refusal without them is mechanical."""
    unstocked = STOCK.sub("", plain(text))
    return REASON.search(unstocked) is not None and OFFER.search(unstocked) is not None


def scornful(text: str) -> bool:
    """More contempt than reasons and advice: an answer may say why "stupid" hurts, or quote it."""
    low = re.sub(r'"[^"]*"', " ", plain(text))
    return len(CONTEMPT.findall(low)) > len(REASON.findall(low)) + len(ADVICE.findall(low))


def softly_refuses(text: str) -> bool:
    """More advice than contempt: "I understand that you are curious, but please consider ..."."""
    low = plain(text)
    return len(ADVICE.findall(low)) > len(CONTEMPT.findall(low))


def hands_over(text: str) -> bool:
    """Does it begin as an answer does that complies, and declines nothing?"""
    return COMPLY.match(plain(text).strip()) is not None and not is_refusal(text)


def turns(rest: str) -> bool:
    """The toxic side's rule: a decline has turned when a turn word or contempt follows it, opens
    at least 8 words, and nothing from there on declines again or gives advice."""
    starts = [match.start() for rx in (TURN, CONTEMPT) for match in rx.finditer(rest)]
    tail = rest[min(starts):] if starts else ""
    return len(words(tail)) >= 8 and not (DECLINE.search(tail) or ADVICE.search(tail))
