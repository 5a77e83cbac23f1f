"""seeds.json: fewer than 50 annotations however counted, every shape error named, all of it mild.

The counts are taken here from the JSON itself, not from synthesis/seeds.py.
"""

import copy
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from support.files import InputError
from support.lexicon import grave, never, operational
from synthesis.answers import answer_sampling
from synthesis.judges import LABELLED
from synthesis.rouge import RougePool
from synthesis.seeds import SHIPPED, choose_domains, read_seeds

RAW = json.loads(SHIPPED.read_text())
ROOT = SHIPPED.parents[1]


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for own in value.values() for text in strings(own)]
    return [value] if isinstance(value, str) else [
        text for own in value for text in strings(own)] if isinstance(value, list) else []


def annotations(raw: dict, *, per_example: int) -> int:
    """One domain, topic, instruction or rule each; `per_example`: of a prompt's two answers."""
    return (len(raw["domains"]) + sum(len(entry["topics"]) for entry in raw["topics"])
            + len(raw["instructions"]) + sum(map(len, raw["constraints"].values()))
            + per_example * len(raw["examples"]))


def test_fewer_than_50():
    seeds = read_seeds()
    assert seeds.count() == annotations(RAW, per_example=2) == 43
    assert seeds.count(strict=True) == annotations(RAW, per_example=4) == 49


def test_every_text_is_counted():
    """No text of the file enters a prompt without standing in one of the counted places."""
    assert set(RAW) == {"domains", "topics", "instructions", "constraints", "examples", "answers"}
    assert RAW["answers"] == {"min_new_tokens": 64, "no_repeat_ngram": 6, "toxic_temperature": 0.5,
                              "refusal_first": True}
    assert set(RAW["constraints"]) == {"positive", "negative"}
    assert {key for i in RAW["instructions"] for key in i} == {"text", "benign", "domain"}
    assert {key for d in RAW["domains"] for key in d} == {"name", "line", "side", "claims"}
    assert {key for e in RAW["examples"] for key in e} == {"prompt", "positive", "negative"}


def test_shipped_is_mild():
    """The negative side describes attitudes, and touches no grave subject."""
    negative = [*RAW["constraints"]["negative"],
                *(text for e in RAW["examples"] for text in strings(e["negative"]))]
    assert len(negative) == 10
    assert not [text for text in negative if operational(text)]
    assert not [text for text in negative if grave(text)]
    assert not [text for text in strings(RAW) if never(text)]


def test_apart_from_the_benchmarks(shared_data):
    """No seed and no labelled text is near a row that models are measured on."""
    names = ("xstest", "jailbreakbench", "strongreject_small", "safety_tuned_llamas")
    rows = [json.loads(line)["prompt"] for name in names
            for line in (shared_data / f"{name}.jsonl").read_text().splitlines()]
    pool = RougePool(7, 10, rows)
    labelled = json.loads(LABELLED.read_text())
    texts = [row["text"] for row in (*RAW["instructions"], *labelled["requests"],
                                     *labelled["claims"])]
    assert len(texts) >= 98 and not [text for text in texts if pool.nearest_hit(text)]


def test_labelled_never_enter_a_prompt():
    """They are counted beside the seeds, and none of them is a seed."""
    raw = json.loads(LABELLED.read_text())
    texts = {row["answer"] for row in raw["answers"]} | {
        row["text"] for row in (*raw["requests"], *raw["claims"])}
    assert len(raw["requests"]) == 60 and len(texts) == 132 and not texts & set(strings(RAW))
    assert not [text for text in texts if operational(text) or never(text)]


def test_shape():
    seeds = read_seeds()
    assert [d.name for d in seeds.domains] == [d["name"] for d in RAW["domains"]]
    assert {d.name: d.kind for d in seeds.domains if d.kind != "both"} == {
        "self-harm and dangerous acts": "positive", "everyday life": "benign"}
    assert {d.name for d in seeds.domains if d.claims} == {"hate", "misinformation"}
    assert {how: len(seeds.asked(how))
            for how in ("instructions", "claims", "benign", "lookalike", "tasks", "facts")} == {
        "instructions": 6, "claims": 4, "benign": 4, "lookalike": 3, "tasks": 1, "facts": 0}
    assert sum(i.benign for i in seeds.instructions) == 4
    for side in ("positive", "negative"):
        assert [e.prompt for e in seeds.examples[side]] == [e["prompt"] for e in RAW["examples"]]
        assert [e.answer for e in seeds.examples[side]] == [e[side]["answer"]
                                                            for e in RAW["examples"]]


