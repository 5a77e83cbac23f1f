"""Tokenizers, continued: the later tests of test_tokenizers.py, on its folders."""

import json
import subprocess
import sys

import pytest
from test_tokenizers import (
    KINDS,
    STORED,
    folders,  # noqa: F401  a fixture
    llama_2,
    nfc,
    ours,  # noqa: F401  a fixture
    shown,
    smollm,
    theirs,  # noqa: F401  a fixture
    write_kind,
)
from tokenizers import normalizers, processors

from support.decoding import settled
from support.files import InputError
from tokenizer import Tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_stored(ours, name):
    tokenizer, (text, prompt, answer) = ours[name], STORED[name]
    assert shown(tokenizer, tokenizer.encode("Hello the  dog 🙂\n</s>é")) == text
    *ids, n = tokenizer.encode_exchange("How?", "Sure ñ", "chat")
    assert tuple(shown(tokenizer, part) for part in ids) == (prompt, answer)
    # Llama-2's template writes a space between the answer and its end.
    assert n == len(ids[1]) - (2 if answer.endswith("▁ </s>") else 1)


# ---- a seam that merges ----

SPACED = ("{% for m in messages %}{% if m.role == 'user' %}user {{ m.content }} assistant: "
          "{% else %}{{ m.content }} {{ eos_token }}{% endif %}{% endfor %}")


@pytest.mark.parametrize("name", KINDS)
def test_template_that_ends_in_a_space(tmp_path, capsys, name):
    """Training has the tokens that generation asks with, whatever the answer begins with."""
    tokenizer = Tokenizer(write_kind(tmp_path / "t", name, chat_template=SPACED))
    backend, asked = tokenizer.backend, tokenizer.encode_prompt("How?", "chat")
    for answer in ("Sure, 12 dog.", "12", "🙂", "é", "\"Hello\" the", "'s"):
        prompt, ids, n = tokenizer.encode_exchange("How?", answer, "chat")
        text = tokenizer.prompt_text("How?", "chat") + answer + " " + tokenizer.special["eos_token"]
        whole = tokenizer.encode(text, special=False)
        assert prompt == asked and ids[-1] == whole[-1] in tokenizer.eos_ids
        assert backend.decode(prompt + ids, skip_special_tokens=False) == backend.decode(
            whole, skip_special_tokens=False)
        assert nfc(backend.decode(prompt + ids[:n])) == nfc(backend.decode(whole).rstrip(" "))
    assert capsys.readouterr().err.count("note: this template ends in a space: ") == 1


@pytest.mark.parametrize(("name", "prompt", "answer", "n"), [
    ("llama-2", "▁user ▁How ? ▁assistant <0x3A> ▁", "Sure ▁ </s>", 1),
    ("smollm2", "user ĠHow ? Ġassistant : Ġ", "Sure Ġ <|im_end|>", 1),
])
def test_stored_space(tmp_path, name, prompt, answer, n):
    tokenizer = Tokenizer(write_kind(tmp_path / "t", name, chat_template=SPACED))
    *ids, got = tokenizer.encode_exchange("How?", "Sure", "chat")
    assert [shown(tokenizer, part) for part in ids] == [prompt, answer] and got == n


def test_seam_that_merges(tmp_path, capsys):
    """A template that ends in a letter, or in nothing; an answer that cannot follow is refused."""
    bare = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role != 'user' }}{% endfor %}"
    tokenizer = Tokenizer(write_kind(tmp_path / "t", "smollm2", chat_template=bare))
    assert tokenizer.encode_exchange("Hel", "lo dog", "chat")[0] == tokenizer.encode("Hel")
    assert "note: this template ends in 'l': " in capsys.readouterr().err
    with pytest.raises(ValueError, match="leaves the prompt out"):
        tokenizer.encode_exchange("", "Sure", "chat")
    tokenizer.backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace("\nlo", "lo")])
    with pytest.raises(ValueError, match="merges into the prompt's last token"):
        tokenizer.encode_exchange("Hel", "lo dog", "chat")


# ---- whose word holds ----

ENDS = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)])


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True},
                                   {"add_bos_token": False}])
