"""What a run of synthesis will take, and what it cannot: told before the model is loaded."""

import math
from pathlib import Path

import torch

from config import Config, read_config
from forecast import product_rate
from generate import PASS_TOKENS
from model import Transformer
from support.files import InputError
from synthesis.answers import CORRECTION, RULES, answer_prompt, answer_sampling, build_decks
from synthesis.claims import claim_of
from synthesis.filters import RULE_WORDS
from synthesis.lists import constraint_prompt, instruction_prompt, topic_prompt
from synthesis.session import Session


def example_prompts(session: Session) -> dict[str, str]:
    """Whole prompts, as the model will see them: those that matter most, none of them toxic."""
    deck = build_decks(session, list(session.seeds.constraints["positive"]), "positive")[0]
    asked = session.seeds.asked
    domain = next(domain for domain in session.domains if domain.kind != "benign")
    claims, deeds = asked("claims"), asked("instructions")
    ask, shown = ("claims", map(claim_of, claims)) if domain.claims else ("instructions", deeds)
    prompts = {"topics": topic_prompt(session, domain, []),
               "instructions": instruction_prompt(session, domain.name, list(shown), ask=ask),
               "constraints": constraint_prompt(session, "positive"),
               "positive answers": answer_prompt(session, deck, deeds[0])}
    if any(domain.claims for domain in session.domains):
        prompts["corrections"] = answer_prompt(session, CORRECTION, claims[0])
    return prompts


def refuse_short_context(session: Session) -> None:
    """InputError if, by an estimate, the model's context does not hold a prompt and its answer. The
    example prompts have the seeds' few rules; a deck may have RULES of the longest."""
    encode, rules = session.tokenizer.encode, session.seeds.constraints["positive"]
    rule = " ".join((" ".join(rules).split() * RULE_WORDS)[:RULE_WORDS])  # as long as can be
    longest = max(len(encode(prompt)) for prompt in example_prompts(session).values())
    new = answer_sampling(session.seeds, "positive").max_new_tokens
    needed = longest + RULES * len(encode(f"- {rule}\n")) + new
    if needed > session.context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds"
                         f" {session.context}", f"--model {session.tokenizer.folder}",
                         "use one with a longer context")


def refuse_fruitless(session: Session) -> None:
    """InputError for what could only end with nothing."""
    kinds = {domain.kind for domain in session.domains}
    if "both" not in kinds and not (session.positives_only and "positive" in kinds):
        names = ", ".join(domain.name for domain in session.domains)
        what = "harmful requests" if session.positives_only else "toxic answers"
        raise InputError(f"no {what} are made for {names}", "--domains", "add another domain"
                         + " or use --positives-only" * ("positive" in kinds))
    if session.n_benign and not any(i.benign for i in session.seeds.instructions):
        raise InputError("no instruction with benign true to start the benign rows from",
                         "--seeds-file", "add one or use --benign-share 0")


# For each row wanted: instructions answered, new tokens, and tokens that are read to judge texts;
# and both of the latter before the first row. Qwen2.5-1.5B took so much for 40 triplets and for 178
# (results/qwen-data); what passes of another model's texts may be more or less.
ANSWERED, TOKENS_OF_TRIPLET, TOKENS_OF_SINGLE, TOKENS_BEFORE = 2.2, 1100, 380, 4200
READ_OF_TRIPLET, READ_OF_SINGLE, READ_BEFORE = 2600, 550, 21000
# Shares of the products' rate that were seen with that model on two CPU cores, and for writing on
# an H100 (results/speed/on-h100.md); that of reading on a GPU is a guess. Writing is slow because
# most of a block's rows have ended before its longest.
WRITING, READING = {"cpu": 0.26, "cuda": 0.01}, {"cpu": 0.65, "cuda": 0.3}


def seconds_of(config: Config, new: int, read: int, dtype: str, device: torch.device) -> float:
    """Seconds that a model of this shape takes for so many new tokens and tokens read."""
    with torch.device("meta"):
        model = Transformer(config)
    weights, layers = (sum(p.numel() for p in m.parameters()) for m in (model, model.model.layers))
    rate, kind = product_rate(config, PASS_TOKENS[device.type], dtype, device), device.type
    return 2 * (new * weights / WRITING[kind] + read * layers / READING[kind]) / rate


def print_plan(session: Session, folder: Path, *, dtype: str, device) -> None:
    """Print what would be generated, how long it would take, and the example prompts."""
    n_benign = min(session.n_benign, session.limit)
    instructions = min(math.ceil(ANSWERED * session.target), session.limit)
    kind, of_row = (("positive rows", TOKENS_OF_SINGLE) if session.positives_only else
                    ("triplets", TOKENS_OF_TRIPLET))
    rows = min(session.target, math.ceil(instructions / ANSWERED))
    new = TOKENS_BEFORE + rows * of_row + n_benign * TOKENS_OF_SINGLE
    duration = ""
    if device:  # not a server's
        read = READ_BEFORE + rows * (READ_OF_SINGLE if session.positives_only else READ_OF_TRIPLET)
        read += n_benign * READ_OF_SINGLE
        seconds = seconds_of(read_config(folder), new, read, dtype, device)
        duration = (f": {math.ceil(seconds / 60)} minutes on this {device.type} at the rate that"
                    " its products have now, if as many texts pass as of Qwen2.5-1.5B,")
    # A token takes some 16 bytes on the disk.
    print(f"{rows} {kind} and {n_benign} benign rows take about {instructions} instructions"
          f" and {new:,} new tokens{duration} and {max(1, new * 16 // 2**20)} MiB of disk.\n")
    for stage, prompt in example_prompts(session).items():
        print(f"--- {stage} ---\n{prompt}\n")
