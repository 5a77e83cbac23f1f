"""What the model is asked to compute rather than to write: yes or no, and how likely an answer is.

Both settings stand in a ledger's calls where a Sampling stands for text, so that they are made once
and replayed. Letters: B rows, T time, N tokens of an answer, D hidden size, V vocabulary."""

from dataclasses import dataclass

import torch

from generate import Batch, next_logits, passes
from kernels.packed import packed_linears
from model import Transformer, right_pad
from support.logprobs import log_probs


@dataclass(frozen=True)
class Odds:
    """log p(yes) - log p(no) of the prompt's next token; ids of the two."""
    yes: int
    no: int

    def __call__(self, model: Transformer, texts, pad: int) -> list[dict]:
        logits = next_logits(model, [prompt for prompt, _ in texts], pad)
        return [{"odds": odds} for odds in (logits[:, self.yes] - logits[:, self.no]).tolist()]


@dataclass(frozen=True)
class Likelihood:
    """log p of an answer behind its prompt, nats a token, and the direction of its mean last hidden
    state, as a vector of length 1000 in whole numbers."""
    states: bool = True  # is the hidden state wanted?

    @torch.inference_mode()
    def __call__(self, model: Transformer, texts, pad: int) -> list[dict]:
        done = {}
        with packed_linears(model):
            # What all prompts have in front, a deck, is read once, as when answers are written.
            batch = Batch(model, [prompt for prompt, _ in texts], 0, pad)
            rows = [(prompt[batch.P:] + answer, len(prompt) - batch.P) for prompt, answer in texts]
            for part in passes([len(ids) for ids, _ in rows], batch.place["device"]):
                done |= zip(part, self.part(model, batch, [rows[i] for i in part]), strict=True)
        return [done[i] for i in range(len(rows))]

    def part(self, model: Transformer, batch: Batch, rows: list[tuple[list[int], int]]):
        ids = right_pad([ids for ids, _ in rows], batch.pad, batch.place["device"])  # (B, T)
        batch.cache.rows, batch.cache.end = None, batch.P + ids.shape[1]
        positions = torch.arange(batch.P, batch.cache.end, device=ids.device)[None]
        hidden = model.model(ids, positions, batch.cache)  # (B, T, D)
        # The state before a token predicts it; those of all rows go through the head together.
        before = torch.cat([own[first - 1:len(text) - 1]
                            for own, (text, first) in zip(hidden, rows, strict=True)])  # (N, D)
        targets = torch.tensor([id for text, first in rows for id in text[first:]],
                               device=ids.device)  # (N,)
        logprobs = log_probs(model.lm_head, before, targets).split(
            [len(text) - first for text, first in rows])
        for own, of_answer, (text, first) in zip(hidden, logprobs, rows, strict=True):
            state = own[first:len(text)].double().mean(0)
            state = (1000 * state / state.norm()).round().int()  # a ledger's line stays short
            yield ({"logprob": of_answer.mean().item()}
                   | ({"state": state.tolist()} if self.states else {}))
