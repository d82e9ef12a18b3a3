"""A small byte-level tokenizer and a chat template, for models in tests that have to speak."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The chat format of SmolLM2, Qwen and Ouro. Unlike TEMPLATE it accepts a message without content.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_tokenizer(checkpoint: Path) -> Path:
    """Put tokenizer.json and chat_template.jinja into a checkpoint directory; every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello there, how are you? the user and the assistant"] * 9, trainer)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    return checkpoint
