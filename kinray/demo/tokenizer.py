"""The demo's tokenizer: one token a word, with its leading space, so that text survives a round trip."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kinray.demo.skills import SKILLS

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_FRAME = ("The", " largest", " earliest", " of", " among", " is")


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Makes a word-level tokenizer over every word the skills use; it adds no special tokens by itself."""
    words = [f" {word}" for skill in SKILLS.values() for word in skill.words]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *_FRAME, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )
