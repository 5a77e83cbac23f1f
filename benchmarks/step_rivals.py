"""What train_step.py times: one training step, by ours and by its peers.

Every rival is a function of a Setup -> a call that gives the loss, whose backward reaches the LoRA
parameters. Its docstring says what it is and is printed below the tables. A rival that cannot run
here raises, and is listed with that reason. All are given the same triplets, the same frozen
weights (in the same memory) and the same LoRA.

Letters: R rows of the padded batch, T tokens of each.
"""

import tempfile
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import rivals
from benchmarks.rivals import CLAMP
from benchmarks.shapes import random_model
from benchmarks.timing import Unavailable
from lora import add_lora, block_linears, lora_modules, lora_parameters
from losses import POSITIVE, TOXIC
from model import DTYPES, Transformer, load_model
from train import can_record, choose_loss, micro_step
from triplets import Example, pack, pad, room_for

SEED, PENALTY, RANK, ALPHA = 0, 0.4, 16, 32
B_SPREAD = 0.02  # of LoRA's B, which is not left at 0: A would get no gradient to compare


# ---- what all of them are given ----

@dataclass
class Setup:
    """A model with LoRA, and the triplets of the step."""

    folder: Path  # of config.json; of the weights too, unless they are random
    random: bool
    device: torch.device
    dtype: str
    examples: list[Example]

    @cached_property
    def model(self) -> Transformer:
        make = random_model if self.random else load_model
        model = make(self.folder, device=str(self.device), dtype=self.dtype)
        torch.manual_seed(SEED)
        add_lora(model, block_linears(model), rank=RANK, alpha=ALPHA)
        for module in lora_modules(model).values():
            torch.nn.init.normal_(module.lora_B, std=B_SPREAD)
        return model

    def network(self):
        """transformers' model on the weights of ours, without a LoRA."""
        from transformers import AutoConfig, AutoModelForCausalLM
        config = AutoConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[self.dtype], attn_implementation="sdpa")
        weights = {name.replace(".base.", "."): p.data for name, p in
                   self.model.named_parameters() if ".lora_" not in name}
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied
        network.load_state_dict(weights, strict=True, assign=True)
        # Its frequencies are a buffer that no file has, so they are still on no device.
        with torch.device(self.device):
            network.model.rotary_emb = type(network.model.rotary_emb)(config)
        return network

    def lora_config(self):
        from peft import LoraConfig
        return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                          target_modules=block_linears(self.model))

    def share_lora(self, network):
        """`network`, which peft has adapted, on the LoRA tensors of ours."""
        ours, theirs = lora_parameters(self.model), peer_parameters(network)
        if ours.keys() != theirs.keys():
            raise Unavailable("peft adapts other linears than ours")
        for name, p in theirs.items():
            p.data = ours[name].data
        return network.train()

    @cached_property
    def peer(self):
        """transformers' model under peft, on the weights and the LoRA tensors of ours."""
        from peft import get_peft_model
        return self.share_lora(get_peft_model(self.network(), self.lora_config()))

    @cached_property
    def dpo(self):
        """The same under TRL's DPOTrainer, which replaces its model's head: one of its own."""
        trainer = dpo_trainer(self.network(), self.lora_config(), self.device)
        self.share_lora(trainer.model)
        return trainer

    @cached_property
    def packed(self):
        return pack(self.examples).to(self.device)

    @cached_property
    def padded(self):
        return pad(self.examples, pad_id=0).to(self.device)

    def gradient(self, name: str):
        """Of all LoRA parameters in a row, after a step of the rival `name`; they are cleared."""
        theirs = peer_parameters(self.peer) if name.startswith("peft") else {}
        parameters = theirs or lora_parameters(self.model)
        row = torch.cat([parameters[key].grad.flatten().double() for key in sorted(parameters)])
        self.clear()
        return row

    def clear(self) -> None:
        made = self.__dict__  # those made so far
        networks = [made[name] for name in ("model", "peer") if name in made]
        for network in networks + ([made["dpo"].model] if "dpo" in made else []):
            for p in network.parameters():
                p.grad = None


