"""llama.cpp's server in this process, from the wheel xllamacpp: token ids in, token ids out.

Its own prompt cache belongs to a slot: of many prompts behind one prefix that come at once, one
finds it computed and the others compute it again. What its server offers against that are files of
a slot's state, and they are used: the prefix is computed in one slot, saved, and restored in the
others, which replaces what an earlier call left there. Without a prefix nothing is looked up.
"""

import http.client
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import Unavailable
from benchmarks.to_gguf import write_gguf
from support.files import InputError

MOST_SLOTS = 256  # more rows wait for a slot (LLAMA_MAX_SEQ)
WORTH_SAVING = 32  # tokens of a prefix; computing a shorter one again costs less than a call
PATIENCE_S = 7200
GREEDY = {"temperature": 0, "top_k": 1, "samplers": ["top_k", "temperature"]}
DRAWN = {"top_k": 0, "min_p": 0, "repeat_penalty": 1, "samplers": ["top_p", "temperature"]}


class Server:
    """A folder's model in f16 or Q8_0, with as many slots as rows, on torch's number of threads.

    Its cache of keys and values (f16) is allocated here, so no call's memory shows it.
    """

    def __init__(self, model: Path, kind: str, *, slots: int, context: int):
        try:
            import gguf  # noqa: F401  what to_gguf needs
            import xllamacpp
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed") from None
        self.slots = min(slots, MOST_SLOTS)
        self.folder = tempfile.TemporaryDirectory()  # removed with this object
        path = Path(self.folder.name) / "model.gguf"
        write_gguf(model, path, kind)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel, settings.n_ctx = self.slots, self.slots * context
        for threads in (settings.cpuparams, settings.cpuparams_batch):
            threads.n_threads = torch.get_num_threads()
        settings.cache_ram_mib = 0  # else it also keeps copies of what slots held before
        settings.endpoint_slots, settings.slot_save_path = True, self.folder.name + "/"
        settings.timeout_read = settings.timeout_write = PATIENCE_S
        settings.verbosity = 0
        self.server = xllamacpp.Server(settings)

    def post(self, path: str, body: dict) -> dict | list:
        place = self.server.listening_address.removeprefix("http://")
        connection = http.client.HTTPConnection(place, timeout=PATIENCE_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise InputError(f"llama.cpp answers {answer.status}", text.decode(), "report it")
        return json.loads(text)

    def complete(self, prompts: list[list[int]], new_tokens: int, drawing: dict,
                 prefix: int) -> list[dict]:
        """Its answer to each prompt, with "tokens" and "timings"; the first `prefix` tokens of all
        prompts are the same. `drawing` has temperature and top_p, or is empty: greedy.
        """
        shared = prefix >= WORTH_SAVING
        if shared:
            self.post("/completion", {"prompt": prompts[0][:prefix], "n_predict": 1, "id_slot": 0,
                                      "cache_prompt": False})
            self.post("/slots/0?action=save", {"filename": "prefix"})
            for slot in range(1, self.slots):
                self.post(f"/slots/{slot}?action=restore", {"filename": "prefix"})
        sampler = {**DRAWN, **drawing} if drawing else GREEDY
        done = self.post("/completion", {
            "prompt": prompts, "n_predict": new_tokens, "ignore_eos": True, "return_tokens": True,
            "cache_prompt": shared, "seed": 0, **sampler})
        return sorted(done, key=lambda row: row["index"]) if isinstance(done, list) else [done]
