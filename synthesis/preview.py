"""Looks at a run before anything is generated: what cannot succeed is refused; --dry-run."""

import math

from support.files import InputError
from synthesis.answers import ANSWER_TOKENS, RULES, answer_prompt, build_decks
from synthesis.filters import RULE_WORDS
from synthesis.lists import constraint_prompt, instruction_prompt, topic_prompt
from synthesis.session import Session


def refuse_fruitless(session: Session) -> None:
    """InputError for what could only end with nothing."""
    if not session.positives_only and not any(domain.toxic for domain in session.domains):
        names = ", ".join(domain.name for domain in session.domains)
        raise InputError(f"no toxic answers are made for {names}", "--domains",
                         "add another domain or use --positives-only")
    if session.n_benign and not any(i.benign for i in session.seeds.instructions):
        raise InputError("no instruction with benign true to start the benign rows from",
                         "--seeds-file", "add one or use --benign-share 0")


def example_prompts(session: Session) -> dict[str, str]:
    """One whole prompt of each stage but the toxic one, as the model would see it."""
    seeds, domain = session.seeds, session.domains[0]
    deck = build_decks(session, list(seeds.constraints["positive"]), "positive")[0]
    shown = [i.text for i in seeds.instructions if not i.benign]
    return {"topics": topic_prompt(session, domain, []),
            "instructions": instruction_prompt(session, domain.name, shown),
            "constraints": constraint_prompt(session, "positive"),
            "positive answers": answer_prompt(session, deck, shown[0])}


def refuse_short_context(session: Session) -> None:
    """InputError by an estimate: the example prompts, with RULES of the longest in place of few."""
    encode, rules = session.tokenizer.encode, session.seeds.constraints["positive"]
    rule = " ".join((" ".join(rules).split() * RULE_WORDS)[:RULE_WORDS])  # as long as can be
    longest = max(len(encode(prompt)) for prompt in example_prompts(session).values())
    needed = longest + RULES * len(encode(f"- {rule}\n")) + ANSWER_TOKENS
    if needed > session.context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds"
                         f" {session.context}", f"--model {session.tokenizer.folder}",
                         "use one with a longer context")


def show(session: Session) -> None:
    """Print what would be generated, and the example prompts."""
    target, n_benign, limit = session.target, session.n_benign, session.limit
    instructions = min(math.ceil(1.5 * target), limit) + min(math.ceil(1.5 * n_benign), limit)
    toxic = 0 if session.positives_only else min(1.5 * target, limit)
    answers = math.ceil(1.3 * (instructions + toxic))
    new = instructions // 3 * 160 + answers * 120
    print(f"{target} triplets and {n_benign} benign rows take about {instructions} instructions,"
          f" {answers} answers and {new:,} new tokens (one attempt in four fails).\n")
    for stage, prompt in example_prompts(session).items():
        print(f"--- {stage} ---\n{prompt}\n")
