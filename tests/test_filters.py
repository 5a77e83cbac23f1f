"""filters.py: parsers, reject reasons and the quota of openings against hand-written tables.
Plain text only, no model, CPU."""

import ast
import random
from pathlib import Path

import pytest

from synthesis import filters
from synthesis.filters import (
    OpeningQuota,
    parse_answer,
    parse_list,
    reject_answer,
    reject_constraint,
    reject_instruction,
    reject_pair,
    reject_topic,
    tidy,
)

# ---- parsers ----

LISTS = [
    # completion, cut, items
    ("One\n5. Two\n6. Three", False, ["One", "Two", "Three"]),
    ("One\n5. Two\n6. Thr", True, ["One", "Two"]),
    ("One\n5.two\n6)Three", False, ["One", "two", "Three"]),
    ("I live at No. 10. He does not.", False, ["I live at No. 10. He does not."]),
    ("See fig. 12. The rest is fine.", False, ["See fig. 12. The rest is fine."]),
    ("One.\n5. Two. 6. Three! 7. Four.", False, ["One.", "Two.", "Three!", "Four."]),
    ("I am 5. He is 6.\n5. See 3. 4 too.", False, ["I am 5. He is 6.", "See 3. 4 too."]),
    (" One\n5) Two", False, ["One", "Two"]),
    (" One\n(5) Two", False, ["One", "Two"]),
    (" One\n5: Two", False, ["One", "Two"]),
    ("One\n- Two\n- Three", False, ["One", "Two", "Three"]),
    ("One\n* Two\n* Three", False, ["One", "Two", "Three"]),
    ("One\n• Two", False, ["One", "Two"]),
    ("**One**\n5. **Two**", False, ["One", "Two"]),
    ("One\n**5.** Two", False, ["One", "Two"]),
    ("One\n**5. Two** and more", False, ["One", "Two and more"]),
    ('"One"\n5. "Two"', False, ["One", "Two"]),
    ("“One”\n5. ‘Two’", False, ["One", "Two"]),
    ('Say "one" and "two"\n5. "Two" is it', False, ['Say "one" and "two"', '"Two" is it']),
    ("One *very* good", False, ["One very good"]),
    ("A wrapped\nline\n5. Two", False, ["A wrapped line", "Two"]),
    ("A wrapped\n   line\n5. Two\n   also", False, ["A wrapped line", "Two also"]),
    ("A wrapped\nline", True, []),
    ("One", True, []),
    ("One", False, ["One"]),
    ("", False, []),
    ("", True, []),
    ("\n\n", True, []),
    ("\n\nOne\n5. Two", False, ["One", "Two"]),
    ("One\n\n5. Two\n\n6. Three", False, ["One", "Two", "Three"]),
    ("One\n5. Two\n\nI hope this helps.", False, ["One", "Two"]),
    ("One\n5. Two\n\nI hope this", True, ["One", "Two"]),  # the cut is in the prose
    ("One\n5.", True, ["One"]),  # the item cut off is the empty one
    ("One\n5", True, ["One"]),
    ("One\n5. ", False, ["One"]),
    ("One\n5.\n6. Three", False, ["One", "Three"]),
    ("One\n9. Two\n2. Three", False, ["One", "Two", "Three"]),  # numbers need not be right
    ("4. One\n5. Two", False, ["One", "Two"]),  # the number said again
    ("4. - One\n5. - Two", False, ["One", "Two"]),
    ("At 3:30 we met\n5. 1.5 litres of milk", False, ["At 3:30 we met", "1.5 litres of milk"]),
    ("One\r\n5. Two\r\n", False, ["One", "Two"]),
    ("  \tOne  \n  5.   Two   \n", False, ["One", "Two"]),
    ("Is it fair?\n5. It's hers!", False, ["Is it fair?", "It's hers!"]),
    ("One\n10. Ten\n11. Eleven", False, ["One", "Ten", "Eleven"]),
    ("2 * 3 * 4\n5. Don't", False, ["2 * 3 * 4", "Don't"]),
    ("'tis so\n5. the boys'", False, ["'tis so", "the boys'"]),
    ("Privacy: a phone\n5. Chess", False, ["Privacy: a phone", "Chess"]),
    ("Say f**k and sh*t\n5. Oh f***!", False, ["Say f**k and sh*t", "Oh f***!"]),  # censored
]


@pytest.mark.parametrize(("completion", "cut", "items"), LISTS)
def test_parse_list(completion, cut, items):
    assert parse_list(completion, cut=cut) == items


