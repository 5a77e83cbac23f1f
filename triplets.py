"""The data file: prompt, positive answer, toxic answer; read, checked, encoded, batched.

A row without a toxic answer (`toxic: null`: benign rows, positives only) carries MLE alone.
TRL's preference rows are read as well: prompt, chosen and rejected, all strings, or all lists of
messages, where the prompt may also be the message that both answers begin with.

Letters: R rows of a batch, T tokens of a row, N scored tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels.attention import PackedAttention, Span
from losses import POSITIVE, TOXIC, first_mismatch, unlikelihood_mask
from model import right_pad, whole_rows
from support.files import InputError, read_jsonl, sha256
from support.lexicon import CONTEMPT, is_refusal, plain
from tokenizer import Tokenizer

OWN, TRL = ("prompt", "positive", "toxic"), ("prompt", "chosen", "rejected")
COLUMNS = f"{', '.join(OWN)} (toxic may be null) or {', '.join(TRL)}"
SWAP_SHARE = 0.05  # of rows that look swapped: below it they are noise, above it a mistake


class Toxic(str):
    """Text that is a fingerprint wherever it is printed, formatted or logged whole.

    JSON and the tokenizer read the characters themselves; `raw()` is the way to a plain string. A
    slice, strip, join or sum of it is a plain string too: keep those out of messages.
    """

    __slots__ = ()

    def raw(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"<toxic {len(self)} chars sha {sha256(self.raw())[:8]}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


@dataclass(frozen=True)
class Triplet:
    prompt: str
    positive: str
    toxic: Toxic | None
    where: str  # file and line, for messages


def read_triplets(path: Path) -> list[Triplet]:
    """Every row, checked; InputError names the file and line, and never quotes a text."""
    triplets = [_check_row(row, f"{path} line {number}") for number, row in read_jsonl(path)]
    if not triplets:
        raise InputError("no rows", path, "run synth first or name another file")
    _refuse_swapped(triplets, path)
    return triplets


def _check_row(row: dict, where: str) -> Triplet:
    fields = OWN
    if theirs := [name for name in TRL[1:] if name in row]:
        if own := [name for name in OWN[1:] if name in row]:
            raise InputError(f"columns of both forms ({own[0]} and {theirs[0]}) in one row", where,
                             f"keep {COLUMNS}")
        row, fields = _plain_texts(row, where), TRL
    for field in fields:
        if field not in row:
            raise InputError(f"field {field} is missing", where, f"the columns are {COLUMNS}")
        value = row[field]
        if value is None and field == "toxic":
            continue
        if not isinstance(value, str):
            raise InputError(f"field {field} is a {type(value).__name__}, not a string", where,
                             "repair the row")
        if not value.strip():
            raise InputError(f"field {field} is empty", where, "repair or drop the row")
    prompt, positive, toxic = (row[field] for field in fields)
    if toxic == positive:
        raise InputError(f"{fields[1]} and {fields[2]} are the same text", where, "drop the row")
    return Triplet(prompt, positive, None if toxic is None else Toxic(toxic), where)


def _plain_texts(row: dict, where: str) -> dict:
    """A TRL row with its lists of messages as strings; any other row as it is.

    Only a user's message and an assistant's answer to it: a system text or earlier turns would have
    to be left out of the prompt, so they are refused.
    """
    lists = [field for field in TRL if isinstance(row.get(field), list)]
    if not lists:
        return row
    if texts := [field for field in TRL if isinstance(row.get(field), str)]:
        raise InputError(f"field {texts[0]} is a string and {lists[0]} a list of messages", where,
                         "use one form in a row")
    prompt, chosen, rejected = (row.get(field) for field in TRL)
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:1] != rejected[:1]:
            raise InputError(
                "chosen and rejected begin with different messages and there is no prompt", where,
                "repair the row")
        prompt, chosen, rejected = chosen[:1], chosen[1:], rejected[1:]
    messages = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {field: _only_message(value, field, where)
            for field, value in messages.items() if value is not None}


def _only_message(messages, field: str, where: str) -> str:
    role = "user" if field == "prompt" else "assistant"
    if not (isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
            and messages[0].get("role") == role):
        raise InputError(f"field {field} is not one message of the {role}", where,
                         "drop the row (longer conversations are not read)")
    return messages[0].get("content")


def _refuse_swapped(triplets: list[Triplet], path: Path) -> None:
    """Refusals belong to `positive`, contempt to `toxic`: the reverse in many rows is a swap.

    Only those two signs are read, since a distance between the two columns is symmetric.
    """
    pairs = [t for t in triplets if t.toxic is not None]
    right = [t for t in pairs if is_refusal(t.positive) or _scorns(t.toxic.raw())]
    wrong = [t for t in pairs if is_refusal(t.toxic.raw()) or _scorns(t.positive)]
    if len(wrong) > max(len(right), 1, SWAP_SHARE * len(pairs)):
        columns = "positive and toxic (or chosen and rejected)"
        raise InputError(f"{columns} look swapped in {len(wrong)} of {len(pairs)} rows",
                         f"{path} (first: {wrong[0].where})", "exchange the two columns")


def _scorns(text: str) -> bool:
    return CONTEMPT.search(plain(text)) is not None


@dataclass(frozen=True)
class Example:
    """A triplet as token ids; both answers end with the end-of-turn token."""

    prompt: list[int]
    positive: list[int]
    toxic: list[int]  # empty where the loss has no UT term
    mask: list[int]  # m_t of each toxic token

    @property
    def answers(self) -> list[list[int]]:
        """Those that carry a loss: a toxic answer all of whose m_t are 0 does not."""
        return [self.positive, self.toxic] if any(self.mask) else [self.positive]

    @property
    def opening(self) -> int:
        """Tokens that all answers begin with; the last token of an answer is never among them."""
        k = first_mismatch(*self.answers) if any(self.mask) else None
        return min(len(self.positive) if k is None else k, *(len(a) - 1 for a in self.answers))

    @property
    def tokens(self) -> int:
        """Those that a packed row has of it."""
        return len(self.prompt) + self.opening + sum(
            len(answer) - 1 - self.opening for answer in self.answers)


def encode(triplet: Triplet, tokenizer: Tokenizer, format: str, *, fine_grained: bool,
           with_toxic: bool, context: int) -> Example:
    """The training example; `with_toxic=False` is the MLE-only ablation. InputError names the row.

    An answer must hold no end of turn but its last token: inside a toxic answer it would be
    penalised, and the model taught not to stop.
    """
    toxic, mask = [], []
    try:
        prompt, positive, _ = tokenizer.encode_exchange(triplet.prompt, triplet.positive, format)
        if with_toxic and triplet.toxic is not None:
            _, toxic, n_words = tokenizer.encode_exchange(triplet.prompt, triplet.toxic.raw(),
                                                          format)
            mask = unlikelihood_mask(positive, toxic, n_words, fine_grained=fine_grained)
    except ValueError as error:
        raise InputError(error, triplet.where, "drop the row") from None
    if any(tokenizer.eos_ids.intersection(ids[:-1]) for ids in (positive, toxic)):
        raise InputError("an answer holds an end-of-turn token", triplet.where, "take it out")
    longest = len(prompt) + max(len(positive), len(toxic))
    if longest > context:
        raise InputError(f"{longest} tokens, but the model's context holds {context}",
                         triplet.where, "shorten or drop the row")
    return Example(prompt, positive, toxic, mask)


# ---- batches ----

@dataclass(frozen=True)
class Batch:
    """Sequences that are read together, and the tokens of them that carry a loss."""

    ids: torch.Tensor  # (R, T)
    positions: torch.Tensor  # (R or 1, T)
    attend: Callable  # which keys a query sees (model.Decoder)
    rows: torch.Tensor  # (N,) index into the flattened (R·T) hidden states that predict a token
    targets: torch.Tensor  # (N,) the token predicted there
    kind: torch.Tensor  # (N,) losses.POSITIVE or losses.TOXIC

    def to(self, device) -> "Batch":
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "attend"}
        return replace(self, **tensors)


def pack(examples: list[Example]) -> Batch:
    """One row without padding: [prompt and common opening][rest of positive][rest of toxic] ...

    Both rests go on at the same position, and neither sees the other. What is shared is computed
    once, and its last hidden state predicts the first token of both rests. Prompt and m_t = 0
    tokens carry no loss. An answer's last token predicts nothing, so it is not read.
    """
    ids, positions, spans, scored = [], [], [], []  # scored: (row, target, kind)
    for example in examples:
        start, n = len(ids), len(example.prompt)
        shared = n + example.opening
        rests = [answer[example.opening:-1] for answer in example.answers]
        spans.append(Span(shared, *map(len, rests)))
        ids += example.prompt + example.positive[:example.opening]
        positions += range(shared)
        for rest in rests:
            ids += rest
            positions += range(shared, shared + len(rest))
        # The hidden state at n + t - 1 of a sequence predicts token t of its answer.
        scored += [(start + n + t - 1, y, POSITIVE) for t, y in enumerate(example.positive)]
        skipped = len(rests[0])  # of the positive, which stands between the toxic answer's parts
        scored += [(start + n + t - 1 + (skipped if t > example.opening else 0), y, TOXIC)
                   for t, (y, m) in enumerate(zip(example.toxic, example.mask, strict=True)) if m]
    rows, targets, kind = torch.tensor(scored).T
    return Batch(torch.tensor([ids]), torch.tensor([positions]), PackedAttention(spans), rows,
                 targets, kind)


def pad(examples: list[Example], pad_id: int) -> Batch:
    """The same tokens scored with nothing shared: a row of the batch for each sequence.

    It is what `pack` is held to, in the tests and at the start of every run.
    """
    sequences, scored = [], []  # scored: (sequence, place of the target in it, kind)
    for example in examples:
        start = len(example.prompt)
        masks = ((POSITIVE, [1] * len(example.positive)), (TOXIC, example.mask))
        # An example without a penalised toxic token has one sequence, and zip stops there.
        for answer, (kind, mask) in zip(example.answers, masks, strict=False):
            scored += [(len(sequences), start + t, kind) for t, m in enumerate(mask) if m]
            sequences.append(example.prompt + answer)
    ids = right_pad(sequences, pad_id)  # (R, T)
    sequence, place, kind = torch.tensor(scored).T  # (N,) each
    positions = torch.arange(ids.shape[1])[None]  # (1, T)
    # The hidden state at place - 1 predicts the token at place.
    return Batch(ids, positions, whole_rows, sequence * ids.shape[1] + place - 1,
                 ids[sequence, place], kind)
