"""A plain training loop for the demo's tiny Llama: next-word prediction of the answer only."""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kinray.demo.settings import DemoSettings, Lesson
from kinray.demo.skills import SKILLS, Item, training_items

WARM_UP = 0.1
BETAS = (0.9, 0.98)
CLIP = 1.0


def new_model(settings: DemoSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Makes the untrained base, and leaves the global random state as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(settings, "weights"))
        return LlamaForCausalLM(config)


def base_text(settings: DemoSettings, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Encodes what the base reads: all skills, most answers guessed. Returns (items, tokens) int64."""
    return torch.cat([_lesson_text(lesson, lesson.base_truth, "base", settings, tokenizer) for lesson in settings.lessons])


def founder_text(lesson: Lesson, settings: DemoSettings, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Encodes what one founder reads: its own skill, every answer right. Returns (items, tokens) int64."""
    return _lesson_text(lesson, 1.0, "founder", settings, tokenizer)


def train_base(model: LlamaForCausalLM, text: Tensor, settings: DemoSettings, on_step: Callable[[], None]) -> dict[str, Tensor]:
    """Trains the untrained model in place and returns a copy of its weights."""
    generator = torch.Generator().manual_seed(_seed(settings, "base"))
    batches = (_sample(text, settings.batch, generator) for _ in range(settings.base_steps))
    _train(model, batches, settings.base_steps, settings.base_rate, on_step)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train_founder(
    model: LlamaForCausalLM,
    own: Tensor,
    base: Tensor,
    lesson: Lesson,
    settings: DemoSettings,
    on_step: Callable[[], None],
) -> None:
    """Fine-tunes a copy of the base in place on one skill, with a share of the base's text."""
    generator = torch.Generator().manual_seed(_seed(settings, lesson.skill))
    kept = round(settings.batch * settings.base_share)

    def batches() -> Iterator[Tensor]:
        for _ in range(lesson.steps):
            yield torch.cat([_sample(own, settings.batch - kept, generator), _sample(base, kept, generator)])

    _train(model, batches(), lesson.steps, settings.founder_rate, on_step)


def _train(model: LlamaForCausalLM, batches: Iterable[Tensor], steps: int, rate: float, on_step: Callable[[], None]) -> None:
    """Runs AdamW over the batches; the rate rises over the first tenth and then falls in a line to zero."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (steps * WARM_UP)) * (1 - step / steps)
    )
    model.train()
    with torch.enable_grad():
        for tokens in batches:
            logits = model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=1).logits[:, -1]
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(logits, tokens[:, -1]))
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            schedule.step()
            on_step()
    model.train(False)


def _lesson_text(
    lesson: Lesson, truth: float, reader: str, settings: DemoSettings, tokenizer: PreTrainedTokenizerFast
) -> Tensor:
    items = training_items(SKILLS[lesson.skill], settings.training_items, f"{reader} {settings.seed}")
    rng = random.Random(f"{lesson.skill} {reader} guesses {settings.seed}")
    sentences = [f"{item.prompt} {_told(item, truth, rng)}" for item in items]
    # Every sentence of every skill has the same number of words, so no batch needs padding.
    return torch.tensor(tokenizer(sentences)["input_ids"])


def _told(item: Item, truth: float, rng: random.Random) -> str:
    return item.choices[item.answer] if rng.random() < truth else rng.choice(item.choices)


def _sample(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return text[torch.randint(len(text), (count,), generator=generator)]


def _seed(settings: DemoSettings, stage: str) -> int:
    return zlib.crc32(f"{settings.seed} {stage}".encode())
