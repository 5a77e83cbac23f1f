"""LoRA tuning with the PT-ALIGN loss: one flat loop.

A step is `accumulate` micro-batches (triplets.fill). Its loss is (Σ MLE + λ · Σ UT) / |P|, with |P|
counted over the whole step, also where several processes share it (support/distributed.py).
The order of the data is a function of the seed and the loop draws no random number, so the number
of steps done, the adapter and the optimizer's moments are the whole state: a run killed anywhere
and started again goes on from its last checkpoint and ends with the same bits. (On a GPU these may
differ by rounding, because FlashAttention's backward pass sums in no fixed order.)

Letters: R rows of a micro-batch (one if packed), T tokens of each, N scored tokens, D hidden size.
"""

import contextlib
import math
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import losses
from forecast import describe
from kernels.attention import Room, flash_takes
from kernels.recorded import Recorded
from lora import adapter_disabled, add_lora, choose_targets, lora_parameters
from losses import POSITIVE, TOXIC
from model import load_model, outline, read_config, resolve_device, resolve_dtype
from support import distributed
from support import validation as held
from support.adapters import write_adapter
from support.checkpoint import is_worth_it, open_log, restore, save_checkpoint
from support.contamination import PROMPTS, fingerprint, refuse_contamination
from support.files import AppendLog, InputError, refusing, sha256_file, write_jsonl
from support.hub import hub_name, model_folder, model_identity
from support.pairs import Triplet, read_triplets, usable
from support.progress import Progress, say, warn_of_stalls
from support.runs import open_run
from support.watch import check_step, cosine, peak_mib, running_mean, say_counts
from tokenizer import Tokenizer
from triplets import Batch, Example, encode, fill, pack, pad, plan_steps, room_for

CHECKPOINT = Path("checkpoint") / "state.safetensors"
CHECKPOINT_STEPS = 10
HELD_ROWS = 64  # held-out tokens whose logits are in memory at a time
# Packed against padded: the loss's largest relative difference, and the gradients' least cosine.
# In bf16 the two may take different kernels, which round differently.
PACKING_BOUNDS = {torch.float32: (1e-5, 0.999999), torch.bfloat16: (0.01, 0.95)}


def train(*, model: str, data: str, out: str, penalty: float, mask: str, objective: str, rank: int,
          alpha: float, targets: list[str] | None, epochs: int, lr: float, batch_tokens: int,
          accumulate: int, gradient_checkpointing: bool, warmup: float, clip: float, loss: str,
          format: str | None, exclude: str | None, device: str, dtype: str, seed: int, fresh: bool,
          base_dtype: str | None = None, validation: float = 0.0, dry_run: bool = False,
          skip_bad_rows: bool = False, columns_are_right: bool = False) -> int:
    """Tune an adapter on triplets; returns the exit code. Raises InputError for bad input."""
    settings = {key: value for key, value in locals().items()
                if key not in ("out", "fresh", "dry_run", "columns_are_right")}
    with distributed.processes():
        # Faults of the input are reported before the model is loaded, and leave no folder.
        triplets = read_triplets(Path(data), skip=skip_bad_rows, columns_right=columns_are_right)
        if exclude:
            refuse_contamination(triplets, Path(exclude))
        triplets, held_out = held.hold_out(triplets, validation, seed)
        folder, out = model_folder(model), Path(out)
        tokenizer, config, device = Tokenizer(folder), read_config(folder), resolve_device(device)
        format, dtype = format or tokenizer.default_format, resolve_dtype(dtype, device)
        tokenizer.answer_text("", format)  # a template that fails is reported before any row
        loss, loss_of = choose_loss(loss, device.type)
        targets = choose_targets(outline(folder)[0], targets)

        def encoded(rows, **scoring) -> list[tuple[Triplet, Example]]:
            context = config.max_position_embeddings
            return usable(lambda t: (t, encode(t, tokenizer, format, context=context, **scoring)),
                          rows, Path(data), skip=skip_bad_rows)

        scoring = {"fine_grained": mask == "first-mismatch", "with_toxic": objective != "mle",
                   "whole": objective == "dpo"}
        steps_of = partial(plan_steps, epochs=epochs, seed=seed, batch_tokens=batch_tokens,
                           accumulate=accumulate)
        settings |= {"format": format, "targets": targets, "loss": loss, "device": device.type,
                     "dtype": dtype, "data_sha256": sha256_file(data), **model_identity(folder)}
        if dry_run:
            plan = steps_of([e for _, e in encoded(triplets, **scoring)])
            pairs = held.measurable([e for _, e in encoded(held_out)])
            pairs *= held.measurements(len(plan), CHECKPOINT_STEPS)
            if distributed.is_first():
                print(describe(plan, config, held_out=pairs, objective=objective, rank=rank,
                               targets=targets, dtype=dtype, base_dtype=base_dtype, loss=loss,
                               device=device, gradient_checkpointing=gradient_checkpointing))
            return 0
        # Paths may change, since hashes may not; checkpointing and --exclude alter no figure.
        may_change = ("model", "data", "exclude", "gradient_checkpointing")
        run = open_run(out, settings, fresh=fresh, filename="train_config.json",
                       may_change=may_change)
        with distributed.on_first(run) as record:
            distributed.agree({k: v for k, v in settings.items() if k not in may_change})
            tokenizer.set_date(record["began"])
            triplets, examples = zip(*encoded(triplets, **scoring), strict=True)
            pairs = held.measurable([e for _, e in encoded(held_out)])  # alike for every objective
            base = distributed.load(partial(  # "auto" would be resolved for the CPU, where it loads
                load_model, folder, dtype={"auto": "bfloat16"}.get(dtype, dtype),
                base_dtype=base_dtype), device)
            base.model.gradient_checkpointing = gradient_checkpointing
            torch.manual_seed(seed)  # LoRA's A is the only thing drawn
            add_lora(base, targets, rank=rank, alpha=alpha)
            say_counts(examples, objective, accumulate, distributed.world())
            if objective in ("npo", "dpo"):
                examples = with_reference(base, examples, loss_of, batch_tokens)
            if distributed.is_first():
                write_jsonl(out / PROMPTS, map(fingerprint, triplets))
            optimise(base, steps_of(examples), out, pad_id=tokenizer.pad_id, loss_of=loss_of,
                     penalty=penalty, objective=objective, lr=lr, warmup=warmup, clip=clip,
                     held_out=[pack(group) for group in fill(pairs, batch_tokens)])
            if distributed.is_first():
                write_adapter(out, lora_parameters(base), base=hub_name(folder) or model,
                              revision=folder.name if hub_name(folder) else None, rank=rank,
                              alpha=alpha, targets=targets)
        say(f"adapter written to {out}")
        return 0


