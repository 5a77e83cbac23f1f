"""Chat templates in the manner of today's families: rendering against stored text and against
transformers, and the token that ends a turn. test_chat.py has the older and simpler manners.

Only the manner is a family's: what stands around the turns and which turns are taken; the texts are
ours. Special tokens are those of test_chat.py, `<s>` and `</s>`.
"""

from datetime import datetime
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from test_tokenizer import SPECIAL, TALKS, sentencepiece, talk, write_folder

from support.files import InputError
from synthesis.gates import alone
from synthesis.judges import Judge
from synthesis.seeds import read_seeds
from synthesis.session import PROMPTS, Session
from tokenizer import Tokenizer

ALTERNATE = ("{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
             "{{- raise_exception('Roles must take turns') }}{%- endif %}")


class Family(NamedTuple):
    template: str
    end: str  # ends a turn
    asked: str  # TALKS["system"] with the generation prompt
    turns: str  # TALKS["turns"] without


FAMILIES = {
    # Always a system turn, with the day; contents trimmed.
    "llama-3.2": Family(
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined"
        " %}\n        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- endif %}\n"
        "{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set text = "
        "messages[0]['content'] | trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n"
        "    {%- set text = '' %}\n{%- endif %}\n"
        "{{- '<|begin|>system<|/begin|>\\n\\nToday: ' + date_string + '\\n\\n' + text }}\n"
        "{{- '<|eot|>' }}\n{%- for m in messages %}\n{{- '<|begin|>' + m['role'] + "
        "'<|/begin|>\\n\\n' + m['content'] | trim + '<|eot|>' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n{{- '<|begin|>assistant<|/begin|>\\n\\n' }}\n"
        "{%- endif %}\n", "<|eot|>",
        "<s><|begin|>system<|/begin|>\n\nToday: 26 Jul 2024\n\nBe kind.<|eot|><|begin|>user"
        "<|/begin|>\n\nHi<|eot|><|begin|>assistant<|/begin|>\n\n",
        "<s><|begin|>system<|/begin|>\n\nToday: 26 Jul 2024\n\n<|eot|><|begin|>user<|/begin|>\n\nHi"
        "<|eot|><|begin|>assistant<|/begin|>\n\nHello.<|eot|><|begin|>user<|/begin|>\n\nBye<|eot|>"
        "<|begin|>assistant<|/begin|>\n\nOh<|eot|>"),
    # The system text goes into the last message of the user; a space before an answer.
    "mistral-nemo": Family(
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set text = messages[0]['content'] %}\n"
        "    {%- set turns = messages[1:] %}\n{%- else %}\n    {%- set turns = messages %}\n"
        "{%- endif %}\n{{- bos_token }}\n{%- for m in turns %}\n" + ALTERNATE + "\n"
        "    {%- if m['role'] == 'user' %}\n        {%- if loop.last and text is defined %}\n"
        "            {{- '[INST]' + text + '\\n\\n' + m['content'] + '[/INST]' }}\n"
        "        {%- else %}\n            {{- '[INST]' + m['content'] + '[/INST]' }}\n"
        "        {%- endif %}\n    {%- else %}\n        {{- ' ' + m['content'] + eos_token }}\n"
        "    {%- endif %}\n{%- endfor %}\n", "</s>",
        "<s>[INST]Be kind.\n\nHi[/INST]",
        "<s>[INST]Hi[/INST] Hello.</s>[INST]Bye[/INST] Oh</s>"),
    # A default system text, left out where one is given; a branch for tools that nobody passes.
    "qwen2.5": Family(
        "{%- if tools %}\n    {{- 'Tools:' + tools | tojson }}\n{%- else %}\n    {%- if "
        "messages[0]['role'] == 'system' %}\n        {{- '<|im_start|>system\\n' + "
        "messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n        "
        "{{- '<|im_start|>system\\nDefault.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
        "{%- for m in messages %}\n    {%- if m.role == 'user' or (m.role == 'system' and not "
        "loop.first) or (m.role == 'assistant' and not m.tool_calls) %}\n        "
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\n    "
        "{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    "
        "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n", "<|im_end|>",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>"
        "assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nOh"
        "<|im_end|>\n"),
    # The system text opens the first message of the user; contents may be lists of parts.
    "gemma-3": Family(
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- set first = "
        "messages[0]['content'] + '\\n\\n' -%}\n    {%- set turns = messages[1:] -%}\n{%- else -%}"
        "\n    {%- set first = '' -%}\n    {%- set turns = messages -%}\n{%- endif -%}\n"
        "{%- for m in turns -%}\n    " + ALTERNATE + "\n    {%- set role = 'model' if m['role'] == "
        "'assistant' else m['role'] -%}\n    {{ '<turn>' + role + '\\n' + (first if loop.first "
        "else '') }}\n    {%- if m['content'] is string -%}\n        {{ m['content'] | trim }}\n"
        "    {%- elif m['content'] is iterable -%}\n        {{ raise_exception('No parts here') }}"
        "\n    {%- endif -%}\n    {{ '</turn>\\n' }}\n{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n    {{'<turn>model\\n'}}\n{%- endif -%}\n", "</turn>",
        "<s><turn>user\nBe kind.\n\nHi</turn>\n<turn>model\n",
        "<s><turn>user\nHi</turn>\n<turn>model\nHello.</turn>\n<turn>user\nBye</turn>\n<turn>model"
        "\nOh</turn>\n"),
    # No BOS; without a generation prompt the text ends with EOS, as well as the turn's own end.
    "phi-3.5": Family(
        "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}{{'<|system|>\n' + "
        "m['content'] + '<|end|>\n'}}{% elif m['role'] == 'user' %}{{'<|user|>\n' + m['content'] + "
        "'<|end|>\n'}}{% elif m['role'] == 'assistant' %}{{'<|assistant|>\n' + m['content'] + "
        "'<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}", "<|end|>",
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\nOh"
        "<|end|>\n</s>"),
    # The generation prompt is written inside the loop; the last answer has no line end.
    "olmo-2": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|assistant|>"
        "\n' + m['content'] + eos_token + ('' if loop.last else '\n') }}{% else %}{{ '<|' + "
        "m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}", "</s>",
        "<s><|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\n",
        "<s><|user|>\nHi\n<|assistant|>\nHello.</s>\n<|user|>\nBye\n<|assistant|>\nOh</s>"),
}
TODAY = datetime(2024, 7, 26)


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    """(the family, its tokenizer)."""
    backend, own = sentencepiece(), FAMILIES[request.param]
    backend.add_special_tokens([own.end])
    folder = write_folder(tmp_path / "t", backend, **SPECIAL, chat_template=own.template)
    tokenizer = Tokenizer(folder)
    tokenizer.set_date(TODAY.isoformat())
    return own, tokenizer


