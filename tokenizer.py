"""Text to token ids and back: tokenizer.json, chat templates, the raw form of base models.

The post-processor of tokenizer.json decides about BOS, not the flags add_bos_token and
add_eos_token, as in transformers 5 (tokenization_utils_tokenizers.py); templates are rendered as in
its utils/chat_template_utils.py.

What differs from transformers 5.23 on purpose:
1. Its own classes (LlamaTokenizer, GPT2Tokenizer) keep a file's vocabulary and replace its rules of
   splitting and of leading spaces. Here the file decides, as in transformers 4 and in training.
2. BOS is never written twice, and an EOS that a file adds to every text is left out.
3. A named token that tokenizer.json lacks gets no new id: the model has no row for it.
4. Templates get enable_thinking=False: a model with two ways to answer (Qwen3) does so at once.
   Where a prompt opens a thought all the same (DeepSeek-R1), training ends it before the answer.
5. The special token that a template writes after an answer ends it, listed or not (Gemma 2)."""

import contextlib
import math
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path

from support import tokenizer_files as files
from support.decoding import closing, opened
from support.files import InputError, refusing
from support.limits import LONGEST, bounded, careful, refuse_long
from support.progress import say

RAW = {"system": "{}", "user": "\nHuman: {}\nAssistant:", "assistant": " {}"}  # HHH's own form
RAW_STOP = "\nHuman:"  # a base model goes on with the person's next message
PROBE, PROBE_ANSWER = "\u2063prompt\u2063", "\u2063answer\u2063"  # no template writes these itself


