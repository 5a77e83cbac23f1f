"""From a data file's rows to what is trained on: encoded, masked, put into steps, packed.

A row without a toxic answer (`toxic: null`: benign rows, positives only) carries MLE alone.

Letters: R rows of a batch, T tokens of a row, N scored tokens."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.attention import PackedAttention, Room, Span
from losses import IGNORED, POSITIVE, TOXIC, first_mismatch, unlikelihood_mask
from model import right_pad, whole_rows
from support.files import InputError
from support.pairs import Triplet
from tokenizer import Tokenizer

ROOM_STEP = 16  # sizes are rounded up to a multiple of it, as matrix units work on whole tiles


@dataclass(frozen=True)
class Example:
    """A triplet as token ids; both answers end with the end-of-turn token."""

    prompt: list[int]
    positive: list[int]
    toxic: list[int]  # empty where the loss has no UT term
    mask: list[int]  # m_t of each toxic token
    reference: tuple[float, ...] = ()  # the base's -log p of each scored token, for npo and dpo

    @property
    def answers(self) -> list[list[int]]:
        """Those that carry a loss; a toxic answer whose m_t are all 0 carries none."""
        return [self.positive, self.toxic] if any(self.mask) else [self.positive]

    @property
    def scored(self) -> int:
        return len(self.positive) + sum(self.mask)

    @property
    def opening(self) -> int:
        """How many tokens all answers begin with; an answer's last, never read, is not counted."""
        k = first_mismatch(*self.answers) if any(self.mask) else len(self.positive)
        return min(k, *(len(a) - 1 for a in self.answers))

    @property
    def shared(self) -> int:
        """How many tokens its answers share when packed: the prompt and their common opening."""
        return len(self.prompt) + self.opening

    @property
    def tokens(self) -> int:
        """How many tokens it takes in a packed row: an answer's last is predicted, never read."""
        return self.shared + sum(len(answer) - 1 - self.opening for answer in self.answers)


def encode(triplet: Triplet, tokenizer: Tokenizer, format: str, *, context: int,
           fine_grained: bool = True, with_toxic: bool = True, whole: bool = False) -> Example:
    """The training example; `with_toxic=False` is the MLE-only ablation, `whole` scores all of a
    toxic answer that differs from the positive one, its end too (losses.arm: dpo). InputError names
    the row. Only an answer's last token may end its turn: inside a toxic answer such a token would
    be penalised, and the model taught not to stop."""
    toxic, mask = [], []
    try:
        prompt, positive, _ = tokenizer.encode_exchange(triplet.messages, triplet.positive, format)
        if with_toxic and triplet.toxic is not None:
            _, toxic, n_own = tokenizer.encode_exchange(triplet.messages, triplet.toxic.raw(),
                                                          format)
            mask = ([int(toxic != positive)] * len(toxic) if whole else
                    unlikelihood_mask(positive, toxic, n_own, fine_grained=fine_grained))
    except (ValueError, InputError) as error:
        raise InputError(getattr(error, "what", error), triplet.where,
                         getattr(error, "remedy", "drop the row")) from None
    if any(tokenizer.eos_ids.intersection(ids[:-1]) for ids in (positive, toxic)):
        raise InputError("an answer holds an end-of-turn token", triplet.where, "take it out")
    longest = len(prompt) + max(len(positive), len(toxic))
    if longest > context:
        raise InputError(f"{longest} tokens, but the model's context holds {context}",
                         triplet.where, "shorten or drop the row")
    return Example(prompt, positive, toxic, mask)


def fill(examples: list[Example], batch_tokens: int) -> list[list[Example]]:
    """Micro-batches in this order, each of at most `batch_tokens`, or of one longer example."""
    micro_batches, room = [], 0
    for example in examples:
        if example.tokens > room:
            micro_batches.append([])
            room = batch_tokens
        micro_batches[-1].append(example)
        room -= example.tokens
    return micro_batches


def plan_steps(examples: list[Example], *, epochs: int, seed: int, batch_tokens: int,
               accumulate: int) -> list[list[list[Example]]]:
    """Steps of micro-batches of examples, in the order of the seed; each epoch shuffles anew."""
    micro_batches = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}|{epoch}")
        micro_batches += fill(rng.sample(examples, len(examples)), batch_tokens)
    return [micro_batches[i:i + accumulate] for i in range(0, len(micro_batches), accumulate)]


@dataclass(frozen=True)
class Batch:
    """Sequences that are read together, and the tokens of them that carry a loss."""
    ids: torch.Tensor  # (R, T)
    positions: torch.Tensor  # (R or 1, T)
    attend: Callable  # the attention, which decides what keys a query sees (model.Decoder)
    places: torch.Tensor  # (N,) in the flattened (R·T) hidden states: those that predict a token
    targets: torch.Tensor  # (N,) the token predicted there
    kind: torch.Tensor  # (N,) losses.POSITIVE or TOXIC, or IGNORED where `room` is filled up
    pair: torch.Tensor  # (N,) the number of the token's example in the batch
    reference: torch.Tensor  # (N,) the base's -log p of the token, 0 where not used; float64

    @property
    def tensors(self) -> list[torch.Tensor]:
        layout = self.attend.layout if isinstance(self.attend, PackedAttention) else []
        return [self.ids, self.positions, self.places, self.targets, self.kind, self.pair,
                self.reference, *layout]

    @property
    def shapes(self) -> list[torch.Size]:
        return [tensor.shape for tensor in self.tensors]

    def on(self, tensors) -> "Batch":
        """A batch of these tensors: the same on another device, or another of the same shapes."""
        ids, positions, places, targets, kind, pair, reference, *layout = tensors
        attend = self.attend.on(layout) if layout else self.attend
        return Batch(ids, positions, attend, places, targets, kind, pair, reference)

    def to(self, device) -> "Batch":
        return self.on([tensor.to(device) for tensor in self.tensors])


