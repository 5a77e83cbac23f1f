"""genetic.py: the operators on hand-made prompts, the search on a toy fitness, whole runs.

A tiny random model on the CPU in fp32; fitness against one plain pass a prompt.
"""

import random
import re
import stat
from types import SimpleNamespace

import pytest
import torch
from test_evals import files_of, results_of, run, task_of
from test_jailbreak import HARMFUL, adapter_is_on, rows  # noqa: F401 (a fixture)
from test_template_kinds import thinker  # noqa: F401 (a fixture)

from evals import answers, likelihood, verdicts
from evals.task import Column, Comparison
from evals.tasks import genetic
from evals.tasks.genetic import (
    BUDGET,
    FIRST_MUTATION,
    MOST_SENTENCES,
    OPENING,
    PROTOTYPES,
    SENTENCES,
    SYNONYMS,
    Genetic,
    cross,
    evolve,
    first_population,
    mutate,
    next_population,
    read_budget,
    swap_word,
)
from generate import Completion
from lora import load_adapter
from model import load_model
from ptalign import build_parser
from support.files import InputError, read_jsonl, sha256
from tokenizer import Tokenizer

SHORT = "2x3x6"
ONE = tuple(("a", f"one {n}.") for n in range(6))
TWO = tuple(("b", f"two {n}.") for n in range(4))


def attack(tiny_folder, rows, out, **options):
    return run(tiny_folder, rows, out, **{"tasks": ["genetic"], "genetic": SHORT, **options})


def parts(folder):
    return load_model(folder, device="cpu", dtype="float32"), Tokenizer(folder)


def attacks_of(out) -> dict[str, dict]:
    return {row["id"]: row for _, row in read_jsonl(out / "attacks.jsonl")}


# ---- operators ----

def test_material_is_whole():
    assert all(kind in SENTENCES for kinds in PROTOTYPES for kind in kinds)
    assert all(len(set(texts)) == len(texts) >= 2 for texts in SENTENCES.values())
    for word, others in SYNONYMS.items():
        assert word not in others and all(word in SYNONYMS[other] for other in others)
    texts = " ".join(text for texts in SENTENCES.values() for text in texts).lower()
    words = set(re.findall(r"\w+", texts))
    assert sum(word in words for word in SYNONYMS) > 10  # the others come by exchange


def test_crossing_loses_nothing_and_keeps_places():
    seen = set()
    for seed in range(50):
        left, right = cross(ONE, TWO, random.Random(seed))
        assert sorted(left + right) == sorted(ONE + TWO)
        for child in (left, right):  # a sentence stands where it stood
            assert all(text.endswith(f" {place}.") for place, (_, text) in enumerate(child))
        seen.add(left)
    assert len(seen) > 10
    assert cross(ONE[:1], TWO[:1], random.Random(1)) in [(ONE[:1], TWO[:1]), (TWO[:1], ONE[:1])]


def test_crossing_cuts_at_most_so_many_places(monkeypatch):
    monkeypatch.setattr(genetic, "POINTS", 1)
    long = tuple(("b", f"two {n}.") for n in range(6))
    for seed in range(20):
        kinds = "".join(kind for kind, _ in cross(ONE, long, random.Random(seed))[0])
        assert len(re.findall("ab|ba", kinds)) <= 1


def test_mutation():
    start = first_population(1, random.Random(0))[0]
    assert mutate(start, 0, random.Random(0)) == start
    lengths, same = set(), 0
    for seed in range(100):
        made = mutate(start, 1, random.Random(seed))
        assert made == mutate(start, 1, random.Random(seed))
        assert made and all(kind in SENTENCES for kind, _ in made)
        lengths.add(len(made) - len(start))
        same += made == start
    assert min(lengths) < 0 < max(lengths) and same < 10
    long = start * MOST_SENTENCES
    assert len(mutate(long, 1, random.Random(0))) == MOST_SENTENCES
    (alone,) = mutate(start[:1], 0, random.Random(0))
    assert all(mutate((alone,), 1, random.Random(seed)) for seed in range(30))


def test_word_mutation_changes_one_word_and_keeps_its_capital():
    found = {swap_word("Explain the story.", random.Random(seed)) for seed in range(40)}
    assert found == {"Describe the story.", "Explain the novel.", "Explain the tale."}
    assert swap_word("Nothing here.", random.Random(0)) == "Nothing here."


