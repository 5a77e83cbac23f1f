"""prefill.py and depth.py on a tiny random model (CPU fp32): openings by tokens, KL by a plain
pass, and runs that were broken off."""

import pytest
import torch
from test_evals import PROMPT_ROWS, files_of, results_of, rows, run, task_of  # noqa: F401
from test_template_kinds import thinker  # noqa: F401 (a fixture)

from evals import answers
from evals.tasks import depth, prefill
from evals.tasks.prefill import OPENINGS, TOKENS, Prefill, first_tokens
from lora import adapter_disabled, load_adapter
from model import load_model
from support.files import InputError, read_jsonl
from support.lexicon import operational
from tokenizer import Tokenizer

HARMFUL = [row for row in PROMPT_ROWS[:4] if row["harmful"]]


# ---- prefill ----

def test_openings_comply_and_say_nothing_else(shared_data):
    for text in OPENINGS.values():
        assert not operational(text) and len(text.split()) > 40
    categories = {row["category"] for _, row in read_jsonl(shared_data / "jailbreakbench.jsonl")}
    assert categories == OPENINGS.keys() - {"other"}


@pytest.mark.parametrize("format", ["chat", "raw"])
def test_opening_has_so_many_tokens(tiny_folder, format):
    tokenizer = Tokenizer(tiny_folder)
    for k in TOKENS:
        opening = first_tokens(tokenizer, HARMFUL[0]["prompt"], OPENINGS["other"], k, format)
        assert OPENINGS["other"].startswith(opening) and bool(opening) == bool(k)
        context = tokenizer.prompt_text(HARMFUL[0]["prompt"], format)
        bare, begun = (tokenizer.encode(text, special=format == "raw") for text in (
            context, answers.begun(tokenizer, HARMFUL[0] | {"opening": opening}, format)))
        assert begun[: len(bare)] == bare and len(begun) - len(bare) in (k, k - 1, k + 1)


def test_opening_follows_the_closed_thought(thinker):
    """The end of the thought is none of the k tokens, and stands once, before them."""
    tokenizer, lead = thinker
    for k in TOKENS[1:]:
        row = HARMFUL[0]
        opening = first_tokens(tokenizer, row["prompt"], OPENINGS["other"], k, "chat")
        assert OPENINGS["other"].startswith(opening)
        n = len(tokenizer.encode(opening, special=False))
        assert n in (k - 1, k, k + 1)
        begun = answers.begun(tokenizer, {**row, "opening": opening}, "chat")
        assert begun == tokenizer.prompt_text(row["prompt"], "chat") + lead + opening


def test_answers_go_on_from_the_opening(tiny_folder, rows, tmp_path, monkeypatch):
    asked, real = [], answers.generate
    monkeypatch.setattr(answers, "generate", lambda model, tokenizer, prompts, *rest: (
        asked.extend(map(tokenizer.decode, prompts)) or real(model, tokenizer, prompts, *rest)))
    run(tiny_folder, rows, tmp_path / "out", tasks=["prefill"])
    assert len(asked) == len(TOKENS) * len(HARMFUL)
    assert sum(text.rstrip().endswith("assistant") for text in asked) == len(HARMFUL)
    assert sum("Sure, I am" in text for text in asked) >= 2 * len(HARMFUL)
    results = results_of(tmp_path / "out")
    assert [f["key"] for f in results["figures"]] == [
        f"prefill/chat/k={k}/complied" for k in TOKENS]
    assert not any(f["higher_is_better"] for f in results["figures"])
    texts = {row["text"] for _, block in read_jsonl(tmp_path / "out" / "answers.jsonl")
             for row in block["rows"]}
    assert not any("Sure, I am" in text for text in texts)  # the opening is no part of the answer


def test_an_opening_beyond_the_context_is_told_at_once(tiny_folder, rows, tmp_path, monkeypatch):
    """The prompts alone have room for the answer, and with the longest opening none has."""
    monkeypatch.setattr("evals.suite.load_model", None)  # not even the model is read
    tokenizer = Tokenizer(tiny_folder)
    longest = max(len(tokenizer.encode_prompt(row["prompt"], "chat")) for row in HARMFUL)
    with pytest.raises(InputError, match="exceed a context of 2048, item k="):
        run(tiny_folder, rows, tmp_path / "out", tasks=["prefill"], max_new_tokens=2048 - longest)