def peer_parameters(network) -> dict:
    return {name.replace(".default.", "."): p for name, p in network.named_parameters()
            if p.requires_grad}


def drawn_examples(prompt: int, positive: int, toxic: int, count: int, V: int) -> list[Example]:
    """Triplets of random tokens with these lengths; the answers part at once."""
    draw = torch.Generator().manual_seed(SEED)
    end = V - 1
    examples = []
    for _ in range(count):
        ids = torch.randint(1, V - 2, (prompt + positive + toxic,), generator=draw).tolist()
        x, y, z = ids[:prompt], ids[prompt:prompt + positive], ids[prompt + positive:]
        z[0] = y[0] % (V - 3) + 1  # another token than y[0]
        y[-1] = z[-1] = end
        examples.append(Example(x, y, z, [1] * (toxic - 1) + [0]))
    return examples


# ---- ours ----

def our_step(setup: Setup, batch, *, checkpointing: bool = False, recorded: bool = True):
    """A call that does the whole step and leaves nothing for a backward pass."""
    _, loss_of = choose_loss("auto", setup.device.type)
    n_pos = int((batch.kind == POSITIVE).sum())
    if recorded := recorded and can_record(setup.model, loss_of):
        batch = pack(setup.examples, room_for([[setup.examples]]))
    take = micro_step(setup.model, loss_of, PENALTY, recorded_as=batch if recorded else None)
    parameters = lora_parameters(setup.model).values()
    gradients = [torch.zeros_like(p) for p in parameters]

    def forward():
        setup.model.model.gradient_checkpointing = checkpointing
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient.zero_()
        return take(batch, n_pos)[2]

    return forward


def ours(setup):
    """a micro-batch as `train` runs it, on triplets.pack; on a GPU recorded once and replayed"""
    return our_step(setup, setup.packed)


def ours_launched(setup):
    """the same on a GPU, kernel by kernel"""
    rivals.need_gpu(setup.padded.ids, "a recording")
    return our_step(setup, setup.packed, recorded=False)


def ours_padded(setup):
    """the same on triplets.pad: a row for each sequence, so that packing's gain is seen"""
    return our_step(setup, setup.padded, recorded=False)


def ours_checkpointing(setup):
    """ours with --gradient-checkpointing"""
    return our_step(setup, setup.packed, checkpointing=True)


# ---- peers ----

def peer_inputs(setup: Setup):
    """What a collator would give: ids and attention mask (R, T), weights of MLE and UT (R, T-1)."""
    batch = setup.padded
    answers = [answer for e in setup.examples for answer in e.answers]
    prompts = [e.prompt for e in setup.examples for _ in e.answers]
    length = torch.tensor([len(x) + len(y) for x, y in zip(prompts, answers, strict=True)],
                          device=setup.device)
    R, T = batch.ids.shape
    attention_mask = (torch.arange(T, device=setup.device) < length[:, None]).long()
    n_pos = int((batch.kind == POSITIVE).sum())
    kinds = torch.zeros(R * T, dtype=torch.long, device=setup.device)
    kinds[batch.places] = batch.kind
    kinds = kinds.view(R, T)[:, :-1]
    return (batch.ids, attention_mask, (kinds == POSITIVE).float() / n_pos,
            PENALTY * (kinds == TOXIC).float() / n_pos)


