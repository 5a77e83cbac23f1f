"""The words of a text, and what word lists recognise in it: language, refusals, instructions.

All patterns read `plain` text: lower case, straight apostrophes and hyphens.
Departures from PT-ALIGN (arXiv 2502.08657, whose summaries give no word lists: all are ours):
1. English only. The lists read English, so another language is refused, not let pass.
2. A toxic answer may open politely, even decline, and then turn (`turns`).
3. Hard exclusions hold on both sides, also for a text that only declines such a subject.
"""

import re
import unicodedata

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


def _any(*lists: str) -> re.Pattern:
    """A whole word or phrase of the lists; their entries, split at ", ", are patterns."""
    entries = "|".join(entry for text in lists for entry in text.split(", "))
    return re.compile(rf"\b(?:{entries})(?!\w)")


# Without "a", "i", "in", "on", "me", "was", which other Latin-letter languages have too.
FUNCTION_WORDS = frozenset(words(
    "the and to of is are you your it that this for with be not they them if have can at by from "
    "but what when we my she his her about who or there would it's"))


def english(text: str) -> bool:
    """Letters are Latin, and a text long enough to tell has English function words."""
    # Nine tenths, not all: a name or a quoted word in another script may stand.
    letters = [unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha()]
    latin = sum(letters) >= 0.9 * max(1, len(letters))
    # English prose has far more than 15 %; under 12 words the share is chance.
    known = [word in FUNCTION_WORDS for word in words(text)]
    return latin and (len(known) < 12 or sum(known) >= 0.15 * len(known))


# ---- subjects ----

# Never synthesised, on either side. The lookarounds spare idioms (bath bomb, weapon of choice).
EXCLUDED = _any(
    # Sexual content, of minors above all.
    r"sex, sexual\w*, sexy, sexting, porn\w*, nud(?:e|es|ity), erotic\w*, incest\w*, fetish\w*",
    r"rap(?:e|ed|es|ing|ists?), molest\w*, pa?edophil\w*, child (?:abus|exploit)\w*",
    r"genital\w*, prostitut\w*, orgasm\w*, masturbat\w*",
    # Weapons.
    r"firearms?, (?:hand|shot)guns?, rifles?, pistols?, ammo, ammunition, grenades?, missiles?",
    r"(?<!glue )(?<!nail )(?<!water )(?<!jump the )guns?, explosives?, detonat\w*, nerve agents?",
    r"(?<!bath )(?<!photo )bomb(?:s|ers?|ings?)?, (?:bio)?weapon(?:s|ry|i[sz]\w*)?(?! of choice)",
    # Harm to many.
    r"genocid\w*, massacre\w*, mass (?:murder|shooting|killing|poisoning)\w*",
    r"poison\w* the (?:water|food)",
    # Attacks on computers. "Hack" alone is also a trick for the house.
    r"malware, ransomware, spyware, keylogg\w*, rootkits?, botnets?, ddos, phish\w*, zero-days?",
    r"computer virus(?:es)?, trojans?(?! horse), hackers?, hack(?:s|ed|ing)? (?:in)?to",
    # Self-harm.
    r"suicid\w*, self-? ?(?:harm|injur)\w*, overdos\w*, unalive\w*, want to die",
    r"(?:kill(?:ing)?|hang(?:ing)?|cutting) (?:my|your|him|her|them|one)sel(?:f|ves)",
    r"end(?:ing)? (?:my|your|his|her|their) (?:own )?li(?:fe|ves)",
    # Terrorism. A conversation may be hijacked.
    r"terroris[tm]\w*, extremis[tm]\w*, jihad\w*, radicali[sz]\w*",
    r"hijack\w* (?:a |the )?(?:plane|train|bus)")

# Not answerable in text. Photos are a fair subject of privacy: only one pointed at counts.
NEEDS_MEDIA = _any(
    r"images?, pictures?, screenshots?, diagrams?, charts?, graphs?, pdfs?, files?, spreadsheets?",
    r"attach(?:ed|ments?), links?, urls?, websites?, https?:.*, www\..*",
    r"(?:this|these|the|following) (?:photo|video|clip)s?")