def needed(examples: list[Example]) -> Room:
    """The room (kernels/attention.py) that a packed row of these takes, with a token of filling."""
    return Room(sum(e.tokens for e in examples) + 1,
                sum(e.scored for e in examples), sum(len(e.answers) for e in examples) + 1,
                sum(e.shared for e in examples if len(e.answers) == 2),
                max((len(e.prompt) + len(a) - 1 for e in examples for a in e.answers), default=1))


def room_for(plan: list[list[list[Example]]]) -> Room:
    """Room for the packed rows of a run. Where some rows hold several triplets, only those count: a
    row of one long triplet may need more, and `pack` then leaves it as it is."""
    micro_batches = [examples for step in plan for examples in step]
    rows = [needed(examples) for examples in micro_batches]
    several = [row for row, b in zip(rows, micro_batches, strict=True) if len(b) > 1] or rows
    sizes = map(max, zip(*several, strict=True))
    room = Room(*(-(-size // ROOM_STEP) * ROOM_STEP for size in sizes))
    # The less a row holds, the more pieces its filling has: the empty one counts as well.
    return room._replace(segments=max(
        row.segments - 1 + math.ceil((room.tokens - row.tokens + 1) / room.longest)
        for row in (needed([]), *rows) if row.tokens <= room.tokens))


def pack(examples: list[Example], room: Room | None = None) -> Batch:
    """One row without padding: [prompt and common opening][rest of positive][rest of toxic] ...
    Both rests go on at the same position, and neither sees the other. What is shared is computed
    once, and its last hidden state predicts the first token of both rests. Prompt and m_t = 0
    tokens carry no loss. An answer's last token predicts nothing, so it is not read. A row that
    fits into `room` is filled up to it by tokens at its end that carry no loss."""
    if room and any(size > most for size, most in zip(needed(examples), room, strict=True)):
        room = None
    ids, positions, spans, scored = [], [], [], []  # scored: (place, target, kind, pair)
    for pair, example in enumerate(examples):
        start, n, shared = len(ids), len(example.prompt), example.shared
        rests = [answer[example.opening:-1] for answer in example.answers]
        spans.append(Span(shared, *map(len, rests)))
        ids += example.prompt + example.positive[:example.opening]
        positions += range(shared)
        for rest in rests:
            ids += rest
            positions += range(shared, shared + len(rest))
        # The hidden state at n + t - 1 of a sequence predicts token t of its answer.
        scored += [(start + n + t - 1, y, POSITIVE, pair) for t, y in enumerate(example.positive)]
        skipped = len(rests[0])  # of the positive, which stands between the toxic answer's parts
        scored += [(start + n + t - 1 + (skipped if t > example.opening else 0), y, TOXIC, pair)
                   for t, (y, m) in enumerate(zip(example.toxic, example.mask, strict=True)) if m]
    if room:
        filling = room.tokens - len(ids)
        ids += [0] * filling
        positions += range(filling)
        spans += [Span(min(room.longest, filling - at), 0)
                  for at in range(0, filling, room.longest)]
        scored += [(len(ids) - 1, 0, IGNORED, 0)] * (room.scored - len(scored))
    return Batch(torch.tensor([ids]), torch.tensor([positions]), PackedAttention(spans, room),
                 *torch.tensor(scored).T.contiguous(), reference_of(examples, len(scored)))


def reference_of(examples: list[Example], n: int) -> torch.Tensor:
    """(n,) the base's -log p of the scored tokens; float64, as sums of many are subtracted."""
    known = [x for e in examples for x in e.reference or [0.0] * e.scored]
    return torch.tensor(known + [0.0] * (n - len(known)), dtype=torch.float64)


def pad(examples: list[Example], pad_id: int) -> Batch:
    """The same tokens scored with nothing shared: a row of the batch for each sequence. `pack` is
    compared with it, in the tests and at the start of every run."""
    sequences, scored = [], []  # scored: (sequence, place of the target in it, kind, pair)
    for pair, example in enumerate(examples):
        start = len(example.prompt)
        masks = ((POSITIVE, [1] * len(example.positive)), (TOXIC, example.mask))
        # An example without a penalised toxic token has one sequence, and zip stops there.
        for answer, (kind, mask) in zip(example.answers, masks, strict=False):
            scored += [(len(sequences), start + t, kind, pair) for t, m in enumerate(mask) if m]
            sequences.append(example.prompt + answer)
    ids = right_pad(sequences, pad_id)  # (R, T)
    sequence, place, kind, pair = torch.tensor(scored).T  # (N,) each
    positions = torch.arange(ids.shape[1])[None]  # (1, T)
    return Batch(ids, positions, whole_rows, sequence * ids.shape[1] + place - 1,
                 ids[sequence, place], kind, pair, reference_of(examples, len(scored)))
