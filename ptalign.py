"""PT-ALIGN (arXiv 2502.08657) from the command line.

It parses and calls; what does the work is imported only when needed, so that --help is instant."""

import argparse
import os
import signal
import sys

from support import VERSION, progress
from support.commandline import Parser, begin, file_error, loaded, names, number, out_of_memory
from support.files import InputError

DTYPES, FORMATS = ("auto", "bfloat16", "float32"), ("raw", "chat")
FORMAT = "format of the prompts (default: chat if the model has a chat template)"
LESS_MEMORY = {"synth": "lower --block, ",
               "train": "add --gradient-checkpointing, lower --batch-tokens (with --fresh), "}

path = os.path.expanduser  # the shell does not expand the ~ in --out=~/runs
count = number(int, least=1, most=10**9)
weight = number(float, least=0, most=1e6)
rate = number(float, least=0, most=1e6, open_end=True)
temperature = number(float, least=0.01, most=1e3, zero=True)  # below this, logits could overflow


class ListTasks(argparse.Action):
    """Like --help: acts as soon as it is read, whatever else is missing."""
    def __call__(self, parser, *_):
        from evals.suite import OwnFile
        from evals.task import list_text
        print(list_text([*evaluation_tasks().values(), OwnFile]), flush=True)
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"ptalign {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_synth, add_train, add_eval, add_demo, add_chat, add_export):
        add(commands)
    return parser


def add_command(commands, name: str, summary: str, *, model=True, resumes=True):
    """Add a command with the options it shares; returns the function that adds its own."""
    again = " Running the same command again resumes it." if resumes else ""
    command = commands.add_parser(name, help=summary, description=summary + again)
    add = command.add_argument
    if model:
        add("--model", type=path, required=True, help="folder, or hub id org/name[@revision]")
        add("--dtype", choices=DTYPES, default="auto",
            help="type of the base weights; auto is bfloat16 on a device that computes in it")
        add("--base-dtype", choices=("nf4",),
            help="hold the blocks' weights in 4 bits (QLoRA's NF4): less memory, more time")
    if resumes:
        add("--out", type=path, required=model, default=None if model else "runs/demo",
            help="folder for everything the command writes")
        add("--fresh", action="store_true", help="rename what an old run wrote and start anew")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU, if any")
    add("--seed", type=number(int, least=0, most=2**63 - 1), default=0,  # torch's have 64 bits
        help="seed of sampling, the adapter's start, the order of the data and the bootstrap")
    add("--quiet", action="store_true", help="show errors and tables, but no progress")
    return command.add_argument_group(f"of {name}").add_argument


def add_synth(commands) -> None:
    add = add_command(commands, "synth", "Let the model write its own training triplets.")
    add("--triplets", type=count, default=2000,
        help="rows wanted: with both answers, or under --positives-only with a positive one")
    add("--benign-share", type=number(float, least=0, most=0.9), default=0.2,
        help="share of harmless requests, which get a positive answer only, beside the triplets")
    add("--domains", type=names, help="only these domains (names, comma-separated) and benign ones")
    add("--seeds-file", type=path, help="your own annotations, shaped like synthesis/seeds.json")
    add("--no-thoughts", action="store_true", help="leave the inner thoughts out of the examples")
    add("--no-refine", action="store_true", help="draw what failed twice a third time, instead of"
        " having the model rewrite it; a small model may do better that way")
    add("--positives-only", action="store_true", help="write no toxic answers")
    add("--limit", type=count, help="answer at most so many harmful requests, and as many benign")
    add("--format", choices=FORMATS, help=FORMAT)
    add("--round-calls", type=count, help="calls for instructions in a round, in whole turns of the"
        " domains; a quarter for benign ones (default: 8 to 128 for both; on a GPU 512)")
    add("--block", type=count,
        help="prompts continued in one batch; fewer take less memory (default: 128; on a GPU 512)")
    add_endpoint(add)
    add("--toxic-endpoint-ok", action="store_true",
        help="let toxic text go to a server outside private networks")
    add("--dry-run", action="store_true", help="print plan and prompts, and generate nothing")
    add("--show", type=count, metavar="N", help="print N rows of --out, nothing toxic, and exit")
    add("--show-toxic", action="store_true", help="let --show print the toxic answers too")