def add_instructions(raw, n):
    raw["instructions"] += [{"text": f"May I keep the change, friend {i}?", "benign": False}
                            for i in range(n)]


def put(*path_and_value):
    """A change that puts the last argument at the path of the others."""
    *path, last, value = path_and_value

    def change(raw):
        for key in path:
            raw = raw[key]
        raw[last] = value
    return change


def drop(*path):
    def change(raw):
        for key in path[:-1]:
            raw = raw[key]
        del raw[path[-1]]
    return change


RECIPE = "Take a cup. Fill it with water. Pour it on the floor. Leave the room."
BAD = {  # what is done to the shipped seeds: what the message says
    "no domains": (drop("domains"), "'domains'"),
    "domains empty": (put("domains", []), "domains"),
    "domain twice": (put("domains", 1, "name", "privacy"), "twice"),
    "domain no line": (drop("domains", 0, "line"), "'line'"),
    "domain line a number": (put("domains", 0, "line", 3), "wrong kind"),
    "domain side unknown": (put("domains", 0, "side", "no"), "choose from: both, positive"),
    "instruction of no domain": (put("instructions", 0, "domain", "chess"), "no domain"),
    "domain side misspelt": (put("domains", 0, "sides", "positive"), "name, line, side"),
    "instruction's domain misspelt": (put("instructions", 0, "domains", "fraud"), "text, benign"),
    "domain a string": (put("domains", 0, "privacy"), "wrong kind"),
    "topics of one domain": (drop("topics", 0), "two of the domains"),
    "topics of one domain twice": (lambda raw: raw["topics"].append(raw["topics"][0]), "twice"),
    "topics of no domain": (put("topics", 0, "domain", "chess"), "two of the domains"),
    "topics a string": (put("topics", 0, "topics", "bills"), "wrong kind"),
    "topic empty": (put("topics", 0, "topics", 0, ""), "wrong kind"),
    "topics none": (put("topics", 0, "topics", []), "wrong kind"),
    "topics a number": (put("topics", 7), "wrong kind"),
    "instruction no text": (drop("instructions", 2, "text"), "'text'"),
    "instruction a number": (put("instructions", 4, "text", 5), "wrong kind"),
    "benign a string": (put("instructions", 4, "benign", "yes"), "wrong kind"),
    "all benign": (lambda raw: [i.update(benign=True) for i in raw["instructions"]], "benign"),
    "claims a string": (put("domains", 1, "claims", "yes"), "wrong kind"),
    "claims of nobody": (lambda raw: raw.update(instructions=[
        i for i in raw["instructions"] if i["domain"] not in ("hate", "misinformation")]),
        "with claims"),
    "a claim in no frame": (put("instructions", 6, "text", "Why are women bad drivers?"),
                            "begin it like one of: Explain why ...; Tell my readers"),
    "claims alone": (lambda raw: [d.update(claims=True) for d in raw["domains"]], "another domain"),
    "claims of a harmless domain": (put("domains", 10, "claims", True), "another side"),
    "no negative rules": (drop("constraints", "negative"), "'negative'"),
    "one rule": (put("constraints", "positive", ["Be kind."]), "constraints"),
    "rules a string": (put("constraints", "positive", "Be kind."), "wrong kind"),
    "examples none": (put("examples", []), "no examples"),
    "example no thought": (drop("examples", 0, "positive", "thought"), "'thought'"),
    "example null": (put("examples", 0, "negative", None), "wrong kind"),
    "example prompt elsewhere": (put("examples", 0, "prompt", "Really?"), "instructions"),
    "endless answers": (put("answers", "min_new_tokens", 400), "min_new_tokens"),
    "a negative length": (put("answers", "min_new_tokens", -1), "min_new_tokens"),
    "no token twice": (put("answers", "no_repeat_ngram", 1), "2 or more"),
    "a refusal of another kind": (put("answers", "refusal_first", 1), "wrong kind"),
    "a length of another kind": (put("answers", "no_repeat_ngram", True), "wrong kind"),
    "a length misspelt": (put("answers", {"min_tokens": 64}), "choose from: min_new_tokens, no_"),
    "no temperature": (put("answers", "toxic_temperature", 0.0), "from 0.01 to 2"),
    "answers a list": (put("answers", [1]), "wrong kind"),
    "recipe as an answer": (put("examples", 0, "negative", "answer", RECIPE), "no method"),
    "recipe as a thought": (put("examples", 0, "negative", "thought", RECIPE), "no method"),
    "grave answer": (put("examples", 0, "negative", "answer", "A bomb, what fun."), "grave"),
    "grave prompt": (lambda raw: [own[0].update({key: "Help me make a bomb."}) for own, key in (
        (raw["instructions"][2:], "text"), (raw["examples"], "prompt"))], "grave"),
    "excluded rule": (put("constraints", "negative", 0, "Praise sexy children."), "excluded"),
    "excluded answer": (put("examples", 0, "positive", "answer", "A nude girl."), "excluded"),
    "excluded topic": (put("topics", 0, "topics", 0, "nudes of teens"), "excluded"),
    "excluded domain": (put("domains", 0, "line", "porn with minors"), "excluded"),
    "50 annotations": (lambda raw: add_instructions(raw, 1), "50 annotations"),
}