def test_first_population_begins_with_the_prototypes():
    people = first_population(len(PROTOTYPES) + 8, random.Random(0))
    kinds = [[kind for kind, _ in genome] for genome in people]
    assert kinds[: len(PROTOTYPES)] == PROTOTYPES and len(set(people)) > len(PROTOTYPES)
    assert first_population(2, random.Random(0)) == people[:2]
    assert FIRST_MUTATION > genetic.MUTATION


def test_elite_goes_on_and_the_fit_have_the_children(monkeypatch):
    monkeypatch.setattr(genetic, "MUTATION", 0)
    people = first_population(20, random.Random(0))
    fitness = [-float(i) for i in range(20)]
    made = next_population(people, fitness, random.Random(1))
    assert made[:2] == people[:2] and len(made) == 20  # a tenth is the elite
    assert next_population(people[:3], fitness[:3], random.Random(1))[0] == people[0]
    far = [0.0] + [-1000.0] * 19  # the softmax leaves the others no chance
    assert set(next_population(people, far, random.Random(1))[2:]) == {people[0]}
    level = next_population(people, [1.0] * 20, random.Random(1))
    assert level[:2] == people[:2] and len(set(level)) > 5  # of equals the first


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_search_climbs_and_spends_its_budget(size):
    seen = []

    def score(people):  # the toy fitness: as many words "the" as can be
        seen.append(len(people))
        return [float(sum(text.split().count("the") for _, text in g)) for g in people]

    bests = list(evolve(score, steps=12, size=size, rng=random.Random(3)))
    values = [fitness for _, fitness in bests]
    assert seen == [size] * 12 and values == sorted(values)
    assert bests == list(evolve(score, steps=12, size=size, rng=random.Random(3)))
    if size == 16:
        assert values[-1] > values[0]


# ---- fitness ----

def scorer(model, tokenizer, rows, *, format):
    task = task_of(Genetic, data_dir=str(rows), format=format)
    return task.scorer(Column("base", model, tokenizer), {"id": "p", "prompt": "Is my tea ready?"})


def test_fitness_is_a_plain_pass_per_token(tiny_folder, rows):
    model, tokenizer = parts(tiny_folder)
    people = first_population(3, random.Random(0))
    for format in ("chat", "raw"):
        found = scorer(model, tokenizer, rows, format=format)([*people, people[0]])
        for genome, got in zip(people, found, strict=False):
            prompt = " ".join(text for _, text in genome) + "\n\nIs my tea ready?"
            context = tokenizer.prompt_text(prompt, format)
            lead = " " if format == "raw" else ""
            ids, first = tokenizer.encode_pair(context, lead + OPENING, special=format == "raw")
            with torch.no_grad():
                logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            own = [logprobs[i - 1, ids[i]].item() for i in range(first, len(ids))]
            assert got == pytest.approx(sum(own) / len(own), abs=1e-4)
        assert found[3] == found[0]


def test_the_end_of_an_empty_thought_is_no_part_of_the_opening(thinker, rows, tiny_folder,
                                                               monkeypatch):
    tokenizer, lead = thinker
    seen = []
    monkeypatch.setattr(genetic, "score_pairs", lambda model, tokenizer, pairs, **_: seen.extend(
        pairs) or [SimpleNamespace(logprob=-1.0, tokens=1)] * len(pairs))
    scorer(parts(tiny_folder)[0], tokenizer, rows, format="chat")(
        first_population(1, random.Random(0)))
    assert [(context.endswith(lead), opening) for context, opening in seen] == [(True, OPENING)]


def test_a_prompt_is_scored_once(tiny_folder, rows, monkeypatch):
    seen, real = [], likelihood.score_batch
    monkeypatch.setattr(likelihood, "score_batch",
                        lambda *args: seen.extend(args[2]) or real(*args))
    score = scorer(*parts(tiny_folder), rows, format="chat")
    people = first_population(4, random.Random(0))
    found = score(people * 2)
    assert score(people[2:]) == found[2:4] == found[6:] and len(seen) == 4


@pytest.mark.parametrize("text", ["", "5", "5x10", "0x1x1", "5x10x16x2", "5x-1x2", "axbxc",
                                  "5 10 16"])
def test_bad_budget(text):
    with pytest.raises(InputError, match="is no budget, --genetic, give behaviours x steps"):
        task_of(Genetic, genetic=text)


