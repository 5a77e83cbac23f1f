"""`train --validation`: what is held out, the figures against plain ones, the warning, the curves.

Its log is the same after a kill at any step; the pictures are well-formed and stand alone.
"""

import itertools
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from conftest import write_model
from test_resume import few, kill_at  # noqa: F401  (few is a fixture)
from test_train import (  # noqa: F401  (fixtures by import)
    ROWS,
    data,
    examples_of,
    knowing,
    metrics,
    run,
    taught,
    trainer,
)

import train
from lora import load_adapter
from model import load_model
from support import validation
from support.contamination import PROMPTS, prompt_hash
from support.files import InputError, read_jsonl, write_jsonl
from support.pairs import Toxic, Triplet
from support.svg import Panel, line_charts, ticks

SHARE, SEED = 0.4, 1  # of ROWS: two pairs


def held_out(folder):
    return [row for _, row in read_jsonl(folder / validation.LOG)]


def rows(n, toxic="so what"):
    return [Triplet(f"Is it {i}?", "yes, dear", toxic and Toxic(toxic), f"line {i}")
            for i in range(n)]


# ---- what is held out ----

def test_hold_out():
    """About the share; the same prompts whatever the order and the other rows; seeds differ."""
    data = rows(1000)
    rest, pairs = validation.hold_out(data, 0.1, 0)
    assert 70 < len(pairs) < 130 and len(rest) + len(pairs) == 1000
    assert validation.hold_out(data[::-1][:500], 0.1, 0)[1] == [t for t in pairs[::-1]
                                                                if t in data[500:]]
    assert validation.hold_out(data, 0.1, 1)[1] != pairs
    assert validation.hold_out(data, 0.0, 0) == (data, [])


def test_a_prompt_is_on_one_side():
    """By its letters, as `--exclude` compares; benign rows are trained on."""
    data = rows(200) + rows(200, None) + [
        Triplet(t.prompt.upper(), "no", Toxic("ha"), "again") for t in rows(200)]
    rest, pairs = validation.hold_out(data, 0.2, 0)
    sides = [{prompt_hash(t.prompt) for t in side} for side in (rest, pairs)]
    assert not sides[0] & sides[1] and all(t.toxic for t in pairs)
    benign = [Triplet(f"Why {i}?", "so", None, "") for i in range(50)]
    assert len(validation.hold_out(data + benign, 0.2, 0)[0]) == len(rest) + 50


@pytest.mark.parametrize("data, share, told", [
    (rows(3), 0.01, "of 3 rows none is held out, --validation 0.01"),
    (rows(50, None), 0.5, "of 50 rows none is held out"),
    (rows(50, "yes, dear"), 0.5, "of 50 rows none is held out"),  # nothing to penalise
    (rows(1), 0.9999, "of 1 rows none is left to train on"),
])
def test_nothing_left(data, share, told):
    with pytest.raises(InputError, match=told):
        validation.hold_out(data, share, 0)


def test_refused_before_a_folder_is_made(run, tmp_path):
    with pytest.raises(InputError, match="none is held out"):
        run("a", validation=0.001)
    assert not (tmp_path / "a").exists()


def test_held_out_pairs_that_are_alike_token_by_token(run, tmp_path, monkeypatch):
    """As under a tokenizer that ignores case: there is no penalised token to measure."""
    whole = train.encode
    monkeypatch.setattr(train, "encode", lambda triplet, *args, **options: replace(
        whole(triplet, *args, **options), mask=[0] * len(whole(triplet, *args, **options).mask)))
    with pytest.raises(InputError, match="no held-out pair differs token by token"):
        run("a", validation=SHARE, seed=SEED)


def test_held_out_is_not_trained_on(run, tmp_path):
    """Nor listed among the training prompts; the rest is trained on as a file without them."""
    out = run("a", validation=SHARE, seed=SEED)
    trained = {row["sha256"] for _, row in read_jsonl(out / PROMPTS)}
    kept = [row for row in ROWS if prompt_hash(row["prompt"]) in trained]
    assert len(ROWS) - len(kept) == 2
    write_jsonl(tmp_path / "triplets.jsonl", kept)
    assert metrics(run("b", seed=SEED)) == metrics(out)
    assert not (tmp_path / "b" / validation.LOG).exists()


