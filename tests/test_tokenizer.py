"""tokenizer.py: chat templates against transformers and stored strings, and the encoding of
context and continuation against the encoding of the whole text, on three kinds of tokenizer."""

import json

import pytest
from conftest import CHATML, TEXT, write_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from support.files import InputError
from tokenizer import Tokenizer

# ---- templates ----

TEMPLATES = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
        "trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"),
    "qwen2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
        "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
        "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant "
        "roles are supported!') }}{% endif %}{% endfor %}"),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role "
        "not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == "
        "'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
        "user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') "
        "%}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"),
    "indented": (  # blocks on lines of their own: what trim_blocks and lstrip_blocks are for
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n  Q: {{ m.content }}\n"
        "    {% else %}\n  A: {{ m | tojson }}\n    {% endif %}\n"
        "    {% if loop.index > 2 %}{% break %}{% endif %}\n{% endfor %}\n"),
}


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


TALKS = {
    "user": talk(("user", "Hi")),
    "system": talk(("system", "Be kind."), ("user", "Hi")),
    "turns": talk(("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Oh")),
    "odd": talk(("user", '  "é" <b> {{ x }}\n\n'), ("assistant", "日本 & 'so'\n")),
}
STORED = [  # template, conversation, generation prompt, what it renders to
    ("smollm2", "user", True,
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
     "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ("llama-3", "odd", True,
     '<s><|start_header_id|>user<|end_header_id|>\n\n"é" <b> {{ x }}<|eot_id|><|start_header_id|>'
     "assistant<|end_header_id|>\n\n日本 & 'so'<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("qwen2", "system", False,
     "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"),
    ("gemma", "turns", True,
     "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
     "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nOh<end_of_turn>\n"
     "<start_of_turn>model\n"),
    ("mistral", "turns", False, "<s>[INST] Hi [/INST]Hello.</s>[INST] Bye [/INST]Oh</s>"),
    ("indented", "odd", False,
     '  Q:   "é" <b> {{ x }}\n\n\n  A: {"role": "assistant", "content": "日本 & \'so\'\\n"}\n'),
]
NO_SYSTEM = {
    "mistral": "Conversation roles must alternate user/assistant/user/assistant/...",
    "gemma": "System role not supported",
}
KINDS = ("plain", "bytes", "trimmed", "sentencepiece")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def write_folder(folder, backend=None, **config):
    """A tokenizer's folder; config is what tokenizer_config.json holds."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} | config))
    return folder


def sentencepiece():
    """Llama-2 and Mistral style: spaces become ▁ in front of words, BOS set by the tokenizer."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, max_token_length=4,
                                  special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"])
    backend.train_from_iterator([*TEXT, "\n日本é🙂:\"[INST]?&/"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return backend


def byte_level(*, trim):
    """Llama-3 style: punctuation merged, BOS set by the tokenizer, offsets trimmed or not."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<s>", "</s>", "<|im_end|>"])
    backend.train_from_iterator([*TEXT, *['a :" b \n\n c  d'] * 9], trainer)
    backend.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=trim), processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])])
    return backend


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    backends = (None, byte_level(trim=False), byte_level(trim=True), sentencepiece())
    return {kind: Tokenizer(
        write_folder(place / kind, backend, **({} if backend is None else SPECIAL)))
        for kind, backend in zip(KINDS, backends, strict=True)}


@pytest.fixture
def templated(tmp_path):
    """A function from a template to a tokenizer that has it."""
    def build(template, **config):
        config = {**SPECIAL, **config, "chat_template": template}
        tokenizer = Tokenizer(write_folder(tmp_path / "t", sentencepiece(), **config))
        tokenizer.set_date("2024-07-26")
        return tokenizer
    return build


@pytest.mark.parametrize(("name", "talk", "prompt", "text"), STORED, ids=[s[0] for s in STORED])
def test_stored(templated, name, talk, prompt, text):
    tokenizer = templated(TEMPLATES[name])
    assert tokenizer.render(TALKS[talk], add_generation_prompt=prompt) == text


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering(templated, name, talk, prompt):
    peer = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(), chat_template=TEMPLATES[name], **SPECIAL)
    tokenizer = templated(TEMPLATES[name])
    if talk == "system" and name in NO_SYSTEM:
        with pytest.raises(InputError) as caught:
            tokenizer.render(TALKS[talk])
        assert str(caught.value) == (
            f"the chat template refuses this conversation ({NO_SYSTEM[name]}), {tokenizer.folder}, "
            "use --format raw")
        return
    expected = peer.apply_chat_template(TALKS[talk], tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.render(TALKS[talk], add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(("template", "text"), [
    ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
    ("{% generation %}\n{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
    ("{{ '<é&>' | tojson }}", '"<é&>"'),
    ("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  2\n ]\n}'),
    ("{{ bos_token }}{{ pad_token }}{{ add_bos_token is defined }}", "<s>False"),
    ("{{ tools is none and documents is none }}", "True"),
    ("{{ enable_thinking }}", "False"),  # a model that can think aloud answers at once
    ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}"
     "{% endif %}{{ i }}{% endfor %}", "02"),
    ("{% macro say(m) %}[{{ m.content }}]{% endmacro %}{% set ns = namespace(x='a') %}"
     "{% set ns.x = say(messages[0]) %}{{ ns.x }}", "[Hi]"),
    ({"default": "yes", "tool_use": "no"}, "yes"),
    ([{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}], "yes"),
])
def test_features(templated, template, text):
    assert templated(template, add_bos_token=True).render(TALKS["user"]) == text


def test_date(tmp_path, monkeypatch):
    """One tokenizer prints the day that it is given, with nothing read anew."""
    template = ("{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}"
                "{{ messages[0].content }} {{ day() }}"
                "{% if messages|length > 1 %} {{ messages[1].content }} {{ day() }}</s>{% endif %}")
    tokenizer = Tokenizer(write_folder(tmp_path / "t", byte_level(trim=False), **SPECIAL,
                                       chat_template=template))
    monkeypatch.setattr("support.tokenizer_files.read_text", None)
    for day, text in ((26, "26 Jul 2024"), (3, "03 Jul 2024")):
        tokenizer.set_date(f"2024-07-{day:02}")
        assert tokenizer.prompt_text("Hi", "chat") == f"Hi {text}"
        _, answer, n = tokenizer.encode_exchange("Hi", "The dog.", "chat")
        parts = tokenizer.decode(answer[:n]), tokenizer.decode(answer[n:])
        assert parts == (" The dog.", f" {text}")


@pytest.mark.parametrize("template", [
    "{{ raise_exception('first\nsecond') }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ range(10 ** 9) }}",
    "{{ messages[0].content + 1 }}",
    "{{ nothing.at.all }}",
    "{% include 'tokenizer.json' %}",
    "{% if %}\n\n",
])
def test_refused(templated, template):
    with pytest.raises(InputError) as caught:
        templated(template).render(TALKS["user"])
    assert "\n" not in str(caught.value) and str(caught.value).count(", ") >= 2


def test_which_template(tmp_path):
    """No template: the raw form. chat_template.jinja wins over tokenizer_config.json."""
    folder = write_folder(tmp_path / "t", chat_template=[{"name": "rag", "template": "no"}])
    tokenizer = Tokenizer(folder)
    assert tokenizer.default_format == "raw"
    assert tokenizer.prompt_text("a {b}?", "raw") == "\nHuman: a {b}?\nAssistant:"
    with pytest.raises(InputError, match="--format raw"):
        tokenizer.prompt_text("Hi", "chat")
    with pytest.raises(InputError, match=r"no default chat template, .*, use --format raw"):
        tokenizer.render(TALKS["user"])
    write_folder(folder, chat_template="config {{ messages[0].content }}")
    assert Tokenizer(folder).prompt_text("Hi", "chat") == "config Hi"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert Tokenizer(folder).prompt_text("Hi", "chat") == "file Hi"
    assert Tokenizer(folder).default_format == "chat"


# ---- encoding ----

PAIRS = [  # context, continuation, where the first continuation token's text starts
    ("Human: How do I?\nAssistant:", " I will not", 27),
    ("Human: How do I?\nAssistant: ", "I will not", 27),  # the space goes with the word
    ("The lazy dog.  ", " Answer", 13),
    ("user\n", "The dog", 5),
    ("user", "\n\nThe dog", 4),
    ("user", "\n", 4),
    ("", "The dog", 0),
    ("  ", "The dog", 0),
    ("naïve é", " 日本 🙂", 7),
    ("🙂", "🙂", 1),
]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("context", "continuation", "at"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_pair(kinds, kind, context, continuation, at, special):
    tokenizer = kinds[kind]
    ids, first = tokenizer.encode_pair(context, continuation, special=special)
    own_bos = int(special and kind != "plain")
    lead = 1 if not context.strip() and not own_bos else 0  # what an empty context becomes
    exact = kinds[kind.replace("trimmed", "bytes")].backend  # same tokens, true offsets
    whole = exact.encode(context + continuation, add_special_tokens=special)
    assert ids[lead:] == whole.ids and first >= 1
    # Counted by hand: the tokens that start before the seam, after BOS.
    assert first == lead + own_bos + sum(start < at for start, _ in whole.offsets[own_bos:])
    if lead:
        assert ids[0] == tokenizer.backend.token_to_id("<|im_end|>" if kind == "plain" else "<s>")


@pytest.mark.parametrize("kind", ["bytes", "trimmed"])
def test_merged_seam(kinds, kind):
    """One token across the seam belongs to the context; nothing left after it is an error."""
    ids, first = kinds[kind].encode_pair("a :", '" b', special=False)
    tokens = [kinds[kind].backend.id_to_token(i) for i in ids]
    assert tokens[first - 1:] == ['Ġ:"', "Ġb"]
    with pytest.raises(ValueError, match="merged"):
        kinds[kind].encode_pair("a :", '"', special=False)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_bos(kinds, kind):
    tokenizer = kinds[kind]
    bos = tokenizer.backend.token_to_id("<s>")
    for text in ("The dog", "<s>The dog", ""):
        assert tokenizer.encode(text).count(bos) == 1
    assert tokenizer.encode("The dog", special=False).count(bos) == 0
    for context in ("", "<s>", "<s>user"):
        ids, _ = tokenizer.encode_pair(context, " The dog", special=True)
        assert ids[0] == bos and ids.count(bos) == 1
    assert tokenizer.decode(tokenizer.encode("The dog")) == "The dog"


EXCHANGES = [  # template, what stands before the answer, end-of-turn tokens
    (None, " ", ["</s>"]),
    (TEMPLATES["mistral"], "", ["</s>"]),
    (TEMPLATES["mistral"].replace("{{ message[", "{{ ' ' + message["), " ", ["</s>"]),
    (TEMPLATES["llama-3"].replace("<|eot_id|>", "</s>"), "", ["</s>"]),
    ("{% for m in messages %}{{ ' ' + m.content }}{% endfor %}", " ", ["</s>"]),
    (CHATML, "", ["<|im_end|>"]),  # named by generation_config.json only
    ("{% for m in messages %}{{ m.content }}{% endfor %}", "", ["</s>"]),  # no end: eos_token
    # A base model's vocabulary has no such marks: the text after the answer would not end it.
    (CHATML.replace("<|im_", "<|"), "", ["</s>"]),
    ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
     "{% if add_generation_prompt %}### assistant:\n{% endif %}", "", ["</s>"]),
    ("{% for m in messages %}[{{ m.content }}]{% endfor %}"
     "{% if add_generation_prompt %}[{% endif %}", "", ["</s>"]),
]


@pytest.mark.parametrize(("template", "lead", "end"), EXCHANGES)
@pytest.mark.parametrize("kind", ["bytes", "trimmed", "sentencepiece"])
def test_exchange(kinds, tmp_path, capsys, kind, template, lead, end):
    backend = kinds[kind].backend
    folder = write_folder(tmp_path / "t", backend, **SPECIAL, chat_template=template)
    ends = [backend.token_to_id(token) for token in ("</s>", "<|im_end|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_ids == set(ends)
    format = tokenizer.default_format
    prompt, answer, n = tokenizer.encode_exchange("How?", "The dog\nis it.", format)
    assert answer[n:] == [backend.token_to_id(token) for token in end]
    assert tokenizer.answer_text("x", format) == lead + "x"
    text = tokenizer.prompt_text("How?", format) + lead + "The dog\nis it."
    whole = tokenizer.encode(text, special=format == "raw")
    assert prompt == tokenizer.encode_prompt("How?", format)
    merges = whole[:len(prompt)] != prompt  # "\n\n" by itself is one token, say
    assert backend.decode(prompt + answer[:n]) == backend.decode(whole)
    assert (prompt + answer[:n] == whole) != merges
    assert merges == capsys.readouterr().err.startswith("note: this template ends in")
    assert tokenizer.decode(answer) == ("" if kind == "sentencepiece" else lead) + "The dog\nis it."


def test_real(real_folder):
    """The seam on a real vocabulary: contexts and continuations at every character of a text."""
    tokenizer = Tokenizer(real_folder)
    text = 'Well: "Don\'t", she said.\n\n  1) naïve 日本 🙂  ok\n'
    whole = tokenizer.encode(text)
    for at in range(1, len(text) - 1):
        ids, first = tokenizer.encode_pair(text[:at], text[at:], special=True)
        assert ids == whole and text[:at].rstrip(" ").startswith(
            tokenizer.decode(ids[:first - 1]).rstrip("\ufffd"))
    for format, answer in (("raw", " Yes."), ("chat", "Yes.")):
        prompt, rest, n = tokenizer.encode_exchange("Hi", "Yes.", format)
        assert prompt == tokenizer.encode_prompt("Hi", format)
        assert rest == [*tokenizer.encode(answer), 2] and n == len(rest) - 1  # <|im_end|>