@pytest.mark.parametrize("post", ["bos", "none", "both"])
def test_bos_eos(tmp_path, post, flags):
    """The post-processor decides, the flags do not; an EOS that it appends is left out."""
    folder = write_kind(tmp_path / "t", "llama-2", **flags)
    backend = llama_2()
    backend.post_processor = {"bos": backend.post_processor, "both": ENDS,
                              "none": processors.TemplateProcessing(single="$A")}[post]
    backend.save(str(folder / "tokenizer.json"))
    ids = Tokenizer(folder).encode("the")
    assert shown(Tokenizer(folder), ids) == ("▁the" if post == "none" else "<s> ▁the")
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    assert peer("the")["input_ids"] == ids + [2] * (post == "both")


NAMED = {"bos_token": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
                       "single_word": False}, "eos_token": "[/INST]"}
STRIPS = {"359": {"content": "[/INST]", "lstrip": False, "normalized": False, "rstrip": True,
                  "single_word": False, "special": True}}


@pytest.mark.parametrize(("changes", "eos", "stripped"), [
    ({}, "[/INST]", False),  # special_tokens_map.json holds without added_tokens_decoder
    ({"added_tokens_decoder": {}}, "</s>", False),
    ({"added_tokens_decoder": STRIPS}, "</s>", True),  # its flags win over tokenizer.json's
])
def test_named_tokens(tmp_path, changes, eos, stripped):
    folder = write_kind(tmp_path / "t", "mistral", **changes)
    (folder / "special_tokens_map.json").write_text(json.dumps(NAMED))
    tokenizer = Tokenizer(folder)
    assert tokenizer.special["bos_token"] == "<s>" and tokenizer.special["eos_token"] == eos
    text = "Hello[/INST] \n the"
    tokens = "<s> ▁Hello [/INST] the" if stripped else "<s> ▁Hello [/INST] ▁ <0x0A> ▁the"
    assert shown(tokenizer, tokenizer.encode(text)) == tokens
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    assert peer.eos_token == eos and peer(text)["input_ids"] == tokenizer.encode(text)


def test_where_transformers_differs(tmp_path):
    """Its LlamaTokenizer drops a file's own leading-space rule, its GPT2Tokenizer the digits."""
    auto = pytest.importorskip("transformers").AutoTokenizer
    for name, kind, text, mine, expected in (
            ("llama-2", "LlamaTokenizer", "the</s>dog", "<s> ▁the </s> ▁dog", "<s> ▁the </s> dog"),
            ("smollm2", "GPT2Tokenizer", "a12", "a 1 2", "a 12")):
        folder = write_kind(tmp_path / name, name, tokenizer_class=kind)
        assert shown(Tokenizer(folder), Tokenizer(folder).encode(text)) == mine
        assert " ".join(auto.from_pretrained(folder).convert_ids_to_tokens(
            auto.from_pretrained(folder)(text)["input_ids"])) == expected


@pytest.mark.parametrize(("name", "listed", "ends"), [
    ("llama-3", {"eos_token_id": [315, 318]}, {"<|end_of_text|>", "<|eot_id|>"}),
    ("gemma", {"eos_token_id": 1}, {"<eos>", "<end_of_turn>"}),  # the second from the template
    ("phi-3", {"eos_token_id": [357, 358, 359]}, {"<|endoftext|>", "<|assistant|>", "<|end|>"}),
])
def test_eos(tmp_path, name, listed, ends):
    folder = write_kind(tmp_path / "t", name)
    (folder / "generation_config.json").write_text(json.dumps(listed))
    tokenizer = Tokenizer(folder)
    assert {tokenizer.backend.id_to_token(i) for i in tokenizer.eos_ids} == ends
    assert not any("▁" in token for token in ends)


# ---- text as it grows ----