def usual_loss(network, ids, attention_mask, mle_weight, ut_weight):
    logits = network(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
    lp = F.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    ut = -torch.log(torch.clamp(1 - lp.exp(), min=CLAMP))
    return (mle_weight * -lp + ut_weight * ut).sum()


def peft(setup):
    """transformers (SDPA) + peft, right-padded rows, log-softmax over all logits; clamps"""
    return partial(usual_loss, setup.peer, *peer_inputs(setup))


def mixed(setup: Setup):
    """As Trainer(bf16=True) runs a model; nothing in float32."""
    cast = setup.dtype == "bfloat16"
    return torch.autocast(setup.device.type, torch.bfloat16, enabled=cast)


def peft_autocast(setup):
    """the same under autocast, as Trainer(bf16=True) has it: LoRA's products in bf16 too; clamps"""
    if setup.dtype != "bfloat16":
        raise Unavailable("autocast is for bfloat16")
    forward = peft(setup)

    def under_autocast():
        with mixed(setup):
            return forward()

    return under_autocast


def peft_compile(setup):
    """peft-autocast (peft in float32) under torch.compile; clamps"""
    torch.compiler.reset()
    step, inputs = torch.compile(usual_loss, dynamic=False), peer_inputs(setup)

    def forward():
        with mixed(setup):
            return step(setup.peer, *inputs)

    return forward


def peer_with_head(setup: Setup, loss_of):
    """The peer's decoder, under autocast too, and a head that is given the scored rows alone."""
    batch, (ids, attention_mask, *_) = setup.padded, peer_inputs(setup)
    base = setup.peer.get_base_model()
    weight = torch.where(batch.kind == POSITIVE, 1.0, PENALTY) / (batch.kind == POSITIVE).sum()

    def forward():
        with mixed(setup):
            hidden = base.model(input_ids=ids, attention_mask=attention_mask,
                                use_cache=False).last_hidden_state
        rows = hidden.flatten(0, 1)[batch.places].to(base.lm_head.weight.dtype)
        return loss_of(rows, base.lm_head.weight, batch.targets, batch.kind, weight)

    return forward


def peft_liger(setup):
    """peft's decoder; Liger's fused cross-entropy for MLE rows, log-softmax for UT rows; clamps"""
    rivals.need_gpu(setup.padded.ids, "Liger")
    return peer_with_head(setup, rivals.liger_and_torch)


def peft_cce(setup):
    """peft's decoder; scored rows to Cut Cross Entropy (on a CPU impl="torch_compile"); no clamp"""
    on_gpu = setup.device.type == "cuda"
    return peer_with_head(setup, rivals.cce if on_gpu else rivals.cce_compiled)


def dpo_trainer(network, lora_config, device):
    """TRL's trainer as a user makes it; its data is one row, as the step is given token ids."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer
    words = Tokenizer(WordLevel({"<end>": 0}, unk_token="<end>"))
    row = {"prompt": ["<end>"], "chosen": ["<end>"], "rejected": ["<end>"]}
    with tempfile.TemporaryDirectory() as folder:  # nothing is saved, but it makes one
        config = DPOConfig(folder, bf16=False, gradient_checkpointing=False, max_length=None,
                           report_to="none", disable_tqdm=True, use_cpu=device.type == "cpu")
        return DPOTrainer(network, args=config, train_dataset=Dataset.from_dict(row),
                          peft_config=lora_config, processing_class=PreTrainedTokenizerFast(
                              tokenizer_object=words, eos_token="<end>", pad_token="<end>"))


def trl_dpo(setup):
    """TRL's DPO, compute_loss on the same pairs, under autocast; in each step it runs the model
    once more with LoRA off, its reference. Its gradient checkpointing, on by default, is off.
    Another loss: not compared
    """
    pairs = [e for e in setup.examples if e.toxic]
    if not pairs:
        raise Unavailable("no triplet has a toxic answer")
    batch = setup.dpo.data_collator([{"prompt_ids": e.prompt, "chosen_ids": e.positive,
                                      "rejected_ids": e.toxic} for e in pairs])
    batch = {name: tensor.to(setup.device) for name, tensor in batch.items()}

    def forward():
        with mixed(setup):  # in a training run accelerate opens the same
            return setup.dpo.compute_loss(setup.dpo.model, batch)

    return forward


RIVALS = {  # in the table's order
    "ours": ours, "ours-launched": ours_launched, "ours-padded": ours_padded,
    "ours-checkpointing": ours_checkpointing,
    "peft": peft, "peft-autocast": peft_autocast, "peft-compile": peft_compile,
    "peft-liger": peft_liger, "peft-cce": peft_cce, "trl-dpo": trl_dpo}
OTHER_LOSS = ("trl-dpo",)  # so neither loss nor gradients are compared