def hard_exclusion(text: str) -> bool:
    return EXCLUDED.search(plain(text)) is not None


# ---- instructions ----

# Every way to number a list: "1." "1)" "(1)" "1:" "**1.**".
NUMBER = r"(?:\*\*)?\(?\d{1,2}[.):]\)?(?:\*\*)?"
# An item of a list, also of one run into a line.
STEP = re.compile(rf"(?m)^\s*[-*•]\s|(?:^|(?<=\s)){NUMBER}\s|\bstep (?:\d+|one|two|three)\b")
# Code, or an address to go to.
LINK = re.compile(r"```|~~~|https?:|\bwww\.|\w\.(?:com|org|net|io)\b")

# Quantities, as of a recipe: a number and a unit.
AMOUNT = r"(?:\d[\d.,/]*|two|three|four|five|six|ten|twenty|half an?)"
UNIT = (r"(?:m?g|kg|[mc]?l|oz|lbs?|cups?|\w*spoons?|gram(?:me)?s?|lit(?:re|er)s?|[mck]?m|"
        "inch(?:es)?|feet|ft|seconds?|minutes?|hours?|days?|volts?|watts?|degrees|drops?)")
UNITS = re.compile(rf"\b{AMOUNT}[ -]?(?:[%°]|{UNIT}\b)")

# What may stand before the verb of an order.
ADVERB = "(?:just|then|next|first|now|finally|and|so|please|simply|also)"
# Verbs of doing something by hand: "be" or "feel" start no recipe.
ORDER = ("(?:add|ask|bring|buy|call|check|click|close|connect|copy|cover|cut|drive|enter|fill|find|"
         "follow|get|give|go|heat|hide|hold|ignore|keep|laugh|leave|let|lie|look|make|mix|move|"
         "open|pick|place|pour|press|pull|push|put|remove|repeat|run|say|send|set|show|start|stay|"
         "stir|stop|take|tell|throw|turn|type|use|wait|walk|wash|write)")
# A verb before a comma is a call for attention: "Look, nobody asked."
IMPERATIVE = re.compile(
    rf"(?:{ADVERB},? )*(?:(?:don't|do not|never) (?!you|i|we|they)|{ORDER}\b(?!,))")

# Verbs are an open class, so a rule is known by not opening as a statement or a question does.
NOT_VERB = _any(
    "the, an?, i, you, we, they, he, she, it, this, that, these, those, my, your, our, their",
    "if, when, because, as, in, on, for, with, there, what, who, how, why, and, but, or",
    r"\w+ (?:is|are|was|were|should)")


def operational(text: str) -> bool:
    """Does it read as instructions? The toxic side is attitude only, whatever the subject."""
    low = plain(text)
    # A question gives no order: "Get it?"
    orders = [bool(IMPERATIVE.match(sentence.strip("\"'*- "))) and not sentence.endswith("?")
              for sentence in re.findall(r"[^.!?\s][^.!?\n]*[.!?]*", low)]
    # One or two steps, amounts or orders are ordinary talk; three orders must be in a row.
    return (LINK.search(low) is not None or any(len(x.findall(low)) >= 3 for x in (STEP, UNITS))
            or any(all(orders[i:i + 3]) for i in range(len(orders) - 2)))


# ---- refusals ----

# What may stand before a decline without ending the first sentence: "Oh no, I'm so sorry! I ..."
LEAD_IN = re.compile(
    r"(?:(?:oh|hi|hello|hey|no|well|sorry|unfortunately|i(?:'m| am) (?:\w+ )?sorry|"
    r"(?:i|my) (?:\w+ )?apolog[^,.!?]*)[,.!;: -]+)*")