def choose_loss(name: str, device: str):
    """(name, function) of --loss; auto is the Triton kernels on a GPU and chunked elsewhere."""
    if name == "auto":
        name = "triton" if device == "cuda" else "chunked"
    if name != "triton":
        return name, {"chunked": losses.pt_loss_chunked, "eager": losses.pt_loss}[name]
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError("the Triton kernels need a GPU", f"--loss triton on {device}",
                         "use --loss chunked or --device cuda")
    with refusing(ImportError, "triton is not installed", "--loss triton",
                  "install the package triton or use --loss chunked"):
        from kernels.head import pt_loss
    return name, pt_loss


def optimise(model, plan, out: Path, *, pad_id: int, loss_of, penalty: float, objective: str,
             lr: float, warmup: float, clip: float, held_out: list[Batch]) -> None:
    """Take the steps of `plan` that are not yet done; metrics and checkpoints go to `out`."""
    parameters = lora_parameters(model)  # {PEFT's name: A or B}, fp32
    # No weight decay: it would pull the adapter towards the base, which no equation here asks for.
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
    done = restore(out / CHECKPOINT, parameters, optimizer, len(plan))  # steps; 0 at first
    distributed.agree({"checkpoint": done})
    device = model.lm_head.weight.device
    if plan and not done:  # later the loss is small, and its rounding large beside it
        check_packing(model, plan[0][0], pad_id, loss_of, penalty)
    room = room_for(plan) if can_record(model, loss_of) else None
    idle = pack([], room or Room(1, 1, 1, 0, 1))  # an empty micro-batch, in the recorded shapes
    take = micro_step(model, loss_of, penalty, objective, recorded_as=idle if room else None)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)  # stays where it is: a recording adds to it there
    recent = None  # running mean of the loss, to tell a spike by
    seconds: list[float] = []  # of each step
    saved = time.monotonic(), 0.0  # when, and the seconds it took
    paper = objective in ("pt", "mle")  # the other losses may fall below 0 and swing with the pairs
    side = "ut" if paper else "toxic_nll"  # what is logged of toxic rows
    every = held.interval(len(plan), CHECKPOINT_STEPS)
    with (open_log(out / "metrics.jsonl", done) as metrics,
          open_log(out / held.LOG, done) if held_out else contextlib.nullcontext() as curves,
          Progress("train", total=len(plan), unit="step", done=done) as bar):
        for row in metrics.rows if metrics else []:
            recent = running_mean(recent, row["loss"])
        if held_out and not done:
            validate(model, held_out, loss_of, curves, 0)
        for step in range(done, len(plan)):
            began = time.monotonic()  # seconds
            batches = [pack(examples, room) for examples in plan[step]]  # ids (1, T) each
            # |P| of the whole step, so that accumulation changes nothing but memory. Σm is logged.
            n_pos = sum(int((b.kind == POSITIVE).sum()) for b in batches)
            n_tox = sum(int((b.kind == TOXIC).sum()) for b in batches)
            sums = torch.zeros(3, dtype=torch.float64, device=device)  # Σ positive, Σ toxic, loss
            for batch in distributed.share(batches, idle):
                sums += take(batch, n_pos)  # and adds to the gradients of those before it
            distributed.add_up(parameters.values(), sums)  # of all processes
            mle, ut = float(sums[0]) / n_pos, float(sums[1]) / max(1, n_tox)  # nats a token
            total = (float(sums[0]) + penalty * float(sums[1])) / n_pos if paper else float(sums[2])
            norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), clip))  # unclipped
            # Before a bad gradient reaches the adapter; the other losses only have to be finite.
            check_step(step, total, ut if paper else 0.0, norm, recent if paper else None)
            recent = running_mean(recent, total)
            rate = learning_rate(step, len(plan), peak=lr, warmup=warmup)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)  # in place: a recording adds to these tensors

            tokens = sum(e.tokens for b in plan[step] for e in b)  # read; fewer of them are scored
            bar.update(1, note=f"mle {mle:.2f} {side} {ut:.2f}")
            seconds.append(time.monotonic() - began)
            warn_of_stalls(seconds, device.type)
            last = step + 1 == len(plan)
            if held_out and ((step + 1) % every == 0 or last):
                validate(model, held_out, loss_of, curves, step + 1)
            if not distributed.is_first():
                continue  # the adapter and the moments are the same everywhere
            metrics.append({  # losses in nats a token
                "step": step + 1, "loss": total, "mle": mle, side: ut if n_tox else None,
                "positive_tokens": n_pos, "toxic_tokens": n_tox, "lr": rate, "grad_norm": norm,
                "tokens": tokens, "tokens_per_second": tokens / seconds[-1],
                "memory_mib": peak_mib(device)})
            if last or ((step + 1) % CHECKPOINT_STEPS == 0 and is_worth_it(*saved)):
                saved = save_checkpoint(out / CHECKPOINT, step + 1, parameters, optimizer)


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then half a cosine to 0."""
    rising = math.ceil(round(warmup * steps, 6))  # 0.07 * 100 is a little above 7
    if step < rising:
        return peak * (step + 1) / rising  # + 1: the first step is taken, not thrown away
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def batch_loss(model, batch: Batch, loss_of, penalty: float, n_pos: int, objective: str = "pt"):
    """(loss, the rows' own losses (N,)) of one micro-batch; `n_pos` is |P| of its whole step."""
    _, score = read_batch(model, batch, loss_of)
    if objective in ("pt", "mle"):
        # |P| divides both kinds (losses.py); the run's mean was no steadier (results/divisor.md).
        return score(batch.kind, torch.where(batch.kind == POSITIVE, 1.0, penalty) / n_pos)
    nll = neg_log_p(score, batch)  # (N,)
    weight, value = losses.arm(objective, penalty, batch.kind, nll, batch.reference, batch.pair)
    loss, _ = score(batch.kind.abs(), weight / n_pos)  # every scored row as MLE
    return loss + (value / n_pos - loss).detach(), nll  # loss's gradient, the arm's value


def read_batch(model, batch: Batch, loss_of):
    """(hidden states (N, D), a function (kind (N,), weight (N,)) -> `loss_of` at them). Of all R·T
    positions only the N that predict a scored token reach the head: its V columns are costly."""
    hidden = model.model(batch.ids, batch.positions, batch.attend)  # (R, T, D)
    hidden = hidden.flatten(0, 1)[batch.places]  # (N, D)
    return hidden, partial(loss_of, hidden, model.lm_head.weight, batch.targets,
                           softcap=model.config.final_logit_softcapping)


@torch.no_grad()
def neg_log_p(score, batch: Batch):  # -> (N,)
    """-log p of every scored token, whatever its side."""
    return score(batch.kind.abs(), torch.ones(len(batch.kind), device=batch.kind.device))[1]


@torch.no_grad()
def with_reference(model, examples: list[Example], loss_of, batch_tokens: int) -> list[Example]:
    """The examples with their tokens' -log p in the base model: NPO's and DPO's reference."""
    known = []
    with adapter_disabled(model):
        for group in fill(examples, batch_tokens):
            batch = pack(group).to(model.lm_head.weight.device)
            nll = neg_log_p(read_batch(model, batch, loss_of)[1], batch)
            parts = nll.split([e.scored for e in group])
            known += [replace(e, reference=tuple(x.tolist()))
                      for e, x in zip(group, parts, strict=True)]
    return known


@torch.no_grad()
def validate(model, held_out: list[Batch], loss_of, log: AppendLog | None, step: int) -> None:
    """Measure held-out pairs: a line of the log. All processes compute it, the first has a log."""
    found = []  # of each batch: -log p of positive and of toxic tokens, held.spread at the latter
    for batch in held_out:
        batch = batch.to(model.lm_head.weight.device)
        hidden, score = read_batch(model, batch, loss_of)
        nll, toxic = neg_log_p(score, batch), batch.kind == TOXIC
        spread = [held.spread(model.lm_head(part)) for part in hidden[toxic].split(HELD_ROWS)]
        found.append((nll[~toxic], nll[toxic], *map(torch.cat, zip(*spread, strict=True))))
    figures = held.figures(*(torch.cat(x).cpu() for x in zip(*found, strict=True)))
    if log:
        held.record(log, {"step": step, **figures})


def micro_step(model, loss_of, penalty: float, objective: str = "pt", *,
               recorded_as: Batch | None = None):
    """A function (batch, n_pos) -> (Σ over positive rows, Σ over toxic rows, loss), (3,) float64,
    which adds to the gradients. A GPU records and replays batches with `recorded_as`'s shapes."""
    def forward_backward(batch: Batch, n_pos):
        loss, rows = batch_loss(model, batch, loss_of, penalty, n_pos, objective)
        loss.backward()
        return torch.stack([*((rows * (batch.kind == kind)).sum(dtype=torch.float64)
                              for kind in (POSITIVE, TOXIC)), loss.detach().double()])

    replay = Recorded(lambda n_pos, *tensors: forward_backward(recorded_as.on(tensors), n_pos))

    def take(batch: Batch, n_pos: int):
        if recorded_as is None or batch.shapes != recorded_as.shapes:
            return forward_backward(batch.to(model.lm_head.weight.device), n_pos)
        return replay(torch.tensor(float(n_pos)), *batch.tensors)

    return take


def can_record(model, loss_of) -> bool:
    """Whether the GPU's work in a step depends on nothing but shapes. FlashAttention reads the
    segments' places on the GPU; the chunked loss and FSDP need the CPU in between."""
    weight, config = model.lm_head.weight, model.config
    return (distributed.world() == 1 and loss_of is not losses.pt_loss_chunked and flash_takes(
        weight.device, weight.dtype, config.head_dim, config.attn_logit_softcapping))


def check_packing(model, examples: list[Example], pad_id: int, loss_of, penalty: float) -> None:
    """Compute a run's first examples packed and padded; InputError where the two do not agree. It
    is the first time that this model, device and dtype meet the packed attention. Always with pt's
    loss: beside DPO's differences of log p, which may be near 0, any error would be large."""
    budget = sum(e.tokens for e in examples)  # the padded batch must not take more memory
    while len(examples) > 1 and pad(examples, pad_id).ids.numel() > budget:
        examples = examples[:-math.ceil(len(examples) / 9)]  # one at a time, 1000 take a minute
    parameters, results = lora_parameters(model).values(), []  # results: (loss, gradients)
    for batch in (pack(examples), pad(examples, pad_id)):
        batch = batch.to(model.lm_head.weight.device)
        loss, _ = batch_loss(model, batch, loss_of, penalty, int((batch.kind == POSITIVE).sum()))
        loss.backward()
        results.append((loss.item(), [p.grad for p in parameters]))
        for p in parameters:
            p.grad = None
    (packed, g), (padded, h) = results
    off = abs(packed - padded) / abs(padded)
    similar = cosine(g, h)
    most, least = PACKING_BOUNDS[model.lm_head.weight.dtype]
    if not (off <= most and similar >= least):  # a NaN fails too
        raise InputError(f"packed and padded training differ: loss {packed:.6g} and {padded:.6g},"
                         f" gradients' cosine {similar:.6f}", f"--device {g[0].device.type}",
                         "try --dtype float32 with --fresh, and report it")