class Tokenizer:
    """A folder's tokenizer.json, special tokens and template; InputError where one is damaged."""

    def __init__(self, folder: Path):
        self.folder = folder = Path(folder)
        self.backend = careful(files.read_backend, folder)(folder)
        self._encode = partial(careful(self.backend.encode, folder), add_special_tokens=False)
        self._decode = careful(self.backend.decode, folder)
        config = files.read_optional(folder / "tokenizer_config.json")
        self.special = files.read_special(folder, config, self.backend)  # {"bos_token": "<s>", ...}
        bos, eos = (self.backend.token_to_id(self.special.get(name, ""))
                    for name in ("bos_token", "eos_token"))
        self.eos_ids = files.read_eos_ids(folder, self.special, eos, self.backend)
        self.pad_id = min(self.eos_ids)  # any row of the embedding will do: nothing looks at a pad
        probe = self._encode("a", add_special_tokens=True)
        self._bos = probe.ids[:[*probe.special_tokens_mask, 0].index(0)]  # BOS, or nothing
        with refusing((RecursionError, MemoryError, SyntaxError, ValueError, TimeoutError),
                      "chat template does not parse", folder, "repair it"), bounded():
            self.template, self.today = files.read_template(folder, config), datetime.now()
        with contextlib.suppress(InputError):  # reported when the template is used
            self.eos_ids |= set(self._encode(self._answer_frame[-1]).ids[-1:])
        self.eos_id = min(self.eos_ids) if eos is None else eos
        self.start_id = self.eos_id if bos is None else bos  # what a first token follows
        rows = files.read_optional(folder / "config.json").get("vocab_size")
        self.rows = rows if isinstance(rows, int) else math.inf  # of the model's embedding
        # An added token may lack its row while no text has it, as Gemma 3's for images do.
        self._check_rows([*self.backend.get_vocab(with_added_tokens=False).values(), *self.eos_ids])
        self._say_once = cache(say)

    @cached_property
    def default_format(self) -> str:
        return "chat" if self.template else files.raw_format(self.folder)

    def set_date(self, began: str) -> None:
        """What a template that prints the date prints: a run's first day, also when it resumes."""
        self.today = datetime.fromisoformat(began)
        vars(self).pop("_answer_frame", None)  # it was read from the template with the other date

    def _check_rows(self, ids: list[int]) -> list[int]:
        """The same ids; InputError where one has no row in the model's embedding."""
        if (top := max(ids, default=0)) >= self.rows:
            message = f"token {top} ({self.backend.id_to_token(top)!r}) has no row in the model"
            raise InputError(f"{message} (vocab_size {self.rows})", self.folder,
                             "use the model's own tokenizer.json")
        return ids

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds the tokenizer's own BOS, never a second one."""
        return self._check_rows(self._bos_for(text, special) + self._encode(text).ids)

    def _bos_for(self, text: str, special: bool) -> list[int]:
        bos = self.special.get("bos_token")
        return self._bos if special and not (bos and text.startswith(bos)) else []

    def decode(self, ids) -> str:
        """The text without special tokens; a character whose bytes are not all there is U+FFFD."""
        return self._decode(list(ids), skip_special_tokens=True)

    def encode_pair(self, context: str, continuation: str, *, special: bool):
        """(ids, index of the first token that begins in the continuation). Both are encoded as one
        text, as lm-eval's `_encode_pair` does: apart, the tokens at the seam would change. Spaces
        at the end of the context go to the continuation, where tokenizers put them. An empty
        context becomes BOS (EOS where there is none), so that the first token has something to
        follow. Raises ValueError where no token begins in the continuation."""
        end, bos = len(context.rstrip(" ")), self._bos_for(context + continuation, special)
        joint = self._encode(context + continuation)
        first = sum(start < end for start, _ in joint.offsets)
        if first == len(joint.ids):
            raise ValueError("the continuation merged into the context's last token")
        if not bos and first == 0:
            bos = [self.start_id]
        return self._check_rows(bos + joint.ids), len(bos) + first

    def render(self, messages: list[dict], *, add_generation_prompt: bool = False) -> str:
        """The chat template filled in. messages: [{"role": ..., "content": ...}, ...]. A system
        turn is never moved elsewhere: a template that has none raises at it (Gemma), which is an
        InputError here, or leaves it out, which is for the caller to see."""
        if self.template is None:
            raise InputError("no default chat template", self.folder, "use --format raw")
        fill = partial(self.template.render, tools=None, documents=None, enable_thinking=False,
                       add_generation_prompt=add_generation_prompt,
                       strftime_now=self.today.strftime, **self.special)
        fault = "the chat template refuses this conversation", self.folder, "use --format raw"
        try:
            with bounded():
                text = fill(messages=messages)
        except Exception:  # a program of others: anything may go wrong in it
            # Its own message may quote a text: it is shown only if a harmless text causes it too.
            with refusing(Exception, *fault), bounded():
                fill(messages=[{**m, "content": "Hello"} for m in messages])
            raise InputError(*fault) from None
        return refuse_long(text, self.folder)

    def prompt_text(self, prompt: str | list[dict], format: str) -> str:
        """All that stands before the answer, in either format. `prompt`: what the user says, or all
        messages up to there. InputError where the template leaves one of them out."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if format == "raw":
            return refuse_long("".join(RAW[m["role"]].format(m["content"]) for m in messages),
                               self.folder)
        text = self.render(messages, add_generation_prompt=True)
        return files.with_all(messages, text, self.folder)

    def encode_prompt(self, prompt: str | list[dict], format: str) -> list[int]:
        # A template writes its own BOS; the raw form leaves it to the tokenizer.
        return self.encode(self.prompt_text(prompt, format), special=format == "raw")

    def answer_text(self, answer: str, format: str) -> str:
        """An answer as it follows `prompt_text`: behind the space that some templates put first, or
        the end of an empty thought that others begin. An answer with its thought goes on in it."""
        lead, thought, _ = (" ", "", "") if format == "raw" else self._answer_frame
        in_thought = thought and answer.startswith(thought)
        return answer[len(thought):] if in_thought else lead + answer

    def encode_exchange(self, prompt: str | list[dict], answer: str, format: str):
        """A training example: (prompt ids, answer ids, how many of these are the answer's own). The
        prompt's ids are those that generation asks with (`encode_prompt`). Behind the answer's own
        ids stands what the template writes after an answer; the end-of-turn token is the last.
        Raises ValueError where no encoding of the answer continues the prompt's ids."""
        if len(answer) > LONGEST:  # a long prompt is refused by prompt_text
            raise ValueError(f"a text of {len(answer)} characters")
        context = self.prompt_text(prompt, format)
        context_ids = self._encode(context).ids
        prompt_ids = self._check_rows(self._bos_for(context, format == "raw") + context_ids)
        if not prompt_ids:
            raise ValueError("the chat template leaves the prompt out")
        # Stripped: white space in front would merge into the prompt's last token.
        text = self.answer_text(answer.strip(), format)
        end = self._answer_frame[-1] if format == "chat" else ""
        decode = partial(self._decode, skip_special_tokens=False)
        expected = decode(self._encode(context + text + end).ids)
        # Encoded jointly, the answer may merge into the prompt's last token. Then it is encoded by
        # itself; or behind a line end, where the tokenizer puts a space in front of every text.
        for front in (context, "", "\n"):
            joint, first = self._encode(front + text + end), len(self._encode(front).ids)
            if decode(context_ids + joint.ids[first:]) == expected:
                break
        else:
            raise ValueError("the answer merges into the prompt's last token")
        if front != context:
            last = "a space" if context.endswith(" ") else repr(context[-1])
            self._say_once(f"note: this template ends in {last}: answers are encoded apart from it")
        ids = self._check_rows(joint.ids[first:])
        n_own = sum(start < len(front + text) for start, _ in joint.offsets[first:])
        return prompt_ids, ids if end else [*ids, self.eos_id], n_own

    @cached_property
    def _answer_frame(self) -> tuple[str, str, str]:
        """(lead, thought, end): what the template writes between its generation prompt and an
        answer (a space in some); the mark of a thought that the prompt leaves open; what it writes
        from the answer's end through the end-of-turn token. Each may be ""."""
        prompt = self.prompt_text(PROBE, "chat")
        talk = [{"role": role, "content": text}
                for role, text in (("user", PROBE), ("assistant", PROBE_ANSWER))]
        whole = files.with_all(talk, self.render(talk), self.folder)
        before, _, after = whole.partition(PROBE_ANSWER)
        lead = before[len(prompt):] if before.startswith(prompt) else ""
        lead += closing(prompt + lead)  # where past answers are written without their thoughts
        special = {t.content for t in self.backend.get_added_tokens_decoder().values() if t.special}
        tail = self._encode(after)
        # By its text: a mark that the vocabulary lacks may be <unk>, which is special and no end.
        end = next((end for i, (begin, end) in zip(tail.ids, tail.offsets, strict=True)
                    if i in self.eos_ids or after[begin:end].strip() in special), 0)
        return lead, opened(prompt), after[:end]