# ---- figures ----

def test_intervals():
    assert [validation.interval(n, 10) for n in (1, 10, 199, 200, 201, 1000)] == [
        10, 10, 10, 10, 20, 50]
    assert [validation.measurements(n, 10) for n in (1, 5, 12, 200, 201)] == [2, 2, 3, 21, 12]


@pytest.mark.parametrize("changes", [{}, {"model_type": "gemma2", "head_dim": 8,
                                          "final_logit_softcapping": 3.0,
                                          "hidden_activation": "gelu_pytorch_tanh"}], ids=str)
@pytest.mark.parametrize("objective", ["pt", "dpo"])
def test_figures(tmp_path, changes, objective):
    """At the start and at the end, one unpadded sequence at a time; all arms score the same."""
    folder = write_model(tmp_path / "m", **changes)
    out = trainer(folder, tmp_path)("a", validation=SHARE, seed=SEED, objective=objective)
    trained = {row["sha256"] for _, row in read_jsonl(out / PROMPTS)}
    pairs = [e for e, row in zip(examples_of(folder, tmp_path / "triplets.jsonl"), ROWS,
                                 strict=True) if prompt_hash(row["prompt"]) not in trained]
    assert len(pairs) == 2
    log = held_out(out)
    assert [row["step"] for row in log] == [0, metrics(out)[-1]["step"]]
    for row, adapter in ((log[0], None), (log[-1], out)):
        model = load_model(folder, device="cpu", dtype="float32")
        if adapter:
            load_adapter(model, adapter)
        positive, toxic = [], []
        for e in pairs:
            for answer, mask, found in ((e.positive, [1] * len(e.positive), positive),
                                        (e.toxic, e.mask, toxic)):
                logits = model(torch.tensor([e.prompt + answer]))[0, len(e.prompt) - 1:-1].detach()
                p = logits.double().softmax(-1)
                found += [(float(p[t, y]), p[t]) for t, (y, m) in
                          enumerate(zip(answer, mask, strict=True)) if m]
        own = [p for p, _ in toxic]
        wanted = {
            "log_p_positive": sum(math.log(p) for p, _ in positive) / len(positive),
            "log_p_toxic": sum(map(math.log, own)) / len(own), "p_toxic": sum(own) / len(own),
            "entropy": sum(float(-(q * q.log()).sum()) for _, q in toxic) / len(own),
            "p_argmax": sum(float(q.max()) for _, q in toxic) / len(own)}
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, rel=1e-4)


def test_gradient_by_p():
    """The share of UT's gradient in the log-odds that tokens of each class of p have: d/da
    -log(1 - σ(a)) = σ(a) = p."""
    p = torch.tensor([0.005, 0.3, 0.3, 0.95, 0.5], dtype=torch.float64)
    a = torch.logit(p).requires_grad_()
    (-torch.nn.functional.logsigmoid(-a)).sum().backward()
    torch.testing.assert_close(a.grad, p)
    row = validation.figures(-p.log(), -p.log(), p, p)
    assert list(row["ut_gradient_by_p"]) == validation.CLASSES == [
        "0 to 0.01", "0.01 to 0.1", "0.1 to 0.5", "0.5 to 0.9", "0.9 to 1"]
    assert list(row["ut_gradient_by_p"].values()) == pytest.approx(
        [x / 2.055 for x in (0.005, 0, 0.6, 0.5, 0.95)])


# ---- resumed ----

def test_killed(run, few, monkeypatch):
    """The log and its picture are those of a run that was not, wherever it is killed."""
    options = {"validation": SHARE, "seed": SEED}
    whole = run("whole", **options)
    files = [(whole / name).read_bytes() for name in (validation.LOG, validation.PICTURE)]
    steps = [row["step"] for row in held_out(whole)]
    assert steps[:2] == [0, 5] and steps[-1] == len(metrics(whole))
    for step, place in ((1, "metrics"), (5, "metrics"), (5, "before checkpoint"),
                        (5, "after checkpoint"), (7, "metrics"), (steps[-1], "before checkpoint")):
        name = f"{place} {step}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, step, place)
            run(name, **options)
        out = run(name, **options)
        assert [(out / name).read_bytes() for name in (validation.LOG, validation.PICTURE)] == files
        assert metrics(out) == metrics(whole)