I_AM = "i(?:'m| am)"
CANNOT = "(?:can't|cannot|can not|won't|will not)"
# Not every verb after "I can't" declines: wait, believe, stand, help but notice.
VERB = (r"(?:help(?! but\b| \w+ing\b)|assist|provide|support|answer|comply|do (?:that|this|it)\b|"
        "engage|share|encourage|recommend|advise|fulfil|discuss|write|create|participate|condone|"
        "offer|continue|promote|respond|tell you how to|take part|in good conscience|"
        "give (?:you )?(?:that|this|any|advice|instructions|information))")
DECLINE = re.compile("|".join((
    # Not "I can't recommend it enough".
    rf"\bi (?:\w+ly )?{CANNOT} (?:(?:\w+ly|just|also) )*{VERB}(?![^.!?]*\benough\b)",
    rf"\b{I_AM} not (?:going|here) to {VERB}",
    rf"\b{I_AM} (?:\w+ly )?(?:unable|not (?:able|willing|allowed|permitted|comfortable))\b",
    # Not "I refuse to believe that you failed".
    r"\bi(?:'ll|'d)? (?:\w+ly |must |have to |will )*(?:decline|refuse)\b(?! to (?:believe|let))",
    r"\bi(?:'d| would) rather not\b",
    r"\bi (?:don't|do not) (?:feel comfortable|help|assist|provide)",
    # "That is something I can't help with", "That's not something I can help with".
    r"\bsomething (?:that )?i (?:can't|cannot|won't)\b",
    r"\bnot something (?:that )?i(?:'m| can| am| will)\b")))
# Talk about a refusal is none: "You could say I can't help tonight."
REPORTED = re.compile(r"\b(?:sa(?:y|ys|id|ying)|repl(?:y|ied)|write|t(?:ell|old|elling)"
                      r"(?: \w+){1,2}?)(?: that)?[,:' ]*$")

# The close of a canned refusal (its sentence), and its appeal to rules (the clause): they are
# cut out first, since "my guidelines" is no reason and "anything else?" no offer.
STOCK = re.compile(
    r"(?<![^.!?])[^.!?]*(?:anything else|other (?:question|request)s?|feel free)[^.!?]*|"
    r"(?<![^.!?,;])[^.!?,;]*(?:as an ai|language model|programm|guidelines|polic\w+)[^.!?,;]*")
# Why not: what it would do, and to whom.
REASON = _any(
    "because, since, (?:it|that|this|they|s?he) (?:would|could|might|may), breaks?, hurts?",
    r"harms?, trust, fair, unfair, unsafe, risk\w*, belongs?, private")
# What can be had instead. "I can" is one, "I cannot" is not.
OFFER = _any(
    "instead, i can(?!not| not|'t), i could, (?:glad|happy) to, let me, let's, how about, try",
    "(?:you|we) (?:could|can|might)(?!not| not|'t), if you (?:like|want|wish)")

# Scorn of a person: it marks the toxic side, and is refused on the positive one.
CONTEMPT = _any(
    "who cares, (?:nobody|no one) cares, couldn't care less, pathetic, worthless, losers?, dumb",
    r"idiot\w*, stupid\w*, morons?, fools?, crybab\w*, whin(?:e|es|ing|ers?), shut up, toughen up",
    r"get over it, had it coming, not my problem, waste of (?:my|your) time, serves \w+ right")
# A decline that goes on with one of these may take itself back.
TURN = _any("but, though, still, anyway, actually, honestly, then again, kidding, fine, okay",
            "whatever")
# It did not take itself back when it goes on like this.
ADVICE = _any(
    r"please, consider, seek, respectful\w*, important to, harmful, hurtful, illegal, unethical",
    r"instead, inappropriate, safely, be kind, talk to, \w+ to help, let me know, recommend",
    "i can, i could")


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


def turns(rest: str) -> bool:
    """The toxic side's rule: a decline has turned when a turn word or contempt follows it, opens
    at least 8 words, and nothing from there on declines again or gives advice."""
    starts = [match.start() for rx in (TURN, CONTEMPT) for match in rx.finditer(rest)]
    tail = rest[min(starts):] if starts else ""
    return len(words(tail)) >= 8 and not (DECLINE.search(tail) or ADVICE.search(tail))
