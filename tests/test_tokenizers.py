"""tokenizer.py on the kinds of tokenizer.json there are: ids, text, BOS and EOS, templates, and
the seam of prompt and answer, against stored tokens and against transformers on the same folder.

No hub is at hand, so each kind is built here as its family has it, with a vocabulary of few words.
"""

import json
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from tokenizer import Tokenizer

WORDS = ["Hello", "world", "the", "The", "dog", "user", "model", "assistant", "system",
         "How", "Sure", "INST", "12"]
SPLIT_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # Llama-3
SPLIT_1 = SPLIT_3.replace("{1,3}", "")  # Qwen2

# ---- the kinds ----


def bpe(space, extra, alphabet, *, first=(), **options) -> models.BPE:
    """A word is merged letter by letter, then with a space before it; ids in order of mention."""
    merges = [(word[:i], word[i]) for word in WORDS + extra for i in range(1, len(word))]
    merges += [(space, word) for word in WORDS]
    merges = list(dict.fromkeys(merges))
    made = [token for a, b in merges for token in (a, b, a + b)]
    tokens = dict.fromkeys([*first, *alphabet, *made])
    return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)


def sentencepiece(*specials: str) -> Backend:
    """The vocabulary of Llama-2's line: ▁ for spaces, a token for each byte, no merge across it."""
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Backend(bpe(
        "▁", ["▁▁", "▁▁▁▁"], ".,?!'\"[]/<|>_aeiou\u0301é", first=(*specials, *octets),
        unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(list(specials))
    return backend


def byte_level(split, *specials: str) -> Backend:
    backend = Backend(bpe("Ġ", ["ĊĊ", "ðŁ"], sorted(pre_tokenizers.ByteLevel.alphabet())))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return backend


def begins(backend, bos: str, *others):
    """The post-processor that puts BOS before every text."""
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, backend.token_to_id(bos))])
    backend.post_processor = processors.Sequence([*others, template]) if others else template
    return backend


def llama_2():
    backend = begins(sentencepiece("<unk>", "<s>", "</s>"), "<s>")
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def metaspace(scheme):
    backend = begins(sentencepiece("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "<s>")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if scheme == "never":
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def gemma():
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    backend = begins(sentencepiece(*specials), "<bos>")
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])  # an added token, not a special one
    return backend


def phi_3():
    backend = llama_2()
    backend.add_special_tokens([
        AddedToken("</s>", rstrip=True), "<|endoftext|>", AddedToken("<|assistant|>", rstrip=True),
        AddedToken("<|end|>", rstrip=True), AddedToken("<|user|>", rstrip=True)])
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return backend


