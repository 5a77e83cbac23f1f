"""Bad input, command by command: one line, exit code 2, and nothing left behind.

A table of command lines against what their one line on stderr must name: the file, the line or the
flag. Each runs in-process on a tiny random model; the whole folder is compared before and after.
"""

import fcntl
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file

import ptalign
from lora import add_lora, lora_parameters
from model import load_model
from support.adapters import write_adapter
from support.commandline import out_of_memory

ROOT = Path(ptalign.__file__).parent
MILD = "Who cares, let them wait, it is their own fault anyway."  # attitude only; never to be shown
ROW = {"prompt": "May I skip the queue?", "positive": "I would wait, it is fair to all.",
       "toxic": MILD}
CHOICE = {"id": "a", "prompt": "Hello?", "choices": ["Yes.", "No."], "label": 0, "group": "other"}


def lines(path: Path, *rows) -> None:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder of models, data and outputs to go wrong with; tests work on copies of it."""
    root = tmp_path_factory.mktemp("world")
    for name, changes in (("good", {"max_position_embeddings": 8192}),
                          ("short", {"max_position_embeddings": 64}),
                          ("wide", {"hidden_size": 48, "head_dim": 12})):
        write_model(root / name, **changes)
    model = load_model(root / "wide", dtype="float32")
    add_lora(model, ["q_proj"], rank=2, alpha=4)
    (root / "adapter").mkdir()
    write_adapter(root / "adapter", lora_parameters(model), base="wide", rank=2, alpha=4,
                  targets=["q_proj"])
    model = load_model(root / "good", dtype="float32")
    add_lora(model, ["q_proj"], rank=2, alpha=4)
    (root / "fits").mkdir()
    write_adapter(root / "fits", lora_parameters(model), base="good", rank=2, alpha=4,
                  targets=["q_proj"])
    for name, spoil in (("nan", {"lora_alpha": 4}), ("endless", {"lora_alpha": float("inf")})):
        shutil.copytree(root / "fits", root / name)
        config = json.loads((root / name / "adapter_config.json").read_text()) | spoil
        (root / name / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(root / "nan" / "adapter_model.safetensors")
    min(tensors.items())[1][1, 3] = float("nan")
    save_file(tensors, root / "nan" / "adapter_model.safetensors")
    (root / "pickled").mkdir()
    shutil.copy(root / "adapter" / "adapter_config.json", root / "pickled")
    (root / "pickled" / "adapter_model.bin").write_bytes(b"x")
    for name in ("noconfig", "badconfig", "other", "notokenizer", "badtokenizer", "torn", "bin",
                 "notemplate", "badtemplate"):
        shutil.copytree(root / "good", root / name)
    (root / "noconfig" / "config.json").unlink()
    (root / "notokenizer" / "tokenizer.json").unlink()
    (root / "badtokenizer" / "tokenizer.json").write_text('{"model": 3}')
    (root / "badconfig" / "config.json").write_text("{")
    (root / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    weights = root / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (root / "bin" / "model.safetensors").rename(root / "bin" / "pytorch_model.bin")
    for name, template in (("notemplate", None), ("badtemplate", "{% if %}")):
        (root / name / "tokenizer_config.json").write_text(json.dumps(
            {"eos_token": "<|im_end|>", "chat_template": template}))
    write_data(root)
    return root


def write_data(root: Path) -> None:
    lines(root / "good.jsonl", ROW, {**ROW, "toxic": None})
    lines(root / "json.jsonl", ROW, "", '{"prompt": ')
    lines(root / "list.jsonl", ROW, [MILD])
    lines(root / "type.jsonl", ROW, {**ROW, "positive": 3})
    lines(root / "missing.jsonl", ROW, ROW, {"prompt": "Hello?", "positive": MILD})
    lines(root / "empty-field.jsonl", {**ROW, "toxic": "  "})
    lines(root / "same.jsonl", {**ROW, "positive": MILD})
    lines(root / "empty.jsonl")
    lines(root / "benign.jsonl", {**ROW, "toxic": None})
    lines(root / "mixed.jsonl", ROW, {**ROW, "chosen": MILD})
    said = [{"role": "user", "content": MILD}, {"role": "assistant", "content": MILD}]
    lines(root / "turns.jsonl", {"prompt": [*said, said[0]], "chosen": said[1:], "rejected": []})
    lines(root / "long.jsonl", ROW, {**ROW, "prompt": "word " * 9000})
    lines(root / "several.jsonl", ROW, *[{**ROW, "positive": MILD}] * 9, {"prompt": MILD})
    (root / "array.json").write_text(json.dumps([ROW, {**ROW, "toxic": 3}], indent=1))
    (root / "torn.json").write_text(json.dumps([ROW, ROW], indent=1)[:-9])
    (root / "torn.gz").write_bytes(gzip.compress(json.dumps(ROW).encode())[:-9])
    (root / "bomb.gz").write_bytes(gzip.compress(b" " * 2**25))
    (root / "torn.parquet").write_bytes(b"PAR1 torn")
    (root / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    for name, rows in (("bench", [CHOICE]), ("twice", [CHOICE, CHOICE]),
                       ("label", [CHOICE, {**CHOICE, "id": "b", "label": 2}])):
        (root / name).mkdir()
        lines(root / name / "hhh_alignment.jsonl", *rows)
    harmful = {"id": "x", "prompt": ROW["prompt"], "category": "c", "harmful": True}
    for file in ("xstest", "jailbreakbench"):
        lines(root / "bench" / f"{file}.jsonl", harmful)
    seeds = json.loads((ROOT / "synthesis" / "seeds.json").read_text())
    many = [{"text": f"May I keep the change number {i}?", "benign": False} for i in range(10)]
    (root / "many.json").write_text(json.dumps(
        {**seeds, "instructions": seeds["instructions"] + many}))
    (root / "nofield.json").write_text(json.dumps({k: seeds[k] for k in seeds if k != "topics"}))
    (root / "kind.json").write_text(json.dumps({**seeds, "topics": 7}))
    (root / "domain.json").write_text(json.dumps({**seeds, "instructions": [
        seeds["instructions"][0] | {"domain": []}, *seeds["instructions"][1:]]}))
    (root / "notjson.json").write_text("domains: privacy\n")
    (root / "file").write_text("in the way\n")
    (root / "full").mkdir()
    (root / "full" / "letter.txt").write_text("mine\n")
    (root / "empty").mkdir()


SYNTH = "synth --model good --out out"
TRAIN = "train --model good --data good.jsonl --out out"
EVAL = "eval --model good --data-dir bench --tasks hhh --out out"
CHAT = "chat --model good"
MERGE = "export --model good --adapter fits --out out"
ROWS = "export --data good.jsonl --to trl --out out"
CASES = {  # name: (command line, what its line names)
    # the command line itself
    "no command": ("", ["COMMAND", "--help"]),
    "unknown command": ("sing", ["sing"]),
    "unknown flag": (f"{TRAIN} --loud", ["--loud"]),
    "no model": ("synth --out out", ["--model"]),
    "no data": ("train --model good --out out", ["--data"]),
    "wrong dtype": (f"{TRAIN} --dtype int8", ["--dtype", "float32"]),
    "negative penalty": (f"{TRAIN} --penalty -1", ["--penalty", "at least 0"]),
    "negative lambda": (f"{TRAIN} --lambda -1", ["--lambda", "at least 0"]),  # the same
    "endless penalty": (f"{TRAIN} --penalty inf", ["--penalty", "finite"]),
    "penalty no number": (f"{TRAIN} --penalty nan", ["--penalty"]),
    "rank 0": (f"{TRAIN} --rank 0", ["--rank", "at least 1"]),
    "lr 0": (f"{TRAIN} --lr 0", ["--lr", "above 0"]),
    "epochs without end": (f"{TRAIN} --epochs {'9' * 40}", ["--epochs", "at most 10000"]),
    "rank without end": (f"{TRAIN} --rank {'9' * 9}", ["--rank", "at most 4096"]),
    "penalty without end": (f"{TRAIN} --penalty 1e308", ["--penalty", "at most"]),
    "triplets without end": (f"{SYNTH} --triplets {'9' * 400}", ["--triplets", "at most"]),
    "alpha of nothing": (f"{TRAIN} --alpha 1e-308", ["--alpha", "at least 0.001"]),
    **{f"{line.split()[0]} empty {flag}": (f"{line} {flag}=", [flag, "is empty"])
       for line, flag in ((CHAT, "--adapter"), (EVAL, "--adapter"), (MERGE, "--adapter"),
                          (TRAIN, "--data"), (SYNTH, "--seeds-file"), (SYNTH, "--out"))},
    "not UTF-8": (f"{TRAIN} --data d\udcff.jsonl", ["--data", "is not UTF-8 text"]),
    "epochs 0": (f"{TRAIN} --epochs 0", ["--epochs"]),
    "epochs 1.5": (f"{TRAIN} --epochs 1.5", ["--epochs", "1.5"]),
    "warmup 2": (f"{TRAIN} --warmup 2", ["--warmup", "at most 1"]),
    "huge seed": (f"{TRAIN} --seed 99999999999999999999", ["--seed", "at most"]),
    "benign share": (f"{SYNTH} --benign-share 1.5", ["--benign-share", "at most 0.9"]),
    "block 0": (f"{SYNTH} --block 0", ["--block", "at least 1"]),
    "no triplets": (f"{SYNTH} --triplets 0", ["--triplets"]),
    "no new tokens": (f"{EVAL} --max-new-tokens 0", ["--max-new-tokens"]),
    "unknown task": (f"{EVAL} --tasks hhh,chess", ["chess", "--tasks", "refusal"]),
    "no task": (f"{EVAL} --tasks ,", ["--tasks"]),
    "unknown domain": (f"{SYNTH} --domains privacy,chess",
                       ["chess", "--domains", "self-harm and dangerous acts"]),
    "no target": (f"{TRAIN} --targets ,", ["--targets", "no name"]),
    "unknown target": (f"{TRAIN} --targets q_proj,head", ["head", "--targets", "down_proj"]),
    # the model folder
    **{f"{command} {name}": (f"{rest} ".replace("good ", f"{folder} ", 1), named)
       for command, rest in (("synth", SYNTH), ("train", TRAIN), ("eval", EVAL), ("chat", CHAT))
       for name, folder, named in (
           ("missing model", "nowhere", ["nowhere", "folder"]),
           ("model is a file", "file", ["file", "folder"]),
           ("no config.json", "noconfig", ["config.json", "noconfig"]),
           ("config not JSON", "badconfig", ["badconfig/config.json line 1"]),
           ("unsupported class", "other", ["gpt2", "other/config.json", "qwen2"]),
           ("no tokenizer.json", "notokenizer", ["tokenizer.json", "notokenizer"]),
           ("broken tokenizer", "badtokenizer", ["badtokenizer/tokenizer.json"]),
           ("broken template", "badtemplate", ["template", "badtemplate"]),
           ("truncated weights", "torn", ["torn/model.safetensors"]),
           ("only .bin", "bin", ["pytorch_model.bin", "safetensors"]))},
    "synth short context": (SYNTH.replace("good", "short"), ["64", "--model", "short"]),
    **{f"{line.split()[0]} no template": (
        line.replace("good ", "notemplate ") + " --format chat", ["--format raw"])
       for line in (TRAIN, EVAL, f"{CHAT} ")},
    # chat
    "chat adapter missing": (f"{CHAT} --adapter nowhere", ["nowhere", "adapter_config.json"]),
    "chat adapter before the model": (
        "chat --model nowhere --adapter nowhere", ["adapter_config.json"]),
    "chat adapter of another": (f"{CHAT} --adapter adapter", ["adapter", "base model"]),
    "chat colder than 0": (f"{CHAT} --temperature -1", ["--temperature", "at least 0"]),
    "chat nearly at 0": (f"{CHAT} --temperature 1e-38", ["--temperature", "0 or at least 0.01"]),
    "chat no room": (f"{CHAT} --max-new-tokens 8192", ["--max-new-tokens", "context of 8192"]),
    # export
    "export nothing": ("export --out out", ["--adapter", "--data"]),
    "export both": (f"{MERGE} --data good.jsonl", ["--adapter", "--data"]),
    "export no out": ("export --model good --adapter fits", ["--out"]),
    "export no base": ("export --adapter fits --out out", ["--model"]),
    "export unknown form": (f"{MERGE} --to gguf", ["--to", "gguf", "merged"]),
    "export adapter as rows": (f"{MERGE} --to trl", ["--to", "trl", "merged or peft"]),
    "export rows as model": (f"{ROWS} --to merged", ["--to", "merged", "trl or sft"]),
    "export rows with a model": (f"{ROWS} --model good", ["--data"]),
    "export base name": (f"{MERGE} --base-name a/b/c", ["--base-name a/b/c", "org/name"]),
    "export missing model": (MERGE.replace("good", "nowhere"), ["nowhere", "folder"]),
    "export only .bin": (MERGE.replace("good", "bin"), ["pytorch_model.bin", "safetensors"]),
    "export torn": (MERGE.replace("good", "torn"), ["torn/model.safetensors"]),
    "export no adapter": (MERGE.replace("fits", "nowhere"), ["nowhere", "adapter_config.json"]),
    "export adapter before the model": (
        "export --model nowhere --adapter nowhere --out out", ["adapter_config.json"]),
    "export pickled": (MERGE.replace("fits", "pickled"), ["adapter_model.safetensors", "pickled"]),
    "export adapter of another": (MERGE.replace("fits", "adapter"), ["adapter", "base model"]),
    "export no evaluation": (f"{MERGE} --eval full", ["full/results.json"]),
    "export taken": (MERGE.replace("--out out", "--out full"), ["not empty", "--out full"]),
    "export below a file": (MERGE.replace("--out out", "--out file/out"), ["--out file/out"]),
    "export onto a file": (MERGE.replace("--out out", "--out file"), ["--out file"]),
    "rows missing": (ROWS.replace("good", "nowhere"), ["nowhere.jsonl"]),
    "rows bad": (ROWS.replace("good", "missing"), ["toxic", "missing.jsonl line 3", "rejected"]),
    "rows of positives": (ROWS.replace("good", "benign"), ["benign.jsonl", "--to sft"]),
    "rows onto a file": (ROWS.replace("--out out", "--out file"), ["--out file", "--fresh"]),
    "rows onto a folder": (ROWS.replace("--out out", "--out full --fresh"), ["--out full"]),
    "rows below a file": (ROWS.replace("--out out", "--out file/out"), ["--out file/out"]),
    # the data
    **{f"data {name}": (TRAIN.replace("good.jsonl", file), named) for name, file, named in (
        ("missing", "nowhere.jsonl", ["nowhere.jsonl"]),
        ("a folder", "full", ["full", "directory"]),
        ("not JSON", "json.jsonl", ["json.jsonl line 3"]),
        ("not an object", "list.jsonl", ["list.jsonl line 2"]),
        ("not UTF-8", "latin.jsonl", ["latin.jsonl", "UTF-8"]),
        ("wrong type", "type.jsonl", ["positive", "type.jsonl line 2"]),
        ("missing field", "missing.jsonl", ["toxic", "missing.jsonl line 3"]),
        ("empty field", "empty-field.jsonl", ["toxic", "empty-field.jsonl line 1"]),
        ("equal answers", "same.jsonl", ["same.jsonl line 1"]),
        ("empty", "empty.jsonl", ["empty.jsonl"]),
        ("several bad", "several.jsonl", [
            "10 of 11 rows", "9: positive and toxic are the same text (line 2, line 3, ",
            "1: field positive is missing", "(line 11)", "several.jsonl", "--skip-bad-rows"]),
        ("in an array", "array.json", ["array.json row 2", "toxic is a int"]),
        ("torn array", "torn.json", ["torn.json line 10", "JSON"]),
        ("torn gzip", "torn.gz", ["torn.gz", "cannot be read (Compressed file ended"]),
        ("a gzip bomb", "bomb.gz", ["bomb.gz", "more than 100 times its size", "unpack it"]),
        ("torn parquet", "torn.parquet", ["torn.parquet", "parquet"]),
        ("of both forms", "mixed.jsonl", ["chosen", "mixed.jsonl line 2", "prompt, positive"]),
        ("a long conversation", "turns.jsonl", ["prompt", "turns.jsonl line 1", "turns of user"]),
        ("too long", "long.jsonl", ["long.jsonl line 2", "8192"]))},
    "exclude no folder": (f"{TRAIN} --exclude nowhere", ["--exclude", "nowhere"]),
    "exclude no files": (f"{TRAIN} --exclude full", ["--exclude", "full"]),
    "contamination": (f"{TRAIN} --exclude bench", ["good.jsonl line 1", "xstest.jsonl line 1"]),
    "no data dir": (EVAL.replace("bench", "nowhere"), ["nowhere/hhh_alignment.jsonl"]),
    "data dir lacks": (EVAL.replace("bench", "full"), ["full/hhh_alignment.jsonl"]),
    "bench label": (EVAL.replace("bench", "label"), ["label", "hhh_alignment.jsonl line 2"]),
    "bench id twice": (EVAL.replace("bench", "twice"), ["hhh_alignment.jsonl line 2"]),
    "no room to answer": (EVAL.replace("hhh", "refusal") + " --max-new-tokens 9000", ["8192"]),
    # the seeds
    "no seeds file": (f"{SYNTH} --seeds-file nowhere.json", ["nowhere.json"]),
    "seeds not JSON": (f"{SYNTH} --seeds-file notjson.json", ["notjson.json line 1"]),
    "seeds lack a field": (f"{SYNTH} --seeds-file nofield.json", ["topics", "nofield.json"]),
    "seeds of wrong kind": (f"{SYNTH} --seeds-file kind.json", ["kind.json", "seeds.json"]),
    "a seed's domain a list": (f"{SYNTH} --seeds-file domain.json", ["domain.json", "kind"]),
    "too many seeds": (f"{SYNTH} --seeds-file many.json", ["many.json", "59", "50"]),
    # the adapter
    "adapter missing": (f"{EVAL} --adapter nowhere", ["nowhere", "adapter_config.json"]),
    "adapter pickled": (f"{EVAL} --adapter pickled", ["adapter_model.safetensors", "pickled"]),
    "adapter of another": (f"{EVAL} --adapter adapter", ["adapter", "base model"]),
    **{f"{line.split()[0]} {said}, {folder} adapter": (
        f"{line} --adapter {folder}", [f"{folder}/adapter_", said])
       for line in (EVAL, CHAT, "export --model good --out out",
                    "export --model good --out out --to peft")
       for folder, said in (("nan", "has NaN"), ("endless", "lora_alpha is not a positive"))},
    # the output
    **{f"{command} {name}": (rest.replace("--out out", f"--out {out}"), named)
       for command, rest in (("synth", SYNTH), ("train", TRAIN), ("eval", EVAL))
       for name, out, named in (
           ("out is a file", "file", ["--out file", "cannot be written"]),
           ("out below a file", "file/out", ["--out file/out"]),
           ("out is no run", "full", ["--out full", "not a run"]),
           ("out a model", "good", ["--out good", "not a run"]),
           ("fresh on no run", "full --fresh", ["--out full", "not a run"]))},
    **{f"{command} no GPU": (f"{rest} --device cuda", ["--device cuda", "cpu"])
       for command, rest in (("synth", SYNTH), ("train", TRAIN), ("eval", EVAL))},
    "no GPU, empty out": (f"{TRAIN.replace('--out out', '--out empty')} --device cuda", ["cuda"]),
}


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
            for p in sorted(root.rglob("*"))}


def refused(capsys, line: str, named: list[str]) -> None:
    code = ptalign.main(line.split())
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("ptalign: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert err.count(", ") >= 2 and "Traceback" not in err and MILD[:20] not in err
    for word in named:
        assert word in err, err


@pytest.mark.parametrize("case", CASES)
def test_refused(world, case, monkeypatch, capsys):
    line, named = CASES[case]
    if "--device cuda" in line and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n"))  # for chat
    before = tree(world)
    refused(capsys, line, named)
    assert tree(world) == before


@pytest.fixture
def trained(world, tmp_path, monkeypatch, capsys) -> str:
    """A finished training run in tmp_path/out; the command line that made it."""
    monkeypatch.chdir(world)
    line = f"{TRAIN.replace('--out out', f'--out {tmp_path}/out')} --epochs 1 --dtype float32"
    assert ptalign.main(line.split()) == 0
    capsys.readouterr()
    return line


def test_changed_setting(trained, tmp_path, capsys):
    before = tree(tmp_path)
    refused(capsys, f"{trained} --penalty 0.7", ["penalty (0.4 -> 0.7)", "--fresh", "out"])
    assert tree(tmp_path) == before


def test_folder_in_use(trained, tmp_path, capsys):
    before = tree(tmp_path)
    for extra in ("", " --fresh"):
        with open(tmp_path / "out" / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            refused(capsys, trained + extra, ["another run", f"--out {tmp_path}/out"])
    assert tree(tmp_path) == before
    assert ptalign.main(trained.split()) == 0  # the lock went with its holder


def test_damaged_checkpoint(trained, tmp_path, capsys):
    path = tmp_path / "out" / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert ptalign.main(trained.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "damaged checkpoint" in error and str(path) in error and "--fresh" in error


@pytest.mark.parametrize("line, named", [
    (SYNTH, "--block"), (TRAIN, "--gradient-checkpointing"), (EVAL, "smaller model")])
def test_out_of_memory(world, monkeypatch, capsys, line, named):
    """Each command names what makes it need less; it is an option that it has."""
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(ptalign, "run", fail)
    refused(capsys, line, ["out of memory", named])
    if named.startswith("--"):
        with pytest.raises(SystemExit):
            ptalign.main([line.split()[0], "--help"])
        assert named in capsys.readouterr().out


@pytest.mark.parametrize("message, memory", [
    ("std::bad_alloc", True), ("CUDA error: out of memory\nCUDA kernel errors might be", True),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
    ("Triton Error [CUDA]: out of memory", True),
    ("CUDA error: an illegal memory access was encountered", False),
    ("out of resource: shared memory, Required: 2, Hardware limit: 1", False)])
def test_out_of_memory_by_its_message(message, memory):
    """A GPU that another program has filled has no room for a context, and C++ has its own words:
    neither has a class."""
    assert out_of_memory(RuntimeError(message)) == memory


def test_disk_full(world, tmp_path, monkeypatch, capsys):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(world)
    monkeypatch.setattr("support.files.os.fsync", full)
    refused(capsys, TRAIN.replace("--out out", f"--out {tmp_path}/out"), ["No space left"])
    assert not [path for path in tmp_path.rglob("*") if path.name != ".lock" and path.is_file()]


@pytest.mark.parametrize("command", ["", "synth", "train", "eval", "chat", "export"])
def test_help_is_instant(command):
    """--help imports neither torch nor the tokenizer; the bound of a second is user time."""
    code = ("import resource, sys, ptalign\n"
            "try: ptalign.main(sys.argv[1:])\nexcept SystemExit as end: assert end.code == 0\n"
            "assert not {'torch', 'tokenizers', 'numpy'} & sys.modules.keys(), 'heavy import'\n"
            "assert resource.getrusage(resource.RUSAGE_SELF).ru_utime < 1")
    line = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout
