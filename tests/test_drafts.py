"""benchmarks/drafts.py with a scripted model: each arm answers the same requests by its rules."""

import re

from scribe import Scribe
from test_synth import long_folder, run  # noqa: F401 (fixtures)

from benchmarks import drafts
from synthesis import answers
from synthesis.session import PROMPTS


class Listening(Scribe):
    """Notes the rules of decoding that positive answers are written under."""

    def __init__(self):
        super().__init__()
        self.rules = []

    def __call__(self, block, seeds, setting):
        corrects = PROMPTS["answers"]["claim"].strip() in block[0].prompt
        if block[0].id.startswith("answers/positive") and not corrects:
            self.rules.append((setting.min_new_tokens, setting.no_repeat_ngram, len(block)))
        return super().__call__(block, seeds, setting)


def test_each_arm(run, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "run") == 0
    capsys.readouterr()
    model = Listening()
    monkeypatch.setattr("synthesis.ledger.local_model", lambda *_, **__: model)
    assert drafts.main([str(tmp_path / "run"), "--limit", "16"]) == 0
    table = re.findall(r"(?m)^\| ([a-z ]+) \| (\d+) \|", capsys.readouterr().out)
    assert [arm for arm, _ in table] == list(drafts.ARMS)
    assert len({n for _, n in table}) == 1 and 8 < int(table[0][1]) < 16  # some are claims
    # In blocks of 8 most calls of "both" are on record: the run itself has these rules.
    made = {rules: sum(n for *own, n in model.rules if tuple(own) == rules)
            for rules in ((0, 0), (0, 6), (64, 0), (64, 6))}
    assert [n == int(table[0][1]) for n in made.values()] == [True, True, True, False]
    assert made[64, 6] < 8
    assert len(answers.ATTEMPTS[True]) == 3