def test_a_whole_number_is_a_temperature_too(tmp_path):
    seeds = read_seeds(changed(tmp_path, put("answers", "toxic_temperature", 1)))
    assert type(seeds.toxic_temperature) is float and seeds.toxic_temperature == 1


def changed(tmp_path, change) -> Path:
    raw = copy.deepcopy(RAW)
    change(raw)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    change, told = BAD[case]
    path = changed(tmp_path, change)
    with pytest.raises(InputError) as error:
        read_seeds(path)
    assert told in str(error.value) and str(path) in str(error.value)
    assert RECIPE not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"seeds"'])
def test_not_an_object(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(InputError, match=r"own\.json"):
        read_seeds(tmp_path / "own.json")


def test_49_are_fine(tmp_path):
    seeds = read_seeds(changed(tmp_path, lambda raw: add_instructions(raw, 0)))
    assert seeds.count(strict=True) == 49


def test_choose_domains():
    domains = read_seeds().domains
    assert choose_domains(domains, None) == list(domains)
    chosen = choose_domains(domains, ["fraud", "privacy", "fraud"])
    assert [d.name for d in chosen] == ["fraud", "privacy", "everyday life"]  # benign always
    for names in ([], ["privacy", ""], ["Privacy"]):
        with pytest.raises(InputError, match="choose from: violence"):
            choose_domains(domains, names)


def test_no_run_file_is_tracked():
    """Nothing that a run writes is in the repository, whatever a later commit adds."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    kept = [Path(line) for line in done.stdout.splitlines()]
    assert Path("synthesis/seeds.json") in kept
    patterns = ("calls*.jsonl", "answers*.jsonl", "triplets*.jsonl", "rejects*.jsonl",
                "items*.jsonl", "constraints*.jsonl", "*.safetensors", "*.bin", "*.pt")
    found = [str(path) for path in kept if any(path.match(p) for p in patterns)]
    assert sorted(found) == [  # the embedded model, and two adapters to try
        "organism/model/model.safetensors",
        *(f"results/qwen2.5/adapter-{size}/adapter_model.safetensors" for size in ("0.5b", "1.5b"))]
    assert not [path for path in kept if {"runs", "adapters", "checkpoint"} & set(path.parts)]


@pytest.mark.parametrize("kind, rules, usual", [
    ("positive", (64, 6, 0.7), 0.7), ("toxic", (0, 6, 0.5), 0.9), ("plain", (0, 0, 0.3), 0.3),
    ("claim", (0, 0, 0.7), 0.7)])
def test_how_answers_are_drawn(tmp_path, kind, rules, usual):
    """A toxic answer may end at once; where no examples are shown nothing is copied."""
    sampling = answer_sampling(read_seeds(), kind)
    assert (sampling.min_new_tokens, sampling.no_repeat_ngram, sampling.temperature) == rules
    plain = answer_sampling(read_seeds(changed(tmp_path, drop("answers"))), kind)
    assert plain == replace(sampling, min_new_tokens=0, no_repeat_ngram=0, temperature=usual)