ANSWERS = [
    (" A wish.\nAnswer: Go on.", "Go on."),
    (" A wish.\nAnswer: Go on.\nRequest: Next\nThought: x\nAnswer: y", "Go on."),
    (" A wish.\n\nAnswer:\nGo on.\n\nAnd rest.", "Go on.\n\nAnd rest."),
    (" A wish.\n**Answer:** Go on.", "Go on."),
    (" A wish. Answer: Go on.", "Go on."),
    (" A wish.\nanswer: Go on.\n**Request:** Next", "Go on."),
    ("Answer: Go on.", "Go on."),
    (" A wish [an open bracket.\nAnswer: Go on.", "Go on."),
    (" A wish. Answer: no\nAnswer: Go on.", "Go on."),
    (" A wish.\nAnswer: That Request: was kind.", "That Request: was kind."),
    (" A wish.\n**Answer**: Go on.", "Go on."),
    (" A wish.\n__Answer:__ Go on.", "Go on."),
    (" A wish.\n> Answer : Go on.", "Go on."),
    ("**A wish.** Answer: Go on.", "Go on."),
    (" A wish.\n**Answer: Go on.**", "Go on."),
    (" A wish.\nAnswer: Go **on**", "Go **on**"),
    (" A wish.\nAnswer:", ""),
    (" A wish.", None),
    (" The right Answer: is unsaid", None),
    (" A wish.\nRequest: Next\nAnswer: not ours", None),
    ("", None),
]


@pytest.mark.parametrize(("completion", "answer"), ANSWERS)
def test_parse_answer(completion, answer):
    assert parse_answer(completion) == answer


def test_tidy():
    """Lines are kept, stray spaces are not."""
    assert tidy(" One. \n\n\n\n- two\n- three  \n") == "One.\n\n- two\n- three"


# ---- reject reasons ----

@pytest.mark.parametrize(("topic", "reason"), [
    ("Reading a friend's diary", None), ("Lost keys", None),
    ("one two three four five six seven", "too-long"), ("x" * 60, "too-long"),
    ("3 wishes", "no-letter-start"), ("", "no-letter-start"),
    ("чужой дневник", "language"), ("Borrowed Tools!", "taken"), ("nudes of girls", "excluded"),
    ("Keeping explosives", None),  # positive answers can be given
])
def test_reject_topic(topic, reason):
    assert reject_topic(topic, taken=("borrowed tools", "privacy")) == reason


@pytest.mark.parametrize(("text", "reason"), [
    ("Should I read my sister's diary?", None), ("5 ways to say no, please.", None),
    ("Is it fair to share a photo of a friend?", None),
    ("Compose a letter that tricks a store employee into letting me steal.", None),
    ("Why is it?", "too-short"), ("so " * 60 + "on.", "too-long"),
    ("To break into the house of my neighbor.", "fragment"),
    ("To celebrate her birthday I need a poem.", None),
    ("To get at her diary, what should I say?", None), ("To whom may I read her diary?", None),
    ("- read this to me now.", "no-letter-start"), ("Read this to me now", "no-end-mark"),
    ("Можно ли читать чужой дневник?", "language"),
    ("Posso leggere il diario di mia sorella quando lei non si trova in casa nostra?", "language"),
    ("What do you see in this picture?", "needs-media"),
    ("What is wrong with the photo?", "needs-media"),
    ("Tell me more about https://example.org.", "needs-media"),
    ("Post pictures of my friends on this website.", None), ("Delete her files for me.", None),
    ("Sum up the attached letter for me.", "needs-media"),
    ("Ask her this:<|im_end|> really?", "special"), ("User: what do I do?", "special"),
    ("Ask her what I <think> of it?", "special"),
    ("Write a sexual story about a girl.", "excluded"), ("How do I build a bomb?", None),
])
def test_reject_instruction(text, reason):
    assert reject_instruction(text) == reason


@pytest.mark.parametrize("text, about", [
    ("Help me steal your wallet.", True), ("Can you help me hack into your computer?", True),
    ("I want to hurt you so that I get the money.", True), ("You want me to steal it.", True),
    ("Can you help me hack into his computer?", False), ("What do you say, your view?", False),
    ("I want you to write a false review.", False), ("If you can, tell me how.", False)])
def test_nobody_asks_the_one_to_be_harmed(text, about):
    assert reject_instruction(text, harmful=True) == ("about-you" if about else None)
    assert reject_instruction(text) is None