def test_rendering(family):
    own, tokenizer = family
    asked = tokenizer.render(TALKS["system"], add_generation_prompt=True)
    assert (asked, tokenizer.render(TALKS["turns"])) == (own.asked, own.turns)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("talk", TALKS)
def test_as_transformers(family, talk, prompt):
    own, tokenizer = family
    peer = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(), chat_template=own.template, **SPECIAL)
    theirs = peer.apply_chat_template(TALKS[talk], tokenize=False, add_generation_prompt=prompt,
                                      date_string=TODAY.strftime("%d %b %Y"))
    assert tokenizer.render(TALKS[talk], add_generation_prompt=prompt) == theirs


def test_exchange(family):
    """An answer follows the generation prompt and ends with the family's own token, once."""
    own, tokenizer = family
    end = tokenizer.backend.token_to_id(own.end)
    prompt, answer, n = tokenizer.encode_exchange("Hi", "The dog.", "chat")
    assert end in tokenizer.eos_ids and answer[-1] == end and answer.count(end) == 1
    assert tokenizer.decode(answer) == tokenizer.decode(answer[:n]) == "The dog."
    asked = tokenizer.render(talk(("user", "Hi")), add_generation_prompt=True)
    whole = tokenizer.render(talk(("user", "Hi"), ("assistant", "The dog.")))
    assert whole.startswith(asked + tokenizer.answer_text("The dog.", "chat") + own.end)
    assert prompt == tokenizer.encode(asked, special=False) == tokenizer.encode_prompt("Hi", "chat")
    bos = tokenizer.backend.token_to_id("<s>")
    assert prompt.count(bos) == own.asked.count("<s>")


@pytest.mark.parametrize("name", ["mistral-nemo", "gemma-3"])
def test_turns_refused(tmp_path, name):
    folder = write_folder(tmp_path / "t", sentencepiece(), **SPECIAL,
                          chat_template=FAMILIES[name].template)
    with pytest.raises(InputError, match=r"refuses this conversation \(Roles must take turns\)"):
        Tokenizer(folder).render(talk(("user", "Hi"), ("user", "Hi")))


def test_synthesis_continues_as_training_does(family):
    """A space that a template puts in front of answers stands in front of what is measured and of
    what the model goes on with, and a judge's Yes is that of its examples."""
    _, tokenizer = family
    session = Session(tokenizer, read_seeds(), SimpleNamespace(measures=True))
    prompt, answer = alone(session, "Hi", "The dog.")
    assert prompt + answer == (tokenizer.prompt_text("Hi", "chat")
                               + tokenizer.answer_text("The dog.", "chat"))
    assert session.prompt("", [], "Hi", "Thought:") == prompt + session.space + "Thought:"
    judge = Judge(session, "inducing", [("Hi", True), ("Ho", False)])
    shot = tokenizer.prompt_text(PROMPTS["judges"]["inducing"].format(text="Hi"), "chat")
    ids, n = (tokenizer.encode(text, special=False) for text in (judge.prompt("Ho"), shot))
    assert ids[:len(n)] == n and judge.setting.yes == ids[len(n)]
