"""What a run will ask of the model, before it does: example prompts, their length, --dry-run."""

import math

from support.files import InputError
from synthesis.answers import ANSWER_TOKENS, RULES, answer_prompt, build_decks
from synthesis.filters import RULE_WORDS
from synthesis.lists import constraint_prompt, instruction_prompt, topic_prompt
from synthesis.session import Session


def example_prompts(session: Session) -> dict[str, str]:
    """One whole prompt of each stage but the toxic one, as the model would see it."""
    seeds, domain = session.seeds, session.domains[0]
    deck = build_decks(session, list(seeds.constraints["positive"]), "positive")[0]
    shown = [i.text for i in seeds.instructions if not i.benign]
    return {"topics": topic_prompt(session, domain, []),
            "instructions": instruction_prompt(session, domain.name, shown),
            "constraints": constraint_prompt(session, "positive"),
            "positive answers": answer_prompt(session, deck, shown[0])}


def refuse_short_context(session: Session, prompts: dict[str, str]) -> None:
    """An estimate from the seeds, told before anything is generated and paid for.

    The examples' prompts have the seeds' few rules; a deck may have RULES of the longest.
    """
    tokenizer = session.tokenizer
    words = " ".join(session.seeds.constraints["positive"]).split()
    rule = " ".join((words * RULE_WORDS)[:RULE_WORDS])
    rules = RULES * len(tokenizer.encode(f"- {rule}\n"))
    needed = rules + max(len(tokenizer.encode(p)) for p in prompts.values()) + ANSWER_TOKENS
    if needed > session.context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds"
                         f" {session.context}", f"--model {tokenizer.folder}",
                         "use one with a longer context")


def print_preview(session: Session, prompts: dict[str, str]) -> None:
    """What would be generated, and one whole prompt of each stage but the toxic one."""
    instructions = sum(min(math.ceil(1.5 * n), session.limit)
                       for n in (session.target, session.n_benign))
    toxic = 0 if session.positives_only else min(1.5 * session.target, session.limit)
    answers = math.ceil(1.3 * (instructions + toxic))
    new = instructions // 3 * 160 + answers * 120
    print(f"{session.target} triplets and {session.n_benign} benign rows take about {instructions}"
          f" instructions, {answers} answers and {new:,} new tokens (one attempt in four fails).\n")
    for stage, prompt in prompts.items():
        print(f"--- {stage} ---\n{prompt}\n")