def test_the_share_is_a_setting(run):
    run("a", validation=SHARE, seed=SEED, epochs=1)
    with pytest.raises(InputError, match="settings changed: validation "):
        run("a", seed=SEED, epochs=1)


def test_it_changes_nothing_else(run, tmp_path, monkeypatch):
    """The measurements between the steps leave no trace in what is trained."""
    out = run("a", validation=SHARE, seed=SEED)
    monkeypatch.setattr(train, "validate", lambda *_: None)
    silent = run("b", validation=SHARE, seed=SEED)
    assert (out / "adapter_model.safetensors").read_bytes() == (
        silent / "adapter_model.safetensors").read_bytes()


# ---- the warning ----

def test_displacement_is_told_once(capsys):
    log = []
    for step, value in enumerate((-1.0, -0.9, -1.04, -1.06, -2.0, -0.5, -3.0)):
        log.append({"step": 10 * step, "log_p_positive": value})
        validation.warn_of_displacement(log)
    err = capsys.readouterr().err
    assert err.count("warning: displacement") == 1 and "from -1.00 to -1.06" in err
    assert "by step 30" in err


def test_displacement_in_a_run(run, knowing, tmp_path, capsys):
    """Ascent with a large λ takes the positive answers along; a healthy run is told nothing."""
    options = {"model": str(knowing), "validation": SHARE, "seed": SEED}
    run("healthy", objective="mle", lr=1e-4, **options)
    assert "warning" not in capsys.readouterr().err
    out = run("sick", objective="ga", penalty=20.0, lr=1e-2, **options)
    assert "warning: displacement" in capsys.readouterr().err
    log = held_out(out)
    assert log[-1]["log_p_positive"] < log[0]["log_p_positive"] - 0.5


# ---- pictures ----

def test_ticks():
    for low, high in itertools.product((-7.3, -0.02, 0.0, 0.1), (0.1, 0.11, 1.0, 12345.0)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
        gaps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
        assert len(gaps) == 1 and f"{gaps.pop():e}"[0] in "125"
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and len(ticks(3, 3)) >= 2


def points(svg):
    lines = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()]
            for line in lines]


def test_line_charts():
    """Every point inside its panel, larger values higher, labels escaped, nothing from outside."""
    curves = {"a < b": [(0, 1.0), (5, 2.0), (10, 4.0)], "odd": [(0, math.nan), (10, -1.0)]}
    svg = line_charts([Panel("one", curves), Panel("none", {"no point": []}, (0, 1)),
                       Panel("flat", {"c": [(0, 0.5)]})], title="R & D")
    first, odd, nothing, flat = points(svg)
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    assert [y for _, y in first] == sorted((y for _, y in first), reverse=True)
    assert len(odd) == 1 and nothing == [] and len(flat) == 1
    assert all(48 <= x <= 388 and 28 <= y <= 198 for line in (first, odd, flat) for x, y in line)
    assert "a &lt; b" in svg and "R &amp; D" in svg
    assert svg.count("http") == 1 and "<image" not in svg and "nan" not in svg


def test_more_curves_than_colours():
    curves = {f"seed-{i}": [(0, i), (1, i + 1)] for i in range(7)}
    svg = line_charts([Panel("seeds", curves)], title="seven")
    assert svg.count("<polyline") == 7 and all(f">{name}</text>" in svg for name in curves)
    strokes = re.findall(r'fill="none" (.+) stroke-width', svg)
    assert len(set(strokes)) == 7  # none looks like another
    assert strokes == re.findall(r'h12" (.+) stroke-width', svg)  # as the legend says


def test_picture(run):
    out = run("a", validation=SHARE, seed=SEED)
    svg = (out / validation.PICTURE).read_text()
    assert svg == validation.picture(held_out(out))
    assert len(points(svg)) == 5 + len(validation.CLASSES)
    assert {len(line) for line in points(svg)} == {len(held_out(out))}