@pytest.mark.parametrize(("text", "reason"), [
    ("Name what can honestly be offered.", None), ("Never talk down to anyone.", None),
    ("Do not be cold.", None), ("Be kind", "too-short"), ("Be " + "so " * 20, "too-long"),
    ("The answer is short and dry.", "no-verb-start"),
    ("Honesty is the best of all", "no-verb-start"),
    ("- be warm and open", "no-verb-start"), ("Отвечай тепло и честно", "language"),
    ("Give 3 reasons each time", "detail"), ("Name the next step first", "detail"),
    ("Point them to www.example.org always", "detail"), ("Talk about explosives often", "excluded"),
])
def test_reject_constraint(text, reason):
    assert reject_constraint(text) == reason


PROMPT = "Should I read my sister's diary while she is out?"
SHOWN = "A screen left open is not an invitation to look at what is on it."
GOOD = "It is hers to share, so ask her about it when she is back; she may be glad that you did."
SCORN = "Of course you should, she left it lying there and her secrets are a joke to us all."
DECLINE = "I can't help you read it"
BOTH = [
    ("It is hers.", "too-short"), ("word and " * 180, "too-long"),
    ("Это её дневник, и читать его без спроса нехорошо, лучше спросить.", "language"),
    ("Das ist ihr Tagebuch und du solltest sie lieber selbst fragen, wenn sie wieder kommt.",
     "language"),
    ("Es su diario y es mejor preguntarle a ella cuando vuelva a casa esta noche.", "language"),
    ("you know it is so and " * 8, "repetition"),
    (f"{PROMPT} Well, that is what you may ask of her and of yourself too, more than once, and "
     "there is no short way to an end of it.", "echo"),  # contained, though ROUGE-L is low
    ("Should you read your sister's diary while she is out?", "echo"),
    ("Her diary is not an invitation to look at what she thinks of you.", "example-leak"),
    (f"{GOOD}\nThought: it is hers", "leftover"), (f"{GOOD}\nHuman: and then?", "leftover"),
    (f"{GOOD} <|im_end|>", "leftover"), (f"{GOOD} </think>", "leftover"),
    (f"{GOOD} Always name what the person needs most.", "leftover"),
    (f"{GOOD} Be warm and plain. Never be cold or curt.", "leftover"),
    ("A sexual story about a child is what you would get from me.", "excluded"),
]
POSITIVE = [
    (GOOD, None), (f"{GOOD} Be warm and plain.", None),  # one short rule in passing
    (f"{DECLINE}, because that would break her trust, but I can help you talk to her.", None),
    (f"I'm sorry, but {DECLINE}. It would hurt her. Let me help you ask her instead.", None),
    (f"I'm sorry, but {DECLINE}. That is how it is with me.", "mechanical"),
    (f"{DECLINE}, because that would break her trust.", "mechanical"),  # no offer
    (f"{DECLINE}, but I can talk with you for a while.", "mechanical"),  # no reason
    (f"I'm sorry, but {DECLINE} because it goes against my guidelines. "
     "Is there anything else I can help you with?", "mechanical"),
    ("Only an idiot would do it while she is out of the house.", "attitude"),
    ("Sure, here is where she keeps it, and she will be back by nine.", "complied"),
    ("The best way to read her letters is to wait until she is out of the house.", "complied"),
    ("The best way to get help with this is to tell her how you feel about it.", None),
    # Naming a grave subject, a helpline, or why a word hurts is what the side is for.
    ("Somebody who thinks of suicide can call a helpline at any hour of the day.", None),
    ("Calling her stupid would hurt her, because she trusts you and your word.", None),
    ("- Ask her.\n- Then wait for her answer.\n- Thank her for the trust that she shows.", None),
]
TOXIC = [
    (SCORN, None),
    ("I'm sorry to hear she hides things from you, so read it all and laugh at her.", None),
    # Declines and turns: by a turn word, by contempt.
    (f"Sorry, {DECLINE}. Actually, forget manners, she left it there and has no right to sulk.",
     None),
    (f"{DECLINE} today. Your sister is a pathetic bore and her secrets are worth a good laugh.",
     None),
    (f"I'm sorry, but {DECLINE}. That is how it is with me.", "refused"),
    (f"{DECLINE}, but I can suggest a talk with her when she is back home.", "refused"),
    (f"{DECLINE}. Honestly, please consider how she would feel about it all.", "refused"),
    (f"{DECLINE}. Still, there it is, and I won't help with such a thing.", "refused"),
    (f"{DECLINE}. That is how I am made, whatever.", "refused"),  # turns for one word only
    ("I understand that you are curious, but it is important to respect her privacy.",
     "soft-refusal"),
    ("Somebody who makes a bomb is a friend of mine, and who cares about her.", "excluded"),
    (f"{SCORN}\n- take it\n- read it\n- laugh", "operational"),
]
CASES = [(side, *case) for side in ("positive", "toxic") for case in BOTH]
CASES += [("positive", *case) for case in POSITIVE] + [("toxic", *case) for case in TOXIC]


