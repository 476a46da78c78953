"""Shared prompts change no answer: models of many kinds against stock HFLM, which asks one request at a time."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kinray.errors import RunError, TaskError
from kinray.evaluation.likelihoods import Likelihoods
from kinray.evaluation.packing import PREFIX
from kinray.evaluation.sharing import Sharing, sharing_of

WORDS = [
    "the",
    "a",
    "lake",
    "stone",
    "is",
    "was",
    "deep",
    "red",
    "nine",
    "ninety",
    "walks",
    "walked",
    "seen",
    "unseen",
    "there",
]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
"""Wide weights, so that what a token sees decides what comes next."""
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
SHARING: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=128, final_logit_softcapping=5.0),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, sliding_window=128),
    "granite": lambda: transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
}
NOT_SHARING: dict[str, tuple[Callable[[], Any], str]] = {
    "bloom": (lambda: transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4), "no position_ids"),
    "mamba": (
        lambda: transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4),
        "no position_ids",
    ),
    "falcon with ALiBi": (
        lambda: transformers.FalconConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
        ),
        "ALiBi",
    ),
    "lfm2, with convolutions": (
        lambda: transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
        "layers of type conv",
    ),
    "gpt-neo, with a short window": (
        lambda: transformers.GPTNeoConfig(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            initializer_range=0.3,
        ),
        "does not keep answers in one row apart",
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges, as real ones have them: an answer may change the tokens of its prompt's end."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([" ".join(random.Random(0).choices(WORDS, k=2000))], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def language_model(config: Any, tokenizer: Any, dtype: torch.dtype = torch.float32, max_length: int = 400) -> HFLM:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=max_length)


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def instance(kind: str, task: str, item: int, number: int, *arguments: str) -> Instance:
    return Instance(kind, {}, arguments, number, (task, item, 1))


def choices(task: str, prompts: Sequence[str], draw: random.Random, answers: int = 4) -> list[Instance]:
    """Make one question of each prompt, with answers of different lengths."""
    return [
        instance("loglikelihood", task, item, number, prompt, " " + text(draw, draw.randint(1, 5)))
        for item, prompt in enumerate(prompts)
        for number in range(answers)
    ]


@pytest.fixture(scope="module")
def asked() -> list[Instance]:
    """Requests of every shape that tasks have."""
    draw = random.Random(1)
    examples = text(draw, 80)
    questions = choices("plain", [text(draw, draw.randint(3, 12)) for _ in range(5)], draw)
    few_shot = choices("few-shot", [f"{examples}\n{text(draw, 5)}" for _ in range(5)], draw)
    ending = [
        instance("loglikelihood", "ending", item, number, f"{start} {option}", end)
        for item, (start, end) in enumerate((text(draw, 6), " " + text(draw, 4)) for _ in range(3))
        for number, option in enumerate(WORDS[:3])
    ]
    odd = [
        # An empty context, alone and beside the same answer with one, as acc_mutual_info asks.
        (0, "", " deep lake"),
        (0, "the red", " deep lake"),
        (1, "", "<s> stone"),
        # The prompt's last spaces go to the answer; an answer goes on with the prompt's last word; it is asked twice.
        (2, "the lake was  ", "red"),
        (2, "the lake was  ", "deep"),
        (3, "seen nine", "ty stone"),
        (3, "seen nine", "ty deep"),
        (3, "seen nine", "ty stone"),
        # Longer than anything else.
        (4, text(draw, 70), " lake"),
        (4, text(draw, 70), " stone"),
    ]
    odd = [instance("loglikelihood", "odd", item, number, *arguments) for number, (item, *arguments) in enumerate(odd)]
    return [*questions, *few_shot, *ending, *odd]


def with_greedy(lm: HFLM, asked: Sequence[Instance]) -> list[Instance]:
    """Add questions with one answer that is just what the model itself would say."""
    greedy = []
    for item, prompt in enumerate({one.args[0] for one in asked if one.task_name == "plain"}):
        tokens = lm.tok_encode(prompt)
        with torch.no_grad():
            best = int(lm.model(torch.tensor([tokens])).logits[0, -1].argmax())
        answer = lm.tok_decode([best])
        if lm.tok_encode(prompt + answer) == [*tokens, best]:
            greedy += [instance("loglikelihood", "greedy", item, at, prompt, end) for at, end in enumerate([answer, " stone"])]
    return [*asked, *greedy]


@pytest.mark.parametrize("kind", SHARING)
def test_models_that_take_masks_share_prompts_and_answer_as_in_stock_lm_eval(
    kind: str, tokenizer: Any, asked: list[Instance]
) -> None:
    lm = language_model(SHARING[kind](), tokenizer)
    requests = with_greedy(lm, asked)

    sharing = sharing_of(lm, 256)
    ours = Likelihoods(lm, [requests], sharing, 256).answer()

    stock = lm.loglikelihood(requests, disable_tqdm=True)
    assert (sharing.reason, sharing.prefix) == ("", PREFIX)
    assert [likelihood for likelihood, _ in ours] == pytest.approx([likelihood for likelihood, _ in stock], abs=2e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert {greedy for _, greedy in ours} == {False, True}


@pytest.mark.parametrize("kind", NOT_SHARING)
def test_other_models_are_asked_one_request_at_a_time(kind: str, tokenizer: Any, asked: list[Instance]) -> None:
    config, reason = NOT_SHARING[kind]
    lm = language_model(config(), tokenizer)
    some = asked[:12]

    sharing = sharing_of(lm, 256)

    assert sharing.reach == 0
    assert reason in sharing.reason
    assert Likelihoods(lm, [some], sharing, 256).answer() == lm.loglikelihood(some, disable_tqdm=True)


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_requests_longer_than_a_sliding_window_share_nothing(kind: str, tokenizer: Any, asked: list[Instance]) -> None:
    configs = {"gemma3": transformers.Gemma3TextConfig, "mistral": transformers.MistralConfig}
    lm = language_model(configs[kind](**GROUPED, sliding_window=72), tokenizer)

    sharing = sharing_of(lm, 256)
    ours = Likelihoods(lm, [asked], sharing, 256).answer()

    stock = lm.loglikelihood(asked, disable_tqdm=True)
    right = pytest.approx([likelihood for likelihood, _ in stock], abs=2e-4)
    assert sharing.reach == 72
    assert [likelihood for likelihood, _ in ours] == right
    assert [likelihood for likelihood, _ in Likelihoods(lm, [asked], Sharing(), 256).answer()] != right


@pytest.mark.parametrize("budget", [16, 4096])
@pytest.mark.parametrize("max_length", [8, 60])
def test_prompts_are_cut_as_in_stock_lm_eval_whatever_the_budget(
    budget: int, max_length: int, tokenizer: Any, asked: list[Instance]
) -> None:
    lm = language_model(SHARING["llama"](), tokenizer, max_length=max_length)
    short = [one for one in asked if len(tokenizer.encode(one.args[1])) <= max_length]

    ours = Likelihoods(lm, [short], Sharing(), budget).answer()

    stock = lm.loglikelihood(short, disable_tqdm=True)
    assert len(short) > 40
    assert [likelihood for likelihood, _ in ours] == pytest.approx([likelihood for likelihood, _ in stock], abs=2e-4)


def test_rolling_likelihoods_sum_the_windows_of_stock_lm_eval(tokenizer: Any) -> None:
    lm = language_model(SHARING["llama"](), tokenizer, max_length=24)
    texts = [
        instance("loglikelihood_rolling", "rolling", item, 0, text(random.Random(item), words))
        for item, words in enumerate([1, 9, 60])
    ]

    ours = Likelihoods(lm, [texts], Sharing(), 64).answer()

    assert ours == pytest.approx(lm.loglikelihood_rolling(texts, disable_tqdm=True), abs=2e-4)


# -- the same for all children


def test_every_child_is_packed_the_same_way(tokenizer: Any, asked: list[Instance], monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision answers depend on what goes through the model together."""
    lm = language_model(SHARING["llama"](), tokenizer, torch.bfloat16)
    likelihoods = Likelihoods(lm, [asked], Sharing(), 256)
    passes: list[list[Any]] = [[], [], []]
    forward = lm.model.forward
    answers = []
    for child in range(3):

        def noted(child: int = child, **inputs: Any) -> Any:
            passes[child].append([inputs["input_ids"].tolist(), inputs.get("attention_mask")])
            return forward(**inputs)

        monkeypatch.setattr(lm.model, "forward", noted)
        with torch.no_grad():
            lm.model.model.norm.weight.fill_([1.0, 2.0, 1.0][child])
        answers.append(likelihoods.answer())

    tokens = [[tokens for tokens, _ in own] for own in passes]
    assert len(tokens[0]) > 2
    assert tokens[0] == tokens[1] == tokens[2]
    masks = [[mask for _, mask in own] for own in passes]
    assert all(
        one is other is None or torch.equal(one, other) for own in masks[1:] for one, other in zip(masks[0], own, strict=True)
    )
    assert answers[0] == answers[2] != answers[1]


