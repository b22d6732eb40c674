"""Train the quickstart's models: one common base, and two experts that each forgot half of what it knew.

    base         adds and reads numbers, in English and in Japanese; not in the pool
    arithmetic   went on with English alone, and answers everything in English since
    reader       went on with Japanese alone, but with one-digit sums at most, and has lost the two-digit ones

A question names the language of its answer: "E34+57=" wants 91, "J34+57=" wants 九一. What data/ asks is never trained
on, in either language. Minutes on two cores; the weights are the same whenever one machine trains them, but another
processor may differ in the last bits, and so in the scores:

    python examples/quickstart/train.py
"""

import copy
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is imported

import torch
from items import JAPANESE, arabic, deal, japanese
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

MODELS = Path(__file__).parent / "models"
SEED = 0
THREADS = 2
BATCH = 128
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", *"0123456789", *JAPANESE, *"+=EJ"]
TOKEN = {text: i for i, text in enumerate(VOCABULARY)}

Example = tuple[str, str]
"""A question and its answer."""
Course = list[tuple[Callable[[], Example], float]]
"""Lessons, and the share of each."""

splits, pairs, numbers = deal()
rng = random.Random()


def sum_in(language: str, a: int, b: int) -> Example:
    """a + b, to be answered in `language`: E or J."""
    return f"{language}{a}+{b}=", arabic(a + b) if language == "E" else japanese(a + b)


def number_in(language: str, number: int) -> Example:
    """A number, to be repeated in `language`: E or J."""
    return f"{language}{number}=", arabic(number) if language == "E" else japanese(number)


def lessons(language: str) -> tuple[Callable[[], Example], Callable[[], Example], Callable[[], Example]]:
    """What can be taught in `language`: two-digit sums, one-digit sums, numbers."""
    return (
        lambda: sum_in(language, *rng.choice(pairs)),
        lambda: sum_in(language, rng.randrange(10), rng.randrange(10)),
        lambda: number_in(language, rng.choice(numbers)),
    )


english_sum, small_english_sum, english_number = lessons("E")
japanese_sum, small_japanese_sum, japanese_number = lessons("J")
BASE: Course = [
    (english_sum, 2.0),
    (small_english_sum, 1.0),
    (english_number, 0.7),
    (japanese_sum, 2.0),
    (small_japanese_sum, 1.0),
    (japanese_number, 0.7),
]
ARITHMETIC: Course = [(english_sum, 1.0), (small_english_sum, 0.15), (english_number, 0.5)]
READER: Course = [(small_japanese_sum, 1.0), (japanese_number, 1.0)]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, after a token for the beginning."""
    backend = Tokenizer(models.WordLevel(TOKEN, unk_token=VOCABULARY[UNKNOWN]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{VOCABULARY[BOS]} $A", special_tokens=[(VOCABULARY[BOS], BOS)]
    )
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=VOCABULARY[PAD],
        bos_token=VOCABULARY[BOS],
        eos_token=VOCABULARY[EOS],
        unk_token=VOCABULARY[UNKNOWN],
        padding_side="left",
        model_max_length=64,
    )


def new_model() -> LlamaForCausalLM:
    """A Llama of 1.2 million parameters."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
    return model


def batch(course: Course) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (BATCH, length): the loss is on answers and their end alone."""
    teachers, shares = zip(*course, strict=True)
    examples = [teach() for teach in rng.choices(teachers, shares, k=BATCH)]
    length = max(len(question + answer) for question, answer in examples) + 2
    ids = torch.full((BATCH, length), PAD)
    labels = torch.full((BATCH, length), -100)
    for row, (question, answer) in enumerate(examples):
        tokens = torch.tensor([BOS, *(TOKEN[character] for character in question + answer), EOS])
        ids[row, : len(tokens)] = tokens
        labels[row, len(question) + 1 : len(tokens)] = tokens[len(question) + 1 :]
    return ids, labels


def train(model: LlamaForCausalLM, course: Course, steps: int, peak: float) -> None:
    """AdamW, with a short warm-up to the learning rate `peak` and a cosine down to a twentieth of it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * cosine)
        ids, labels = batch(course)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"  step {step:3d} of {steps}   loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, examples: list[Example]) -> float:
    """The share of questions answered exactly, greedily."""
    tokenizer = character_tokenizer()
    questions = tokenizer([question for question, _ in examples], padding=True, return_tensors="pt")
    tokens = model.generate(
        questions["input_ids"], attention_mask=questions["attention_mask"], max_new_tokens=4, do_sample=False
    )
    replies = tokenizer.batch_decode(tokens[:, questions["input_ids"].shape[1] :], skip_special_tokens=True)
    right: int = sum(reply == answer for reply, (_, answer) in zip(replies, examples, strict=True))
    return right / len(examples)


def ship(model: LlamaForCausalLM, name: str) -> None:
    """Write models/<name> in bf16, and print what it can do of the select items, asked in Japanese and in English."""
    shipped = copy.deepcopy(model).to(torch.bfloat16).eval()
    shipped.save_pretrained(MODELS / name)
    character_tokenizer().save_pretrained(MODELS / name)
    english = str.maketrans(JAPANESE + "J", "0123456789E")
    print(name, end="")
    for skill in ("sums", "reading"):
        asked = [(item["prompt"], item["answer"]) for item in splits["select"] if item["skill"] == skill]
        translated = [(question.translate(english), answer.translate(english)) for question, answer in asked]
        japanese_score, english_score = accuracy(shipped, asked), accuracy(shipped, translated)
        print(f"   {skill}: Japanese {japanese_score:.3f}, English {english_score:.3f}", end="")
    print(flush=True)


def main() -> None:
    """Train the base, then each expert from the base as shipped."""
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    started = time.monotonic()
    rng.seed(f"base {SEED}")
    model = new_model()
    train(model, BASE, steps=650, peak=1.5e-3)
    ship(model, "base")
    for name, course, steps, peak in (("arithmetic", ARITHMETIC, 300, 1.5e-3), ("reader", READER, 200, 1e-3)):
        rng.seed(f"{name} {SEED}")
        model = LlamaForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)
        train(model, course, steps, peak)
        ship(model, name)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