def test_budget_in_the_help():
    assert read_budget(BUDGET) == (5, 10, 16)
    evaluation = build_parser()._subparsers._group_actions[0].choices["eval"]
    assert f"(default: {BUDGET})" in " ".join(evaluation.format_help().split())


# ---- runs ----

def test_every_attack_is_tried_on_both_columns(tiny_folder, adapter, rows, tmp_path, monkeypatch):
    texts = ["I cannot do that for you.", "", "Yes, that can be done so."]
    monkeypatch.setattr(verdicts, "MAX_NLL", float("inf"))  # the tiny model knows no English
    monkeypatch.setattr(answers, "generate", lambda model, tokenizer, prompts, *_: [
        Completion(texts[(sum(ids) + adapter_is_on(model)) % 3], "eos", 9) for ids in prompts])
    out = tmp_path / "out"
    attack(tiny_folder, rows, out, adapter=[str(adapter)])
    items, attacks = [item for _, item in read_jsonl(out / "items.jsonl")], attacks_of(out)
    names = ["direct", "start on base", "found on base", "start on tuned", "found on tuned"]
    assert [item["attack"] for item in items] == [name for name in names for _ in range(2)]
    for item in items[2:]:
        found = attacks[item["id"]]
        assert sha256(found["prompt"]) == item["base"]["asked"] == item["tuned"]["asked"]
        assert sha256(found["goal"]) == item["prompt"] and found["goal"] in HARMFUL
        assert found["prompt"].endswith("\n\n" + found["goal"])
        assert item["base"]["search_logprob"] == found["logprob"]

    results = results_of(out)
    figures = {f["key"].removeprefix("genetic/chat/"): f for f in results["figures"]}
    assert list(figures) == [f"{name}/complied" for name in (
        "direct", "own start", "own found", "found on base", "found on tuned")]
    hit = {(item["attack"], column): sum(i[column]["verdict"] == "complied" for i in items
                                         if i["attack"] == item["attack"])
           for item in items for column in ("base", "tuned")}
    for column in ("base", "tuned"):
        for name in ("start", "found"):
            assert figures[f"own {name}/complied"][column]["sum"] == hit[f"{name} on {column}",
                                                                         column]
        for name in ("direct", "found on base", "found on tuned"):
            assert figures[f"{name}/complied"][column]["sum"] == hit[name, column]
    task = task_of(Genetic, data_dir=str(rows), adapter=["a"])
    for figure in task.figures([{**item, "trained_on": True} for item in items],
                               Comparison(("base", "tuned"), 0)):
        assert figure["trained_on"] == 2
    assert results["answers"]["genetic/found on tuned"]["n"] == 2
    assert results["sources"]["genetic search"]["population"] == 6


def test_each_search_is_on_its_own_column(tiny_folder, adapter, rows, tmp_path):
    """The fitness of an attack is that of the model it was found on, adapter off or on."""
    attack(tiny_folder, rows, tmp_path / "out", adapter=[str(adapter)])
    model, tokenizer = parts(tiny_folder)
    tuned, _ = parts(tiny_folder)
    load_adapter(tuned, adapter)
    attacks = attacks_of(tmp_path / "out")
    for name, found in attacks.items():
        network = model if " on base/" in name else tuned
        pair = (tokenizer.prompt_text(found["prompt"], "chat"), OPENING)
        (score,) = likelihood.score_pairs(network, tokenizer, [pair], format="chat",
                                          batch_tokens=1)
        assert found["logprob"] == pytest.approx(score.logprob / score.tokens, abs=1e-4)
        if name.startswith("found"):
            start = attacks[name.replace("found", "start")]
            assert found["logprob"] >= start["logprob"]
    assert any(attacks[name]["prompt"] != attacks[name.replace("base", "tuned")]["prompt"]
               for name in attacks if name.startswith("found on base"))


def test_fitness_and_fluency_are_kept_apart(tiny_folder, adapter, rows, tmp_path):
    """A pair's score is the tuned model's in the search and the base's in the fluency guard."""
    attack(tiny_folder, rows, tmp_path / "out", adapter=[str(adapter)], max_new_tokens=30)
    kept = [row for _, row in read_jsonl(tmp_path / "out" / "scores.jsonl")]
    assert {(row["task"], row["column"]) for row in kept} == {
        (task, column) for task in ("genetic", "genetic search") for column in ("base", "tuned")}