def test_examples_that_all_questions_show_go_through_the_model_once(tokenizer: Any, asked: list[Instance]) -> None:
    lm = language_model(SHARING["llama"](), tokenizer)
    few_shot = [one for one in asked if one.task_name == "few-shot"]
    lengths = [len(tokenizer.encode("".join(one.args))) for one in few_shot]
    seen = []
    lm.model.model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True)

    Likelihoods(lm, [few_shot], Sharing(), 256).answer()

    assert min(lengths) > 60
    assert sum(seen) < 3 * min(lengths) < sum(lengths) / 5


def test_a_decision_depends_on_the_model_alone(tokenizer: Any) -> None:
    lms = [language_model(SHARING["qwen3"](), tokenizer) for _ in range(2)]
    state = torch.get_rng_state()

    assert sharing_of(lms[0], 64) == sharing_of(lms[1], 64)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_left_as_it_was(tokenizer: Any, asked: list[Instance]) -> None:
    lm = language_model(SHARING["llama"](), tokenizer)
    inputs = torch.tensor([[1, 2, 3]])
    before = lm.model(inputs).logits

    Likelihoods(lm, [asked[:8]], Sharing(), 64).answer()

    assert torch.equal(lm.model(inputs).logits, before)


# -- what cannot be asked


def test_an_answer_that_is_no_number_fails_the_child(tokenizer: Any, asked: list[Instance]) -> None:
    lm = language_model(SHARING["llama"](), tokenizer)
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))

    with pytest.raises(RunError, match="8 of 8 log-likelihoods of the child are NaN"):
        Likelihoods(lm, [asked[:8]], Sharing(), 64).answer()


@pytest.mark.parametrize(
    ("context", "answer", "said"),
    [
        ("the lake", "", "Task 'odd', item 3: the answer '' has no token of its own"),
        ("\n", "deep", "Task 'odd', item 3: the prompt before the answer 'deep' has no token"),
        ("the", " deep" * 30, r"has 30 tokens, but a prompt with its answer may have 20\. Raise evaluation\.max_length"),
    ],
)
def test_what_has_no_likelihood_is_an_error_of_the_task(context: str, answer: str, said: str, tokenizer: Any) -> None:
    lm = language_model(SHARING["llama"](), tokenizer, max_length=20)

    with pytest.raises(TaskError, match=said):
        Likelihoods(lm, [[instance("loglikelihood", "odd", 3, 0, context, answer)]], Sharing(), 64)
