"""PT-ALIGN (arXiv 2502.08657) from the command line.

    python ptalign.py demo
    python ptalign.py synth --model MODEL --out RUN
    python ptalign.py train --model MODEL --data RUN/triplets.jsonl --out ADAPTER
    python ptalign.py eval  --model MODEL --adapter ADAPTER --out EVAL
    python ptalign.py chat  --model MODEL --adapter ADAPTER
    python ptalign.py export --model MODEL --adapter ADAPTER --out FOLDER

This file parses and calls; the work is in synth.py, train.py, evals/suite.py, demo.py, chat.py and
export/command.py, imported only when needed, so that --help is instant.
"""

import argparse
import math
import os
import signal
import sys

from support import progress
from support.files import InputError

EXIT = "exit codes: 0 done, 2 bad input, 3 finished short of the target, 130 interrupted"
SEEDS = 2**63 - 1  # torch's generators hold 64 bits
AGAIN = "Running the same command again resumes it."
LESS_MEMORY = {"synth": "lower --block (with --fresh), ",
               "train": "add --gradient-checkpointing, lower --batch-tokens (with --fresh), "}


def number(kind, *, least=-math.inf, most=math.inf, open_end=False):
    """An argparse type: an int or float within bounds (`open_end`: the least itself is refused)."""
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        if not (least <= value <= most) or value == math.inf or (open_end and value == least):
            bound = f"above {least}" if open_end else f"at least {least}"
            if most < math.inf:
                bound += f" and at most {most}"
            elif value == math.inf:
                bound += " and finite"
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value
    return parse