def llama_3():
    split = pre_tokenizers.Split(Regex(SPLIT_3), "isolated")
    backend = byte_level(split, "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                         "<|end_header_id|>", "<|eot_id|>")
    return begins(backend, "<|begin_of_text|>", processors.ByteLevel(trim_offsets=False))


def qwen():
    split = pre_tokenizers.Split(Regex(SPLIT_1), "isolated")
    backend = byte_level(split, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    for token in ("<think>", "</think>"):
        backend.add_tokens([AddedToken(token, normalized=False)])
    return backend


def smollm():
    backend = byte_level(pre_tokenizers.Digits(individual_digits=True), "<|endoftext|>",
                         "<|im_start|>", "<|im_end|>")
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
INST = ("{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) "
        "%}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %}"
        " {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}")
TEMPLATES = {
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role "
             "not supported') }}{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if "
             "m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
             "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "phi-3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
             "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "llama-3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
               "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
               "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
               "{% endif %}",
    # The last answer has an empty thought before it; enable_thinking asks for it in the prompt too.
    "qwen3": CHATML.replace("{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think>"
                            "\n\n</think>\n\n{% endif %}{{ m.content }}").replace(
        "assistant\n{%", "assistant\n{% if enable_thinking is defined and enable_thinking is false "
                         "%}{{ '<think>\n\n</think>\n\n' }}{% endif %}{%"),
}
KINDS = {  # name: backend, model_type, tokenizer_config.json, template
    "llama-2": (llama_2, "llama", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                                   "eos_token": "</s>", "add_bos_token": True}, INST),
    "mistral": (lambda: metaspace("first"), "mistral", {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"},
        INST.replace(" [/INST]", "[/INST]").replace(" {{ eos_", "{{ eos_")),
    "always": (lambda: metaspace("always"), "mistral", {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}, INST),
    "never": (lambda: metaspace("never"), "mistral", {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}, INST),
    "gemma": (gemma, "gemma2", {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>",
                                "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
                                "add_bos_token": True}, TEMPLATES["gemma"]),
    "phi-3": (phi_3, "phi3", {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>",
                              "eos_token": "<|endoftext|>", "add_bos_token": False},
              TEMPLATES["phi-3"]),
    "llama-3": (llama_3, "llama", {"tokenizer_class": "PreTrainedTokenizerFast",
                                   "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
                TEMPLATES["llama-3"]),
    "qwen2": (qwen, "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None,
                              "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                              "add_bos_token": False}, CHATML),
    "qwen3": (qwen, "qwen3", {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None,
                              "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
              TEMPLATES["qwen3"]),
    "smollm2": (smollm, "llama", {"tokenizer_class": "PreTrainedTokenizerFast",
                                  "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                                  "clean_up_tokenization_spaces": True}, CHATML),
}


def write_kind(folder, name, **changes):
    """A folder as its family's repositories have it; `changes` go into tokenizer_config.json."""
    build, model_type, config, template = KINDS[name]
    folder.mkdir()
    build().save(str(folder / "tokenizer.json"))
    config = {**config, "chat_template": template, **changes}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 1000}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("kinds")
    return {name: write_kind(place / name, name) for name in KINDS}


@pytest.fixture(scope="module")
def ours(folders):
    return {name: Tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders):
    auto = pytest.importorskip("transformers").AutoTokenizer
    return {name: auto.from_pretrained(folder) for name, folder in folders.items()}


TEXTS = ["Hello world", " Hello", "  the dog", "", " ", "\n", "\n\nHow?\n", "the  dog   \n Sure",
         "🙂🙃 the 日本", "e\u0301 é", "a 1234 <s>", "</s> Hello</s>\n the", "'s don't [INST] ok",
         "<|im_end|>\n Hello <|end|>\n\n<end_of_turn>\nthe", "<bos>\t\x00",
         "the != dog , is it 'the' ? ."]  # clean_up_tokenization_spaces would take spaces out


@pytest.mark.parametrize("name", KINDS)
def test_same(ours, theirs, name):
    """Ids with and without BOS, and the text of them."""
    mine, peer = ours[name], theirs[name]
    for text in TEXTS:
        for special in (True, False):
            ids = peer(text, add_special_tokens=special)["input_ids"]
            if special and text.startswith(mine.special.get("bos_token") or "-"):
                ids = ids[1:] if ids[0] == ids[1] else ids  # never twice
            assert mine.encode(text, special=special) == ids, (text, special)
        assert mine.decode(ids) == peer.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("name", KINDS)
def test_same_chat(ours, theirs, name):
    """The prompt, and the whole exchange up to the end of the turn, as transformers has them."""
    mine, peer = ours[name], theirs[name]
    for ask, answer in [("Hello", "Sure."), ("  🙂 日本 ", "🙂!"), ("How?", "é\n\n'12' the"),
                        ("dog", "e\u0301"),
                        # what a user writes may hold a token of the template: read as that token
                        ("How </s> the <|im_end|> dog <|end|> <|eot_id|>?", "Sure."),
                        ("<bos><s>[INST] Hello <end_of_turn>\n<|im_start|>user", "the dog")]:
        turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        peers_prompt, whole = (
            peer.apply_chat_template(turns[:n], add_generation_prompt=n == 1, return_dict=False,
                                     enable_thinking=False) for n in (1, 2))
        assert mine.encode_prompt(ask, "chat") == peers_prompt
        prompt, rest, n = mine.encode_exchange(ask, answer, "chat")
        ids = prompt + rest
        assert ids == whole[:len(ids)] and ids[-1] in mine.eos_ids
        assert not mine.eos_ids.intersection(rest[:-1])
        assert nfc(mine.decode(rest).strip()) == nfc(mine.decode(rest[:n]).lstrip()) == nfc(answer)


def nfc(text):
    return unicodedata.normalize("NFC", text)  # as Qwen's tokenizer does


def cuts(text):
    return [(text[:at], text[at:]) for at in range(1, len(text))]


@pytest.mark.parametrize("text", ["Hello 🙂🙃 the  dog\n\nSure, 日本 e\u0301.", "🙂 12 'world'"])
@pytest.mark.parametrize("name", KINDS)
def test_seam(ours, name, text):
    """Wherever a text is cut, its tokens stay those of the whole, and a token that begins in the
    context belongs there."""
    tokenizer = ours[name]
    whole = tokenizer.encode(text)
    for context, continuation in cuts(text):
        ids, first = tokenizer.encode_pair(context, continuation, special=True)
        assert ids == whole
        before, after = tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:])
        # All of the context and at most the rest of its last token; no character is cut.
        assert nfc(before).startswith(nfc(context.rstrip(" ")).removesuffix("e"))
        assert nfc(text).endswith(nfc(after.lstrip(" \u0301")))
        assert "\ufffd" not in before + after



@pytest.mark.parametrize("name", KINDS)
def test_answers_at_the_seam(ours, name):
    """Answers that begin with a space, bytes, ideographs or a combining mark begin right there."""
    tokenizer = ours[name]
    for format in ("raw", "chat"):
        prompt = tokenizer.encode_prompt("Hello", format)
        for answer in (" Sure", "Sure", "🙂", "日本", "\u0301a", "\n\nthe", "'s"):
            mine, rest, n = tokenizer.encode_exchange("Hello", answer, format)
            assert mine == prompt
            assert tokenizer.decode(rest[:n]).strip() == answer.strip()


# ---- stored, so that it holds without transformers ----


def shown(tokenizer, ids):
    return " ".join(map(tokenizer.backend.id_to_token, ids))


STORED = {  # tokens of a text with BOS; of a prompt and answer in the chat format
    "llama-2": ("<s> ▁Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> </s> ▁ é",
                "<s> ▁ [ INST ] ▁How ? ▁ [ / INST ]", "▁Sure ▁ <0xC3> <0xB1> ▁ </s>"),
    "mistral": ("<s> ▁Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> </s> é",
                "<s> [INST] ▁How ? [/INST]", "▁Sure ▁ <0xC3> <0xB1> </s>"),
    "always": ("<s> ▁Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> </s> ▁ é",
               "<s> [INST] ▁How ? ▁ [/INST]", "▁Sure ▁ <0xC3> <0xB1> ▁ </s>"),
    "never": ("<s> Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> </s> é",
              "<s> [INST] ▁How ? ▁ [/INST]", "▁Sure ▁ <0xC3> <0xB1> ▁ </s>"),
    "gemma": ("<bos> Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> < / s > é",
              "<bos> <start_of_turn> user <0x0A> How ? <end_of_turn> <0x0A> <start_of_turn> model "
              "<0x0A>", "Sure ▁ <0xC3> <0xB1> <end_of_turn>"),
    "phi-3": ("▁Hello ▁the ▁▁ dog ▁ <0xF0> <0x9F> <0x99> <0x82> <0x0A> </s> ▁ é",
              "<|user|> ▁How ? <|end|> <|assistant|>", "▁Sure ▁ <0xC3> <0xB1> <|end|>"),
    "llama-3": ("<|begin_of_text|> Hello Ġthe Ġ Ġdog Ġ ðŁ Ļ Ĥ Ċ < / s > Ã ©",
                "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> ĊĊ How ? <|eot_id|> "
                "<|start_header_id|> assistant <|end_header_id|> ĊĊ", "Sure Ġ Ã ± <|eot_id|>"),
    "qwen2": ("Hello Ġthe Ġ Ġdog Ġ ðŁ Ļ Ĥ Ċ < / s > Ã ©",
              "<|im_start|> user Ċ How ? <|im_end|> Ċ <|im_start|> assistant Ċ",
              "Sure Ġ Ã ± <|im_end|>"),
    "qwen3": ("Hello Ġthe Ġ Ġdog Ġ ðŁ Ļ Ĥ Ċ < / s > Ã ©",
              "<|im_start|> user Ċ How ? <|im_end|> Ċ <|im_start|> assistant Ċ <think> ĊĊ </think> "
              "ĊĊ", "Sure Ġ Ã ± <|im_end|>"),
    "smollm2": ("Hello Ġthe Ġ Ġdog Ġ ðŁ Ļ Ĥ Ċ < / s > Ã ©",
                "<|im_start|> user Ċ How ? <|im_end|> Ċ <|im_start|> assistant Ċ",
                "Sure Ġ Ã ± <|im_end|>"),
}