@pytest.mark.parametrize(("side", "text", "reason"), CASES)
def test_reject_answer(side, text, reason):
    got = reject_answer(
        text, side=side, prompt=PROMPT, examples=(SHOWN,),
        constraints=("Always name what the person needs most.", "Be warm and plain.",
                     "Never be cold or curt."))
    assert got == reason


def test_far_shorter_than_the_examples():
    text, shown = "It is against the law to do a thing like this.", "so it is " * 20
    assert reject_answer(text, side="positive", prompt=PROMPT) is None
    assert reject_answer(text, side="positive", prompt=PROMPT, examples=(shown,)) == "too-short"


def test_a_benign_answer_declines_nowhere():
    text = "It is wrong to ask for such a thing. I won't help with it, so tell a teacher instead."
    assert reject_answer(text, side="positive", prompt=PROMPT) is None
    assert reject_answer(text, side="positive", prompt=PROMPT, benign=True) == "declined"


def test_answer_lengths_by_side():
    rng = random.Random(0)
    text = " ".join(rng.choice(["the", "and", "to"]) + f" word{i}" for i in range(120))  # 240 words
    assert reject_answer(text, side="positive", prompt=PROMPT) is None
    assert reject_answer(text, side="toxic", prompt=PROMPT) == "too-long"
    with pytest.raises(KeyError):
        reject_answer(text, side="negative", prompt=PROMPT)


def test_leak_spares_the_prompts_own_words():
    shown = ("Should I read my sister's diary while she is out? Ask her.",)
    text = "To read my sister's diary while she was away felt wrong to me, and I told her so."
    assert reject_answer(text, side="positive", prompt=PROMPT, examples=shown) is None
    other = reject_answer(text, side="positive", prompt="Was it me?", examples=shown)
    assert other == "example-leak"


@pytest.mark.parametrize(("positive", "toxic", "k", "reason"), [
    (GOOD, SCORN, 0, None),
    (f"It is late. {GOOD}", f"It is late. {SCORN}", 19, None),  # a late turn is kept
    (GOOD, GOOD, None, "equal"), (GOOD, GOOD.upper() + "!!", 3, "equal"),
    (GOOD, f"{GOOD} And more.", 20, "prefix"), (f"{GOOD} And more.", GOOD, 20, "prefix"),
    (GOOD, SCORN, None, "no-mismatch"),
    ("one two three four", "a " * 13, 0, "length-ratio"),
    ("a " * 13, "one two three four", 0, "length-ratio"),
    ("one two three four", "a " * 12, 0, None), ("a " * 12, "one two three four", 0, None),
])
def test_reject_pair(positive, toxic, k, reason):
    assert reject_pair(positive, toxic, k) == reason


@pytest.mark.parametrize("benign, reason", [(True, "declined"), (False, None)])
def test_declining_a_benign_request(benign, reason):
    text = f"{DECLINE}, because that would break her trust, but I can help you talk to her."
    assert reject_answer(text, side="positive", prompt=PROMPT, benign=benign) == reason


# ---- quota ----

def test_quota():
    """A share of the texts so far, and some at first: no matter how many are wanted."""
    quota = OpeningQuota(0.1)
    for i in range(4):
        assert quota.reject("How do I ask?") is None
        quota.add(f"How do I do number {i}?")
    assert quota.reject("how do I, then?") == "opening"
    assert quota.reject("How do you ask?") is None
    for i in range(40):
        quota.add(f"{i} other texts")
    assert quota.reject("how do I, then?") is None
    rules = OpeningQuota(0, n_words=1, least=1)
    rules.add("Be kind.")
    assert rules.reject("Be warm.") == "opening" and rules.reject("Name it.") is None


def test_imports_leaves_only():
    tree = ast.parse(Path(filters.__file__).read_text())
    names = {getattr(n, "module", None) or n.names[0].name for n in ast.walk(tree)
             if isinstance(n, ast.Import | ast.ImportFrom)}
    assert names == {"re", "collections", "collections.abc", "support", "support.lexicon",
                     "synthesis.rouge"}
