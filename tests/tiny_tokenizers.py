"""Tiny tokenizers and chat templates for the tiny models.

Owns: two kinds of BPE (byte-level; "▁" with byte fallback), trained on five sentences, with each
family's real special tokens, and templates laid out as each family publishes them.
"""

from __future__ import annotations

import json
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_SENTENCES = [
    "How many animals are in this list: cat, dog, table, horse? There are three animals.",
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system USER: ASSISTANT: What colour is the square in the picture? It is red.",
    "The opposite of hot is cold. The plural of mouse is mice. Kenya lies in Africa.",
    "You are a helpful assistant. Answer with one word. yes no 0 1 2 3 4 5 6 7 8 9 10 11 12",
]

# The templates follow each family's published layout of a conversation; the wording is ours.
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like Qwen3's: an empty thought before the answer when thinking is off.
CHATML_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] | trim + eos_token }}{% else %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# As Gemma 3's own: the system turn stands at the head of the first user's.
GEMMA_IMAGES = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + (first if loop.first else '') }}"
    "{% for b in m['content'] %}{% if b['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ b['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As in LLaVA-1.5's own: content must be blocks, and nothing ends the assistant's turn.
VICUNA = (
    "{% for m in messages %}"
    "{% if m['role'] != 'system' %}{{ m['role'] | upper + ': ' }}{% endif %}"
    "{% for b in m['content'] if b['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for b in m['content'] if b['type'] == 'text' %}{{ b['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INST_IMAGES = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% for b in m['content'] if b['type'] == 'text' %}{{ ' ' + b['text'] + '</s>' }}{% endfor %}"
    "{% else %}{{ '[INST] ' }}"
    "{% for b in m['content'] if b['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for b in m['content'] if b['type'] == 'text' %}{{ b['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
CHATML_IMAGES_FIRST = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for b in m['content'] if b['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for b in m['content'] if b['type'] == 'text' %}{{ '\n' + b['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_IMAGES = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for b in m['content'] %}"
    "{% if b['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ b['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# As InternVL's own: a picture is one placeholder and a line break.
CHATML_CONTEXT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for b in m['content'] %}"
    "{% if b['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% else %}{{ b['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# As SmolVLM's own: roles are words, one token ends every turn.
CAPITALISED = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for b in m['content'] %}{% if b['type'] == 'text' %}{{ b['text'] }}"
    "{% elif b['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def byte_level(specials: list[str], **kwargs: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 entries with `specials` after it, as Llama 3 and Qwen have."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_SENTENCES, trainer)
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(tokenizer_object=core, **kwargs)


def metaspace(
    kind: type, leading: list[str], specials: list[str], **kwargs: Any
) -> PreTrainedTokenizerBase:
    """A BPE over "▁" with byte fallback: what Llama 2, Mistral, Phi-3 and Gemma have."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    core.train_from_iterator(_SENTENCES, trainer)
    trained = json.loads(core.to_str())["model"]
    names = [*leading, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in trained["vocab"] if name not in names]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    tokenizer = kind(vocab={name: i for i, name in enumerate(names)}, merges=merges, **kwargs)
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return tokenizer


def chatml_tokenizer(
    *more: str, pad: str = "<|endoftext|>", **kwargs: Any
) -> PreTrainedTokenizerFast:
    """Qwen's: ends a turn with <|im_end|>, pads with <|endoftext|>."""
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more],
        eos_token="<|im_end|>",
        pad_token=pad,
        **kwargs,
    )


def llama_tokenizer(*more: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    return metaspace(
        transformers.LlamaTokenizer,
        ["<unk>", "<s>", "</s>"],
        list(more),
        add_bos_token=True,
        legacy=False,
        **kwargs,
    )