@pytest.mark.parametrize("name", KINDS)
def test_growing_text(ours, name):
    """What of a text's beginnings is settled never changes, though a character comes in bytes."""
    tokenizer, text = ours[name], "the 🙂🙃 é , 'so' ?\n\n日本\nHello != 🙂"
    ids = tokenizer.encode(text, special=False)
    for n in range(len(ids) + 1):
        begun = tokenizer.decode(ids[:n])
        assert text.startswith(begun[:settled(begun, ())])
        assert set(begun) <= set(text) | {"\ufffd"}  # so no stop string is found that is not there
    assert tokenizer.decode(ids) == text


# ---- what is refused ----


@pytest.mark.parametrize(("config", "said"), [
    ({"vocab_size": 356}, r"token 359 \('<\|end\|>'\) .*vocab_size 356"),
    ({"vocab_size": 361, "eos_token_id": [359, 361]}, "token 361 "),
    ({"vocab_size": 361, "eos_token_id": -1}, "eos_token_id -1 is no token"),
])
def test_rows(tmp_path, config, said):
    """The vocabulary and what ends a turn must have rows in the model's embedding."""
    folder = write_kind(tmp_path / "t", "phi-3")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        Tokenizer(folder)


def test_added_token_without_row(tmp_path):
    """As <image_soft_token> in Gemma 3's text models: refused only where a text holds it."""
    folder = write_kind(tmp_path / "t", "phi-3")
    (folder / "config.json").write_text('{"vocab_size": 360}')
    tokenizer = Tokenizer(folder)
    assert max(tokenizer.encode("Hello <|end|>")) == 359
    for encode in (lambda: tokenizer.encode("<|user|>"),
                   lambda: tokenizer.encode_pair("Hello", " <|user|>", special=True),
                   lambda: tokenizer.encode_prompt("Hello", "chat")):
        with pytest.raises(InputError, match=r"token 360 \('<\|user\|>'\) .*vocab_size 360"):
            encode()


@pytest.mark.parametrize(("files", "said"), [
    ((), "no tokenizer.json, "),
    (("tokenizer.model",), "no tokenizer.json, only tokenizer.model, "),
    (("vocab.json", "merges.txt"), "no tokenizer.json, only vocab.json and merges.txt, "),
])
def test_other_formats(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError) as caught:
        Tokenizer(tmp_path)
    message = str(caught.value)
    assert message.startswith(said) and "\n" not in message
    assert ("save_pretrained" in message) == bool(files)


@pytest.mark.slow
def test_the_conversion(tmp_path):
    """The remedy, run as it is told, makes the tokenizer.json that was missing."""
    pytest.importorskip("transformers")
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    vocabulary = json.loads(smollm().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    (folder / "merges.txt").write_text("".join(" ".join(m) + "\n" for m in vocabulary["merges"]))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}')
    with pytest.raises(InputError) as caught:
        Tokenizer(folder)
    python = str(caught.value).partition("&& ")[2].replace("python", sys.executable, 1)
    subprocess.run(python, shell=True, check=True, capture_output=True)
    assert shown(Tokenizer(folder), Tokenizer(folder).encode("Hello dog")) == "Hello Ġdog"


@pytest.mark.parametrize(("file", "text"), [
    ("tokenizer_config.json", '{"eos_token": {"lstrip": true}}'),
    ("tokenizer_config.json", '{"eos_token": {"content": null}}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "bos_token": {"content": ["<s>"]}}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "added_tokens_decoder": {"1": "x"}}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "added_tokens_decoder": {"a": {}}}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "added_tokens_decoder": 3}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "chat_template": 3}'),
    ("tokenizer_config.json", '{"eos_token": "</s>", "chat_template": [{"name": "default", '
                              '"template": ["x"]}]}'),
    ("tokenizer_config.json", '{"eos_token": "<absent>"}'),
    ("tokenizer_config.json", '[]'),
    ("generation_config.json", '{"eos_token_id": '),
    ("generation_config.json", '{"eos_token_id": ["</s>"]}'),
    ("tokenizer.json", "{}"),
])
def test_damaged(tmp_path, file, text):
    folder = write_kind(tmp_path / "t", "llama-2")
    (folder / file).write_text(text)
    with pytest.raises(InputError) as caught:
        Tokenizer(folder)
    assert "\n" not in str(caught.value) and str(caught.value).count(", ") >= 2
