"""benchmarks/hhh_speed.py on a tiny random model, CPU: same figures both ways, whole reports."""

import json
import os

import pytest
import torch

from benchmarks import hhh_speed
from evals.choice import context_text
from model import load_model
from support.files import write_jsonl
from tokenizer import Tokenizer

PROMPTS = ["Which tea is best?", "My bus was late, and the driver shrugged. Why?"]
CHOICES = ["The one you like.", "Ask your aunt, she knows more of tea than I ever will."]
ROWS = [{"id": f"r{n}", "prompt": prompt, "choices": CHOICES, "label": 0, "group": "kind"}
        for n, prompt in enumerate([*PROMPTS, PROMPTS[0]])]  # two requests are asked twice


@pytest.fixture
def data_dir(tmp_path):
    write_jsonl(tmp_path / "hhh_alignment.jsonl", ROWS)
    return tmp_path


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # a load is warned of


def test_every_request_has_a_row_of_its_own(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    pairs = [(context_text(tokenizer, row, "raw"), " " + text)
             for row in ROWS for text in CHOICES]
    batches, got = [], {}
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, given: batches.append(len(given[0])))
    for kind, score in hhh_speed.OURS.items():
        batches.clear()
        got[kind] = score(model, tokenizer, pairs), sum(batches)
    (every, rows), (once, fewer) = got[hhh_speed.EVERY], got[hhh_speed.MERGED]
    assert once == pytest.approx(every, abs=1e-4) and len(set(once)) == 4
    assert rows - fewer == len(pairs) - len(set(pairs)) == 2


def test_a_trial_pads_large_batches_no_more_than_all_requests_do():
    pairs = [("a" * int(1.015 ** (n * 7919 % 442)), "b") for n in range(442)]  # few long ones

    def padded(of, size):  # tokens computed, for one of each request's own
        lengths = sorted((len(a + b) for a, b in of), reverse=True)
        batches = [lengths[i:i + size] for i in range(0, len(lengths), size)]
        return sum(batch[0] * len(batch) for batch in batches) / sum(lengths)
    part = hhh_speed.trial(pairs)
    assert len(part) == hhh_speed.WARM_UP and set(part) <= set(pairs)
    assert all(padded(part, size) <= padded(pairs, size) for size in hhh_speed.SIZES)
    assert sorted(hhh_speed.trial(pairs[:5])) == sorted(pairs[:5])


def test_ratios_are_to_the_fastest_of_the_same_kind():
    took = {"ours, every request": [2.0, 4.0, 3.0], "ours, duplicates merged": [1.0, 2.0, 1.0],
            "lm-eval, batch 1, duplicates merged": [9.0, 9.0, 9.0],
            "lm-eval, batch 8, duplicates merged": [4.0, 6.0, 2.0],
            "lm-eval, batch 8, every request": [6.0, 6.0, 5.0]}
    ratios = hhh_speed.compare(took)["ratios"]
    every, once = (ratios[f"{kind} / {kind}"] for kind in hhh_speed.OURS)
    assert (every["ratio"], every["least"], every["most"]) == pytest.approx((2, 1.5, 3))
    assert (once["ratio"], once["least"], once["most"]) == pytest.approx((4, 2, 4))
    assert once["peer"] == "lm-eval, batch 8, duplicates merged"
    across = ratios["every request / duplicates merged"]
    assert across["ratio"] == pytest.approx(4 / 3) and across["target"] == 2


def test_report_is_whole(tiny_folder, data_dir, capsys):
    pytest.importorskip("lm_eval", reason="the peer lm-eval is not installed")
    out = data_dir / "new" / "speed.json"
    command = ["--model", str(tiny_folder), "--data-dir", str(data_dir), "--device", "cpu",
               "--sizes", "1,4", "--rounds", "2", "--out", str(out)]
    assert hhh_speed.main(command) == 0
    whole, page = json.loads(out.read_text()), out.with_suffix(".md").read_text()
    assert page == capsys.readouterr().out
    assert (whole["requests"], whole["distinct"]) == (6, 4) and whole["data_as_checked"] is False
    assert max(whole["difference"].values()) <= hhh_speed.PRECISION
    assert len(whole["trial_s"]) == 6 and all(len(r["rounds"]) == 2 for r in whole["rows"].values())
    for name in whole["trial_s"]:  # timed, or left out and told
        assert (f"| {name} |" in page) == (name in whole["rows"]) and name in page
    for name, row in whole["rows"].items():
        assert row["least"] <= row["s"] <= row["most"] and f"| {name} |" in page
    assert whole["threads"] == torch.get_num_threads() and "torch" in whole["versions"]


@pytest.mark.parametrize("wrong, told", [
    (["--sizes", "0"], "at least 1"), (["--model", "nowhere"], "nowhere"),
    (["--data-dir", "nowhere"], "nowhere")])
def test_bad_input_is_told_in_one_line(tiny_folder, data_dir, wrong, told, capsys):
    command = ["--model", str(tiny_folder), "--data-dir", str(data_dir), *wrong]
    assert hhh_speed.main(command) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