@pytest.mark.parametrize("calls", [1, 2])
def test_killed_prefill_ends_like_an_unbroken_one(tiny_folder, adapter, rows, tmp_path,
                                                  monkeypatch, killed, calls):
    monkeypatch.setattr(Prefill, "batch", 4)
    options = {"tasks": ["prefill"], "adapter": [str(adapter)]}
    run(tiny_folder, rows, tmp_path / "whole", **options)
    with killed(answers, "generate", calls):
        run(tiny_folder, rows, tmp_path / "killed", **options)
    run(tiny_folder, rows, tmp_path / "killed", **options)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


# ---- depth ----

def test_divergence_is_that_of_plain_passes(tiny_folder, adapter):
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    tokenizer = Tokenizer(tiny_folder)
    load_adapter(model, adapter)
    texts = [depth.encoded(tokenizer, HARMFUL[0]["prompt"], text, "chat") for text in (
        "Ask first, then paint it.", "No.")]
    found = depth.divergences(model, texts, tokenizer.pad_id)
    for (ids, first), kls in zip(texts, found, strict=True):
        with torch.no_grad():
            p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            with adapter_disabled(model):
                q = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        wanted = (p.exp() * (p - q)).sum(-1)[first - 1 : -1]
        assert kls == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-5)
        assert len(kls) == len(ids) - first and min(kls) > 0
    with adapter_disabled(model):
        assert depth.divergences(model, texts, tokenizer.pad_id) == [
            [0] * len(kls) for kls in found]
    assert depth.divergences(model, [([1], 1)], tokenizer.pad_id) == [[]]  # an empty answer


def test_depth_of_counts_positions():
    items = [{"prompt": f"p{n}", "tuned": {"kl": [4.0, 2.0, 1.0, 1.0, 1.0, 1.0][: 6 - n]}}
             for n in range(2)] + [{"prompt": "p2", "tuned": {"kl": []}}]
    found = depth.depth_of(items, "tuned", 0)
    assert found["n"] == 2 and [b["n"] for b in found["bins"]] == [2, 2, 2, 1]
    assert [b["kl"] for b in found["bins"]] == [4, 2, 1, 1]
    assert found["early"] == pytest.approx(18 / 19)


def test_an_answer_that_merges_into_the_prompt_has_no_depth(tiny_folder, monkeypatch):
    tokenizer = Tokenizer(tiny_folder)

    def merged(*_, **__):
        raise ValueError("the two share a token")
    assert depth.encoded(tokenizer, "Why?", ")", "chat")[1] > 1
    monkeypatch.setattr(tokenizer, "encode_pair", merged)
    assert depth.encoded(tokenizer, "Why?", ")", "chat") == ([tokenizer.start_id], 1)


@pytest.mark.parametrize("name", ["answers", "divergences"])
def test_depth_runs_and_goes_on(tiny_folder, adapter, rows, tmp_path, monkeypatch,
                                killed, capsys, name):
    monkeypatch.setattr(depth.Depth, "batch", 2)
    options = {"tasks": ["depth"], "adapter": [str(adapter)]}
    run(tiny_folder, rows, tmp_path / "whole", **options)
    shown = capsys.readouterr().out
    assert "KL(tuned || base), nats" in shown and "harmful tuned, token 1 " in shown
    results = results_of(tmp_path / "whole")
    assert results["figures"] == [] and set(results["depth"]) == {"harmful", "benign"}
    module, function = (answers, "generate") if name == "answers" else (depth, "divergences")
    with killed(module, function, 1):
        run(tiny_folder, rows, tmp_path / "killed", **options)
    run(tiny_folder, rows, tmp_path / "killed", **options)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_depth_tells_of_the_answers_that_it_waits_for(tiny_folder, adapter, rows, tmp_path,
                                                      monkeypatch):
    """They are written under the base, whose bar counts them; under others they are read back."""
    bars, written = [], depth.answers
    monkeypatch.setattr(depth, "answers", lambda *a, progress, **options: (
        bars.append(progress), written(*a, progress=progress, **options))[1])
    run(tiny_folder, rows, tmp_path / "out", tasks=["depth"], adapter=[str(adapter)])
    assert [bar is not None for bar in bars] == [True, False]


def test_depth_needs_an_adapter(rows):
    with pytest.raises(InputError, match="depth compares an adapter with its base"):
        task_of(depth.Depth, data_dir=str(rows))


def test_tokens_of_the_paper():
    assert TOKENS == (0, 5, 10, 20, 40) and prefill.Prefill.about.items == 100 * len(TOKENS)