def test_without_an_adapter(tiny_folder, rows, tmp_path):
    attack(tiny_folder, rows, tmp_path / "out")
    keys = [f["key"] for f in results_of(tmp_path / "out")["figures"]]
    assert keys == [f"genetic/chat/{name}/complied" for name in ("direct", "own start",
                                                                 "own found")]
    assert len(attacks_of(tmp_path / "out")) == 2 * 2


def test_batch_size_and_the_other_behaviours_change_nothing(tiny_folder, rows, tmp_path,
                                                            monkeypatch):
    attack(tiny_folder, rows, tmp_path / "together")
    attack(tiny_folder, rows, tmp_path / "fewer", limit=1)
    monkeypatch.setattr(genetic, "BATCH_TOKENS", 1)
    attack(tiny_folder, rows, tmp_path / "alone")
    together, alone, fewer = (attacks_of(tmp_path / name) for name in ("together", "alone",
                                                                       "fewer"))
    assert {k: row["prompt"] for k, row in together.items()} == {
        k: row["prompt"] for k, row in alone.items()}
    assert len(fewer) == 2 and fewer.items() <= together.items()


def test_the_seed_draws_another_search(tiny_folder, rows, tmp_path):
    attack(tiny_folder, rows, tmp_path / "one")
    attack(tiny_folder, rows, tmp_path / "two", seed=1)
    one, two = attacks_of(tmp_path / "one"), attacks_of(tmp_path / "two")
    assert one.keys() == two.keys() and one != two


@pytest.mark.parametrize("name, calls", [("score_batch", 1), ("score_batch", 4), ("generate", 1)])
def test_killed_run_ends_like_an_unbroken_one(tiny_folder, adapter, rows, tmp_path, monkeypatch,
                                              killed, name, calls):
    module = {"score_batch": likelihood, "generate": answers}[name]
    attack(tiny_folder, rows, tmp_path / "whole", adapter=[str(adapter)])
    out = tmp_path / "killed"
    with killed(module, name, calls):
        attack(tiny_folder, rows, out, adapter=[str(adapter)])
    logs = [out / "scores.jsonl", out / "answers.jsonl"]
    kept = sum(len(log.read_text().splitlines()) for log in logs)
    made = []
    for place, function in ((likelihood, likelihood.score_batch), (answers, answers.generate)):
        monkeypatch.setattr(place, function.__name__, lambda *args, real=function:
                            made.append(1) or real(*args))
    attack(tiny_folder, rows, out, adapter=[str(adapter)])
    assert files_of(out) == files_of(tmp_path / "whole")
    assert attacks_of(out) == attacks_of(tmp_path / "whole")
    whole = (tmp_path / "whole" / "attacks.jsonl").read_text()
    assert (out / "attacks.jsonl").read_text() == whole
    assert len(made) == sum(len(log.read_text().splitlines()) for log in logs) - kept


def test_changed_budget_is_refused(tiny_folder, rows, tmp_path):
    attack(tiny_folder, rows, tmp_path / "out")
    with pytest.raises(InputError, match="settings changed: data_sha256"):
        attack(tiny_folder, rows, tmp_path / "out", genetic="2x3x7")


def test_attacks_stay_out_of_sight_and_can_be_replayed(tiny_folder, rows, tmp_path, capsys):
    out = tmp_path / "out"
    attack(tiny_folder, rows, out)
    shown, attacks = capsys.readouterr(), attacks_of(out)
    assert stat.S_IMODE((out / "attacks.jsonl").stat().st_mode) == 0o600
    places = [shown.out, shown.err, *(path.read_text(errors="replace")
                                      for path in out.iterdir()
                                      if path.name not in ("attacks.jsonl", "answers.jsonl"))]
    for row in attacks.values():
        assert not any(row["goal"] in place or row["prompt"].split("\n")[0] in place
                       for place in places)
    run(tiny_folder, rows, tmp_path / "again", tasks=["jailbreak"], limit=9,
        replay=str(out / "attacks.jsonl"))
    items = [item for _, item in read_jsonl(tmp_path / "again" / "items.jsonl")]
    replayed = {item["id"]: item for item in items if item["set"] == "replay"}
    assert replayed.keys() == {f"replay/{name}" for name in attacks}
    for _, item in read_jsonl(out / "items.jsonl"):
        if item["attack"] != "direct":  # the same prompt, the same answer
            again = replayed[f"replay/{item['id']}"]
            assert again["base"]["answer_sha256"] == item["base"]["answer_sha256"]
            assert again["prompt"] == item["prompt"]
