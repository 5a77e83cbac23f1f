"""Answers of a model to prompts, greedy or sampled, batch by batch and resumable."""

from collections.abc import MutableMapping

from generate import Sampling, draw_seed, generate
from support.files import InputError, canonical, sha256
from tokenizer import PLAIN_STOP


def answers(
    model, tokenizer, rows: list[dict], *, format: str, max_new_tokens: int, batch: int,
    temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
    log: MutableMapping | None = None, progress=None,
) -> list[dict]:
    """Answers to the rows' prompts, in order: {"text", "finish", "tokens"}.

    Batches of `batch` prompts are fixed (shortest first), and `log` keeps them whole: what an
    interrupted run generated is read back, and the rest comes from the same batches as in an
    unbroken run.
    """
    log = {} if log is None else log
    encoded = {}
    for row in rows:
        ids = encoded.setdefault(row["prompt"], tokenizer.encode_prompt(row["prompt"], format))
        if len(ids) + max_new_tokens > (limit := model.config.max_position_embeddings):
            raise InputError(
                f"{len(ids)} + {max_new_tokens} new tokens exceed a context of {limit}",
                f"item {row['id']}", "use fewer new tokens or another model")
    prompts = sorted(encoded, key=lambda prompt: (len(encoded[prompt]), prompt))
    # a base model would go on with the person's next turn, which is no part of its answer
    stop = (PLAIN_STOP,) if format == "raw" else ()
    sampling = Sampling(max_new_tokens, temperature=temperature, top_p=top_p, stop=stop)
    found = {}
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        if (key := sha256(canonical(part))) not in log:
            done = generate(model, tokenizer, [encoded[prompt] for prompt in part], sampling,
                            [draw_seed(seed, prompt) for prompt in part])
            log[key] = [{"prompt": sha256(prompt), "text": c.text, "finish": c.finish,
                         "tokens": c.n_tokens} for prompt, c in zip(part, done, strict=True)]
        found.update(zip(part, log[key], strict=True))
        if progress is not None:
            progress.update(len(part))
    return [found[row["prompt"]] for row in rows]