def add_train(commands) -> None:
    add = add_command(commands, "train", "Tune a LoRA adapter on triplets.")
    add("--data", type=path, required=True,
        help="rows of prompt, positive, toxic (may be null), or of prompt, chosen, rejected, as"
             " strings or lists of messages; in JSON lines, a JSON array (either may be gzipped) or"
             " parquet")
    add_rows(add)
    add("--penalty", "--lambda", type=weight, default=0.4,
        help="λ, the weight of UT, or of the term that ga and npo have in its place")
    add("--mask", choices=("first-mismatch", "none"), default="first-mismatch",
        help="first-mismatch penalises toxic tokens from the first mismatch on; none penalises"
             " all of them")
    add("--objective", choices=("pt", "mle", "ga", "npo", "dpo"), default="pt",
        help="pt is the paper's; mle leaves the toxic answers out; ga (gradient ascent) and npo"
             " replace UT by another term; dpo compares whole answers and ignores --penalty and"
             " --mask")
    add("--rank", type=number(int, least=1, most=4096), default=16, help="rank of the adapter")
    add("--alpha", type=number(float, least=1e-3, most=1e6), default=32,
        help="the adapter's output is scaled by alpha / rank")
    add("--targets", type=names, help="linears to adapt, comma-separated (default: all of a block)")
    add("--epochs", type=number(int, least=1, most=10**4), default=3, help="passes over the data")
    add("--lr", type=rate, default=1e-4, help="peak learning rate of AdamW")
    add("--batch-tokens", type=count, default=4096,
        help="most tokens of a micro-batch; a longer example gets one of its own")
    add("--accumulate", type=count, default=1, help="micro-batches per step")
    add("--gradient-checkpointing", action="store_true",
        help="recompute activations: far less memory, one more forward pass, the same result")
    add("--warmup", type=number(float, least=0, most=1), default=0.03,
        help="share of the steps in which the learning rate rises")
    add("--clip", type=rate, default=1.0, help="gradients with a larger norm are scaled down to it")
    add("--loss", choices=("auto", "eager", "chunked", "triton"), default="auto",
        help="form in which the loss is computed; auto is triton on a GPU, else chunked")
    add("--format", choices=FORMATS, help=FORMAT)
    add("--exclude", type=path, help="folder of evaluation .jsonl or .jsonl.gz files; data that"
        " share prompts with them are refused")
    add("--validation", type=number(float, least=0, most=0.5), default=0.0, metavar="SHARE",
        help="share of the pairs, by prompt, that is held out and measured during training (in"
             " validation.jsonl and validation.svg)")
    add("--dry-run", action="store_true", help="print steps, memory, time and disk; train nothing")


def add_endpoint(add) -> None:
    add("--endpoint", type=names, metavar="URL,...",
        help="servers (vLLM, SGLang, llama.cpp) that share the calls, such as"
             " http://127.0.0.1:8080/v1; --model then needs no weights (the variable"
             " PTALIGN_API_KEY has the key)")
    add("--endpoint-model", metavar="NAME", help="the servers' name for the model")
    add("--concurrency", type=number(int, least=1, most=1024), default=16, help="calls at a time")


def add_rows(add) -> None:
    add("--skip-bad-rows", action="store_true", help="leave out, and count, unusable rows")
    add("--columns-are-right", action="store_true", help="do not warn that answers seem swapped")


def add_eval(commands) -> None:
    add = add_command(commands, "eval", "Compare a model with and without its adapter.")
    add("--adapter", type=path, nargs="+", action="extend", metavar="DIR",
        help="folder that train or PEFT wrote; several (training seeds) are each compared with the"
             " base and shown as mean and range (default: the base model alone)")
    add("--list", action=ListTasks, nargs=0, default=argparse.SUPPRESS,
        help="describe every task and exit; needs no model")
    add("--tasks", type=names, default="hhh,refusal",
        help="tasks of --list, separated by commas; file:PATH is multiple choice of your own")
    add("--data-dir", type=path, help="folder of benchmark .jsonl files (default: from the hub)")
    add("--format", choices=FORMATS, help="format of the prompts (default: each task's own)")
    add("--limit", type=count, help="use at most this many prompts of a benchmark, or pairs")
    add("--max-new-tokens", type=count, default=128, help="longest answer, in tokens")
    add("--sets", type=names,
        help="prompt sets of the task refusal: xstest, jailbreakbench (default: these two),"
             " strongreject, safety_tuned_llamas, self_instruct")
    add("--samples", type=count, metavar="N", help="draws per prompt (default: a greedy answer)")
    add("--shots", type=number(int, least=0, most=5), default=0,
        help="worked examples before each MMLU question")
    add("--templates", type=path, metavar="FILE",
        help="your own jailbreak templates: rows of name and template with {prompt} in it")
    add("--replay", type=path, metavar="FILE", help="attack prompts to try: rows with a prompt")
    add("--genetic", metavar="BxSxP", help="behaviours, steps, population (default: 5x10x16)")
    add("--triplets", type=path, metavar="FILE", help="pairs for the task polarity")
    add("--preference", type=path, metavar="FILE", help="preference pairs to compare them with")
    add("--encoder", type=path, help="sentence encoder for polarity (default: all-MiniLM-L6-v2)")
    add("--text", type=path, metavar="FILE", help="text for the task perplexity")
    add("--judge", type=path, metavar="MODEL",
        help="let this model judge the run's answers; the last judge's figures are shown")
    add("--judge-template", type=path, metavar="NAME|FILE",
        help="what --judge is: llama-guard-3 (default), qwen3guard, harmbench-mistral,"
             " harmbench-llama, chat (any chat model), or a file of your own")
    add("--judge-check", type=path, metavar="FILE",
        help="labels to calibrate the judge on: rows of question, answer, harmful (default: ours)")
    add_endpoint(add)
    add("--require", action="append", metavar='"FIGURE >= X"',
        help="exit with 4 if this figure, named by its key in results.json, falls short; may be"
             " repeated")
    add("--show-toxic", action="store_true", help="print some answers to harmful prompts too")


