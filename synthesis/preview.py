"""What the model will read, before it is asked: one prompt of each stage, and whether they fit."""

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


def refuse_short_context(session: Session) -> None:
    """InputError if, by an estimate, the model's context does not hold a prompt and its answer.

    The example prompts have the seeds' few rules; a deck may have RULES of the longest.
    """
    encode, rules = session.tokenizer.encode, session.seeds.constraints["positive"]
    rule = " ".join((" ".join(rules).split() * RULE_WORDS)[:RULE_WORDS])  # as long as can be
    longest = max(len(encode(prompt)) for prompt in example_prompts(session).values())
    needed = longest + RULES * len(encode(f"- {rule}\n")) + ANSWER_TOKENS
    if needed > session.context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds"
                         f" {session.context}", f"--model {session.tokenizer.folder}",
                         "use one with a longer context")
