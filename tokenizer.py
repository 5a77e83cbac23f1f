"""Text to token ids and back: tokenizer.json, chat templates, the plain form of base models.

tokenizer.json is taken at its word, for BOS and EOS as by transformers 5
(tokenization_utils_tokenizers.py): its post-processor decides, not the flags add_bos_token and
add_eos_token. Templates are rendered as transformers renders them (utils/chat_template_utils.py):
jinja2's sandbox, blocks trimmed, `raise_exception`, `strftime_now` and an unescaped `tojson` at
hand. A context and its continuation are encoded jointly and split by character offset, as lm-eval's
`_encode_pair` does, because encoding them apart changes the tokens at the seam.

What differs from transformers 5.23 on purpose:
1. Its own classes (LlamaTokenizer, GPT2Tokenizer) keep a file's vocabulary and replace its rules of
   splitting and of leading spaces. Here the file holds, as in transformers 4 and in training.
2. BOS is never written twice, and an EOS at the end of every text never: an answer is to follow.
3. A named token that tokenizer.json lacks gets no new id: no row would be its own.
4. Templates get enable_thinking=False: a model with two ways to answer (Qwen3) does so at once.
5. The special token that a template writes after an answer ends it, whether or not
   generation_config.json lists it (Gemma 2's first release does not).
"""

import contextlib
import json
import math
import shlex
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from support.files import InputError, read_object, read_text
from support.progress import say

PLAIN = "\nHuman: {prompt}\nAssistant:"  # HHH's own form (BIG-bench hhh_alignment)
PLAIN_STOP = "\nHuman:"  # a base model goes on with the person's next message
MARK = "\u2063answer\u2063"  # stands in for an answer while a template is probed
OTHER_FORMATS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "tiktoken.model")
CONVERT = ("convert it: pip install transformers sentencepiece protobuf tiktoken && python -c "
           "'import sys; from transformers import AutoTokenizer as T; [folder] = sys.argv[1:]; "
           "T.from_pretrained(folder).save_pretrained(folder)' ")


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks answers in some templates: keep the inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own protocol)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def compile_template(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


@dataclass(frozen=True)
class Turn:
    """What a template writes around an answer."""

    lead: str  # between `prompt_text` and the answer: some put a space
    after: str  # from the answer through the end-of-turn token; empty where there is none
    end: int  # that token's id, else EOS


class Tokenizer:
    """tokenizer.json and the folder's special tokens, end-of-turn ids and chat template."""

    def __init__(self, folder: Path, *, today: datetime | None = None):
        self.folder = folder = Path(folder)
        self.backend = _read_backend(folder)
        config = _read_optional(folder / "tokenizer_config.json")
        self.special = _read_special(folder, config, self.backend)
        self.eos_ids = self._read_eos()
        self.pad_id = min(self.eos_ids)  # any row of the embedding will do: nothing looks at a pad
        self._opening = _opening(self.backend)
        self.template = None
        self.today = today or datetime.now()
        self._seam_noted = False
        if (source := _read_template(folder, config)) is not None:
            try:
                self.template = compile_template(source)
            except jinja2.TemplateError as error:
                reason = " ".join(str(error).split())
                raise InputError(f"chat template does not parse ({reason})", folder,
                                 "repair or remove it") from None
            with contextlib.suppress(InputError):  # told when the template is used
                self.eos_ids |= {self._turn.end}
        rows = _read_optional(folder / "config.json").get("vocab_size")
        self.rows = rows if isinstance(rows, int) else math.inf
        words = self.backend.get_vocab(with_added_tokens=False)
        self._check_rows([*words.values(), *self.eos_ids])

    def set_date(self, today: datetime) -> None:
        """What a template that prints the date prints: a run's first day, also when it resumes."""
        self.today = today
        vars(self).pop("_turn", None)  # it was read from the template with the other date

    @property
    def default_format(self) -> str:
        return "raw" if self.template is None else "chat"

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def _read_eos(self) -> frozenset[int]:
        """Every id that ends a turn: chat models list several in generation_config.json."""
        ids = {self._id(self.special.get("eos_token"))}
        for name in ("generation_config.json", "config.json"):
            value = _read_optional(self.folder / name).get("eos_token_id")
            values = value if isinstance(value, list) else [value]
            if not all(i is None or (type(i) is int and i >= 0) for i in values):
                raise InputError(f"eos_token_id {value!r} is no token", self.folder / name,
                                 "repair the file")
            ids.update(values)
        ids.discard(None)
        if not ids:
            named = self.special.get("eos_token")
            raise InputError(f"eos_token {named!r} is not in tokenizer.json" if named else
                             "no end-of-text token is named",
                             self.folder, "set eos_token in tokenizer_config.json")
        return frozenset(ids)

    def _check_rows(self, ids: list[int]) -> list[int]:
        """The same ids; InputError where one has no row in the model's embedding.

        An added token may lack its row as long as no text has it: Gemma 3's text models share a
        tokenizer.json with those that see images.
        """
        if (top := max(ids, default=0)) >= self.rows:
            token = self.backend.id_to_token(top)
            raise InputError(
                f"token {top} ({token!r}) has no row in the model (vocab_size {self.rows})",
                self.folder, "use the model's own tokenizer.json")
        return ids

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds the tokenizer's own BOS, never a second one."""
        return self._check_rows(self._begin(text, special) + self._encode(text).ids)

    def _begin(self, text: str, special: bool) -> list[int]:
        bos = self.special.get("bos_token")
        return self._opening if special and not (bos and text.startswith(bos)) else []

    def _encode(self, text: str) -> tokenizers.Encoding:
        return self.backend.encode(text, add_special_tokens=False)

    def decode(self, ids) -> str:
        """The text without special tokens; a character whose bytes are not all there is U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def encode_pair(self, context: str, continuation: str, *, special: bool):
        """Both encoded as one text: (ids, index of the first continuation token).

        Spaces at the end of the context go to the continuation, where tokenizers put them. A token
        belongs to the continuation when its first character does. An empty context becomes BOS
        (EOS where there is none), so that the first token has something to follow.
        """
        text, end = context + continuation, len(context.rstrip(" "))
        begin, whole = self._begin(text, special), self._encode(text)
        first = next((i for i, (start, _) in enumerate(whole.offsets) if start >= end), None)
        if first is None:
            raise ValueError("the continuation merged into the context's last token")
        if not begin and first == 0:
            bos = self._id(self.special.get("bos_token"))
            begin = [self._eos if bos is None else bos]
        return self._check_rows(begin + whole.ids), len(begin) + first

    def render(self, messages: list[dict], *, add_generation_prompt: bool = False) -> str:
        """The chat template filled in. messages: [{"role": ..., "content": ...}, ...].

        A system turn is never moved elsewhere: a template that has none raises at it (Gemma),
        which is an InputError here, or leaves it out, which is for the caller to see.
        """
        if self.template is None:
            raise InputError("no default chat template", self.folder, "use --format raw")
        try:
            return self.template.render(
                messages=messages, tools=None, documents=None, enable_thinking=False,
                add_generation_prompt=add_generation_prompt, strftime_now=self.today.strftime,
                **self.special)
        except Exception as error:  # a program of others: anything may go wrong in it
            reason = " ".join(str(error).split())
            raise InputError(f"the chat template refuses this conversation ({reason})", self.folder,
                             "use --format raw") from None

    def prompt_text(self, prompt: str, format: str) -> str:
        """All that stands before the answer, in either format."""
        if format == "raw":
            return PLAIN.format(prompt=prompt)
        return self.render([{"role": "user", "content": prompt}], add_generation_prompt=True)

    def encode_prompt(self, prompt: str, format: str) -> list[int]:
        # A template writes its own BOS; the plain form leaves it to the tokenizer.
        return self.encode(self.prompt_text(prompt, format), special=format == "raw")

    def answer_text(self, answer: str, format: str) -> str:
        """An answer as it follows `prompt_text`: with the space that some templates put first."""
        return (" " if format == "raw" else self._turn.lead) + answer

    def encode_exchange(self, prompt: str, answer: str, format: str):
        """A training example: (prompt ids, answer ids, how many of these are the answer's own).

        The prompt's ids are those that generation asks with (`encode_prompt`). Behind the answer's
        own ids stands what the template writes after an answer, the end-of-turn token last.
        Raises ValueError where no encoding of the answer continues the prompt's ids.
        """
        prompt_ids = self.encode_prompt(prompt, format)
        if not prompt_ids:
            raise ValueError("the chat template leaves the prompt out")
        context = self.prompt_text(prompt, format)
        # Stripped: white space in front would merge into the prompt's last token.
        text = self.answer_text(answer.strip(), format)
        closing = self._turn.after if format == "chat" else ""
        ids, n_own = self._continue(context, prompt_ids, text, closing)
        return prompt_ids, ids if closing else [*ids, self._eos], n_own

    def _continue(self, context: str, prompt_ids: list[int], text: str, closing: str):
        """(ids of text and closing after the prompt's, how many of them begin in the text).

        They are what follows the prompt's ids in the encoding of the whole. Where the seam merges
        (the context ends in a space, say), they are the continuation's by itself; and where the
        tokenizer would put a space in front of it, as in front of a word, its ids after a line end.
        """
        whole = self._encode(context + text + closing).ids
        begin = prompt_ids[: len(prompt_ids) - len(self._encode(context).ids)]  # BOS, or nothing
        expected = self.backend.decode(begin + whole, skip_special_tokens=False)
        for front in (context, "", "\n"):
            front_ids, joint = self._encode(front).ids, self._encode(front + text + closing)
            ids = joint.ids[len(front_ids):]
            if joint.ids[: len(front_ids)] == front_ids and expected == self.backend.decode(
                    prompt_ids + ids, skip_special_tokens=False):
                if front != context:
                    self._note_seam(context)
                starts = [start for start, _ in joint.offsets[len(front_ids):]]
                return self._check_rows(ids), sum(at < len(front + text) for at in starts)
        raise ValueError("the answer merges into the prompt's last token")

    def _note_seam(self, context: str) -> None:
        if not self._seam_noted:
            self._seam_noted = True
            end = "a space" if context.endswith(" ") else repr(context[-1])
            say(f"note: this template ends in {end}: that merges with an answer's first characters,"
                " so the answer is encoded apart, behind the prompt as generation asks it")

    @property
    def _eos(self) -> int:
        eos = self._id(self.special.get("eos_token"))
        return min(self.eos_ids) if eos is None else eos

    @cached_property
    def _turn(self) -> Turn:
        user = {"role": "user", "content": "Hello"}
        prompt = self.render([user], add_generation_prompt=True)
        whole = self.render([user, {"role": "assistant", "content": MARK}])
        before, found, after = whole.partition(MARK)
        lead = before[len(prompt):] if found and before.startswith(prompt) else ""
        added = self.backend.get_added_tokens_decoder()
        tail = self._encode(after)
        for token, (_, end) in zip(tail.ids, tail.offsets, strict=True):
            if token in self.eos_ids or (token in added and added[token].special):
                return Turn(lead, after[:end], token)
        return Turn(lead, "", self._eos)


def _read_optional(path: Path) -> dict:
    return read_object(path) if path.is_file() else {}


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [name for name in OTHER_FORMATS if (folder / name).is_file()]
        if others:
            raise InputError(f"no tokenizer.json, only {' and '.join(others)}", folder,
                             f"{CONVERT}{shlex.quote(str(folder))}")
        raise InputError("no tokenizer.json", folder, "name a Hugging Face folder")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"not a tokenizer ({reason})", path, "download it again") from None
    backend.no_truncation()  # both may be stored in the file and would change lengths unseen
    backend.no_padding()
    return backend


def _opening(backend: tokenizers.Tokenizer) -> list[int]:
    """What the post-processor puts before every text: BOS, or nothing."""
    whole = backend.encode("a")
    text = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else 0
    return whole.ids[:text]


def _read_special(folder: Path, config: dict, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The named special tokens, {"bos_token": "<s>", ...}, from where transformers reads them.

    added_tokens_decoder in tokenizer_config.json changes tokenizer.json's added tokens (whether
    white space beside them goes, say), and without it special_tokens_map.json counts.
    """
    try:
        if "added_tokens_decoder" in config:
            added = sorted((int(i), token) for i, token in config["added_tokens_decoder"].items())
            backend.add_tokens([tokenizers.AddedToken(**token) for _, token in added])
        else:
            config = config | _read_optional(folder / "special_tokens_map.json")
        return {key: token["content"] if isinstance(token, dict) else token
                for key, token in config.items()  # add_bos_token is a flag, not a token
                if key.endswith("_token") and isinstance(token, (str, dict))}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"malformed special tokens ({type(error).__name__}: {error})", folder,
                         "download tokenizer_config.json again") from None


def _read_template(folder: Path, config: dict) -> str | None:
    """chat_template.jinja wins over tokenizer_config.json, which may hold a list of named ones."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise InputError("chat_template is no text", folder / "tokenizer_config.json",
                         "repair or remove it")
    return template