def add_demo(commands) -> None:
    summary = "Run synth, train and eval: on the embedded small model, or on your own."
    add = add_command(commands, "demo", summary, model=False)
    add("--model", type=path, help="folder, or hub id org/name[@revision] (default: our small one)")
    add("--triplets", type=count, help="with --model: pairs (default: 2000); for more, new --out")
    add("--data-dir", type=path, help="with --model: folder of .jsonl files (default: the hub's)")
    add("--show-toxic", action="store_true", help="without --model: print harmful answers too")


def add_chat(commands) -> None:
    summary = "Talk to a model; /base and /tuned switch its adapter, /help lists the rest."
    add = add_command(commands, "chat", summary, resumes=False)
    add("--adapter", type=path, help="folder that train or PEFT wrote (default: the base alone)")
    add("--system", metavar="TEXT", help="system text in front of the conversation")
    add("--format", choices=FORMATS, help=FORMAT)
    add("--max-new-tokens", type=count, default=512, help="longest answer, in tokens")
    add("--temperature", type=temperature, default=0.7, help="0 takes the likeliest token")


def add_export(commands) -> None:
    summary = "Write a model or data in a form that other programs read."
    command = commands.add_parser("export", help=summary, description=summary)
    add = command.add_argument
    add("--out", type=path, required=True, help="new folder for a model, file for data")
    add("--to", choices=("merged", "peft", "trl", "sft"),
        help="form of an adapter: merged (default) or peft; of data: trl (default: prompt, chosen,"
             " rejected; with toxic text) or sft (messages with positive answers only)")
    add("--quiet", action="store_true", help="show errors, but no progress")
    add = command.add_argument_group("a model").add_argument
    add("--model", type=path, help="the base: folder, or hub id org/name[@revision]")
    add("--adapter", type=path, help="folder that train or PEFT wrote")
    add("--dtype", choices=DTYPES, default="auto", help="of what is written; auto keeps it")
    add("--base-name", metavar="ORG/NAME", help="hub id of the base, where --model is a folder")
    add("--eval", type=path, dest="evaluation", metavar="DIR", help="eval's folder, for the card")
    add = command.add_argument_group("data").add_argument
    add("--data", type=path, help="triplets.jsonl, or others' rows as train reads them")
    add_rows(add)
    add("--fresh", action="store_true", help="rename an old --out file and write a new one")


def run(command: str, arguments: dict) -> int:
    if command == "synth":
        from synth import synth as function
    elif command == "train":
        from train import train as function
    elif command == "eval":
        from evals.suite import evaluate as function
        arguments["known"] = evaluation_tasks()
    elif command == "chat":
        from chat import chat as function
    elif command == "export":
        from export.command import export as function
    else:
        from demo import demo as function
        quiet = ["--quiet"] if progress.QUIET else []
        arguments["run"] = lambda argv: main([*argv, *quiet])
    loaded()
    return function(**arguments)


def evaluation_tasks() -> dict:
    """The tasks of evals/, and the organism's, which evals/ does not know."""
    from evals.suite import TASKS
    from organism.task import Organism
    return {**TASKS, Organism.name: Organism}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; every foreseeable failure is one line on stderr."""
    # OpenMP threads wait for each other by spinning. On cores that are shared with another program
    # a step took up to 20 times as long as with a short spin, which costs an idle machine little.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Triton 3.10 stops fusing multiply and add unless it is told to.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    command = None
    try:
        arguments = vars(build_parser().parse_args(argv))
        command, progress.QUIET = arguments.pop("command"), arguments.pop("quiet")
        code = run(command, arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        message = error
    except KeyboardInterrupt:
        again = "; run the same command again (without --fresh) to go on"
        print(f"ptalign: interrupted{again * (command not in ('chat', 'export'))}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the table's reader left, as `| head` does: no fault of ours to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # what a shell calls it
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        remedy = f"{LESS_MEMORY.get(command, '')}use a smaller model or another device"
        message = InputError("out of memory", "--model", remedy)
    except OSError as error:
        message = file_error(error)
    print(f"ptalign: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    begin()
    sys.exit(main())