def temperature(text: str) -> float:
    """An argparse type. Logits divided by next to nothing are no numbers any more."""
    value = number(float, least=0)(text)
    if 0 < value < 0.01:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or at least 0.01")
    return value


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but for options that are off or empty unless given."""

    def _get_help_string(self, action):
        off = action.default is False or action.default in (None, "")
        return action.help if off else super()._get_help_string(action)


class ListTasks(argparse.Action):
    """Like --help: acts as soon as it is read, whatever else is missing."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help,
                         default=argparse.SUPPRESS)

    def __call__(self, parser, *_):
        from evals.suite import list_tasks
        print(list_tasks(evaluation_tasks()))
        parser.exit()


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line in the program's own form; argparse's includes the whole usage."""
        raise InputError(message, self.prog, "see --help")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ptalign.py", description=__doc__.split("\n")[0], epilog=EXIT)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_synth(commands)
    add_train(commands)
    add_eval(commands)
    add_demo(commands)
    add_chat(commands)
    add_export(commands)
    return parser


def add_command(commands, name: str, summary: str, *, keeps=True) -> argparse.ArgumentParser:
    """A command with the common options; one that `keeps` has a folder and resumes from it."""
    command = commands.add_parser(
        name, help=summary, description=f"{summary} {AGAIN}" if keeps else summary, epilog=EXIT,
        formatter_class=Help)
    own_model = name != "demo"
    if keeps:
        command.add_argument("--out", required=own_model,
                             default=None if own_model else "runs/demo",
                             help="folder for everything the command writes")
    common = command.add_argument_group("common")
    if own_model:
        command.add_argument("--model", required=True, help="folder, or hub id org/name[@revision]")
        common.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                            help="of the base weights; auto is bfloat16")
    common.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes a GPU where there is one")
    common.add_argument("--seed", type=number(int, least=0, most=SEEDS), default=0,
                        help="of sampling, the adapter's start, the data's order and bootstrap"
                             " draws")
    if keeps:
        common.add_argument("--fresh", action="store_true",
                            help="rename an old --out and start anew")
    common.add_argument("--quiet", action="store_true", help="no progress, only errors and tables")
    return command


def add_synth(commands) -> None:
    command = add_command(commands, "synth", "Let the model write its own training triplets.")
    add = command.add_argument
    add("--triplets", type=number(int, least=1), default=2000, help="prompts with both answers")
    add("--benign-share", type=number(float, least=0, most=0.9), default=0.2,
        help="of all rows, everyday requests with a positive answer only")
    add("--domains", type=names, help="some of the domains, by name, separated by commas")
    add("--seeds-file", help="your own annotations, in the shape of synthesis/seeds.json")
    add("--no-thoughts", action="store_true",
        help="leave the inner thoughts out of the examples (the paper's ablation)")
    add("--positives-only", action="store_true", help="write no toxic answers")
    add("--limit", type=number(int, least=1), help="answer at most so many instructions (a trial)")
    add("--block", type=number(int, least=1), default=64,
        help="prompts that are continued together; fewer take less memory")
    add("--dry-run", action="store_true", help="print the plan and the prompts, generate nothing")


def add_train(commands) -> None:
    command = add_command(commands, "train", "Tune a LoRA adapter on triplets.")
    add = command.add_argument
    add("--data", required=True,
        help="triplets.jsonl: rows of prompt, positive, toxic (may be null); or TRL's of prompt,"
             " chosen, rejected, as strings or as lists of messages")
    add("--penalty", "--lambda", type=number(float, least=0), default=0.4,
        help="λ, the weight of UT")
    add("--mask", choices=("first-mismatch", "none"), default="first-mismatch",
        help="toxic tokens that are penalised: from the first mismatch, or all")
    add("--objective", choices=("pt", "mle"), default="pt", help="mle leaves the toxic answers out")
    add("--rank", type=number(int, least=1), default=16, help="of the adapter")
    add("--alpha", type=number(float, least=0, open_end=True), default=32,
        help="the adapter's output is scaled by alpha / rank")
    add("--targets", type=names, help="linears to adapt, by name (default: all of a block)")
    add("--epochs", type=number(int, least=1), default=3, help="passes over the data")
    add("--lr", type=number(float, least=0, open_end=True), default=1e-4, help="peak, AdamW")
    add("--batch-tokens", type=number(int, least=1), default=4096,
        help="padded tokens of a micro-batch; a longer example makes one alone")
    add("--accumulate", type=number(int, least=1), default=1, help="micro-batches a step")
    add("--gradient-checkpointing", action="store_true",
        help="keep no block's activations but compute them again: far less memory for one more"
             " forward pass; the result is the same")
    add("--warmup", type=number(float, least=0, most=1), default=0.03, help="share of the steps")
    add("--clip", type=number(float, least=0, open_end=True), default=1.0, help="gradient norm")
    add("--loss", choices=("auto", "eager", "chunked", "triton"), default="auto",
        help="how it is computed; auto is triton on a GPU, else chunked")
    add("--format", choices=("raw", "chat"), help="of the prompts (default: chat if templated)")
    add("--exclude", help="folder of evaluation .jsonl files: training on their prompts is refused")


def add_eval(commands) -> None:
    command = add_command(commands, "eval", "Compare a model with and without its adapter.")
    add = command.add_argument
    add("--adapter", nargs="+", action="extend", metavar="DIR",
        help="folder that train or PEFT wrote; several (training seeds) are each compared with the"
             " base and shown as mean and range (default: the base model alone)")
    add("--list", action=ListTasks, help="describe every task and exit; needs no model")
    add("--tasks", type=names, default="hhh,refusal",
        help="separated by commas; file:PATH is multiple choice of your own")
    add("--data-dir", help="folder of benchmark .jsonl files (default: the hub)")
    add("--format", choices=("raw", "chat"),
        help="of the prompts (default: each task's own, which perplexity keeps)")
    add("--limit", type=number(int, least=1),
        help="prompts of each benchmark, pairs of polarity, behaviours of genetic")
    add("--max-new-tokens", type=number(int, least=1), default=128, help="of an answer")
    add("--sets", type=names,
        help="prompts of refusal: xstest, jailbreakbench (the default: both), strongreject,"
             " self_instruct; separated by commas")
    add("--samples", type=number(int, least=1), metavar="N",
        help="answers drawn to each prompt of refusal and jailbreak (default: one, greedy)")
    add("--shots", type=number(int, least=0, most=5), default=0, help="examples before MMLU's")
    add("--templates", metavar="FILE",
        help="own jailbreak templates, rows of name and template with {prompt} in it")
    add("--replay", metavar="FILE", help="whole attack prompts to try, rows of prompt (and goal)")
    add("--genetic", metavar="BxSxP",
        help="budget of the genetic search: behaviours, steps, population (default: 5x10x16)")
    add("--triplets", metavar="FILE", help="pairs whose polarity is measured")
    add("--preference", metavar="FILE", help="a preference file to compare their polarity with")
    add("--encoder", metavar="MODEL",
        help="of sentences, for polarity: folder or hub id (default: all-MiniLM-L6-v2)")
    add("--text", metavar="FILE", help="text for perplexity")
    add("--judge", metavar="MODEL",
        help="judge the run's answers by this model (Llama-Guard-3); the report shows the last one")
    add("--judge-template", metavar="FILE", help="prompt and verdicts of another kind of judge")
    add("--judge-check", metavar="FILE",
        help="labelled answers, rows of question, answer and harmful: the judge's agreement")
    add("--show-toxic", action="store_true", help="print answers to harmful prompts as well")


def add_demo(commands) -> None:
    command = add_command(commands, "demo", "Show the whole method on the embedded small model.")
    command.add_argument("--show-toxic", action="store_true",
                         help="print answers to bad requests as well")


def add_chat(commands) -> None:
    summary = "Talk to a model; /base and /tuned switch its adapter, /help lists the rest."
    command = add_command(commands, "chat", summary, keeps=False)
    add = command.add_argument
    add("--adapter", help="folder that train or PEFT wrote (default: the base model alone)")
    add("--system", metavar="TEXT", help="a system text in front of the conversation")
    add("--format", choices=("raw", "chat"), help="of the prompts (default: chat if templated)")
    add("--max-new-tokens", type=number(int, least=1), default=512, help="of an answer")
    add("--temperature", type=temperature, default=0.7, help="0 takes the likeliest")


def add_export(commands) -> None:
    summary = "Write a model or data in the form of other programs."
    command = commands.add_parser("export", help=summary, description=summary, epilog=EXIT,
                                  formatter_class=Help)
    add = command.add_argument
    add("--out", required=True, help="new folder for a model, file for data")
    add("--to", choices=("merged", "peft", "trl", "sft"),
        help="of an adapter: merged (default) or peft; of data: trl (default: prompt, chosen,"
             " rejected; toxic text inside) or sft (messages, positive answers only)")
    model = command.add_argument_group("a model")
    model.add_argument("--model", help="the base: folder, or hub id org/name[@revision]")
    model.add_argument("--adapter", help="folder that train or PEFT wrote")
    model.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                       help="of merged weights; auto is the base's own")
    model.add_argument("--base-name", metavar="ORG/NAME",
                       help="the base's hub id, where --model is a folder; published")
    model.add_argument("--eval", dest="evaluation", metavar="DIR",
                       help="folder that eval wrote, for the model card's results")
    data = command.add_argument_group("data")
    data.add_argument("--data", help="triplets.jsonl, or TRL's rows as train reads them")
    data.add_argument("--fresh", action="store_true", help="rename an old --out file")
    command.add_argument("--quiet", action="store_true", help="no progress, only errors")


def run(command: str, arguments: dict) -> int:
    if command == "demo":
        from demo import demo
        quiet = ["--quiet"] * progress.QUIET
        return demo(lambda argv: main([*argv, *quiet]), **arguments)
    if command == "synth":
        from synth import synth
        return synth(**arguments)
    if command == "train":
        from train import train
        return train(**arguments)
    if command == "chat":
        from chat import chat
        return chat(**arguments)
    if command == "export":
        from export.command import export
        return export(**arguments)
    from evals.suite import evaluate
    return evaluate(**arguments, known=evaluation_tasks())


def evaluation_tasks() -> dict:
    """The tasks of evals/ and the organism's, which evals/ does not know, in the order of lists."""
    from evals.suite import TASKS
    from organism.task import Organism
    names = list(TASKS)
    names.insert(names.index("jailbreak"), Organism.name)
    known = {**TASKS, Organism.name: Organism}
    return {name: known[name] for name in names}


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
        print(f"ptalign: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        remedy = "run the same command again (without --fresh) to go on"
        print(f"ptalign: interrupted; {remedy}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the table's reader left, as `| head` does: no fault of ours to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # what a shell calls it
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        remedy = f"{LESS_MEMORY.get(command, '')}use a smaller model or another device"
        print(f"ptalign: error: out of memory, --model, {remedy}", file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or "--out"
        reason = error.strerror or type(error).__name__
        print(f"ptalign: error: {reason}, {place}, check space and rights", file=sys.stderr)
        return 2


def out_of_memory(error: Exception) -> bool:
    """torch tells it by an OutOfMemoryError on a GPU, on a CPU by its allocator's message alone.

    Other faults name memory too: "an illegal memory access", Triton's "out of resource".
    """
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or "DefaultCPUAllocator" in str(error))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without a character gets a "?" for it
    sys.exit(main())
