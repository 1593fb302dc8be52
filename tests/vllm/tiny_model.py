"""Makes a tiny Qwen2 that calls a tool: `python tiny_model.py DIR [SEED ...]`, in the vLLM venv.

A byte-level BPE trained on the spot and 95,000 parameters, overfitted on a few sums until greedy
decoding surely gives correct calls: 400 steps, 10 s. Nothing is downloaded. It lies in `DIR/tiny`;
in a folder named by each seed, its weights are noise: other versions of the policy.
"""

# mypy: ignore-errors

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEMPLATE = r"""
{%- set first = 1 if tools and messages[0].role == 'system' else 0 %}
{%- if tools %}{{ '<|im_start|>system\n' ~ (messages[0].content ~ '\n\n' if first else '') }}
{{- '# Tools\n<tools>\n' }}
{%- for t in tools %}{{ t | tojson ~ '\n' }}{% endfor %}{{ '</tools><|im_end|>\n' }}{% endif %}
{%- for m in messages[first:] %}
{%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first else '' }}
{{- '<tool_call>\n{"name": "' ~ c.function.name ~ '", "arguments": ' }}
{{- c.function.arguments | tojson ~ '}\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' ~ m.content ~ '\n</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endif %}
{%- endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"""

ADD = {
    "type": "function",
    "function": json.loads(Path(__file__).with_name("add_tool.json").read_text(encoding="utf-8")),
}
SUMS = [(12, 30), (1, 2), (5, 5), (20, 7), (3, 9), (40, 2), (8, 8), (6, 15)]
MOST_STEPS = 3000
SURE = 0.8


def make(folder: Path, seed: int | None) -> None:
    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.set_num_threads(1)  # more only wait for each other over so few numbers
    torch.manual_seed(seed or 0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            tie_word_embeddings=False,  # vLLM 0.32 keeps a tied head's old weights at a reload
            bos_token_id=None,
            **ends,
        )
    )
    if seed is None:
        model.config.save_pretrained(folder)
        # as served: of the folder's model type, which cuts words otherwise than what was saved
        overfit(model, AutoTokenizer.from_pretrained(folder))
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)


def new_tokenizer() -> PreTrainedTokenizerFast:
    corpus = [
        "You are a helpful assistant. What is 12 + 30? The answer is 42.",
        '{"name": "add", "arguments": {"a": 1}}',
    ] * 20
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(corpus, trainer)
    marks = [f"<{s}tool_{k}>" for k in ("call", "response") for s in ("", "/")]
    tokens.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def dialogue(a: int, b: int) -> list[dict]:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}
    return [
        {"role": "user", "content": f"What is {a} + {b}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": str(a + b)},
        {"role": "assistant", "content": f"The answer is {a + b}."},
    ]


def overfit(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    batch = []
    for a, b in SUMS:
        row = tokenizer.apply_chat_template(
            dialogue(a, b), tools=[ADD], return_dict=True, return_assistant_tokens_mask=True
        )
        ids = torch.tensor([row["input_ids"]])
        mask = torch.tensor([row["assistant_masks"]]).bool()
        batch.append((ids, torch.where(mask, ids, -100)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(MOST_STEPS):
        if step % len(batch) == 0 and all(surely_says(model, *row) for row in batch):
            return
        ids, labels = batch[step % len(batch)]
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    sys.exit(f"it has not learnt its sums in {MOST_STEPS} steps (loss {loss.item():.4f})")


def surely_says(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether greedy decoding gives every labelled token, with room for another engine's floats."""
    with torch.no_grad():
        sure = model(input_ids=ids).logits[0, :-1].softmax(-1)
    wanted = labels[0, 1:]
    places = wanted != -100
    return bool((sure[places, wanted[places]] > SURE).all())


for name in ("tiny", *sys.argv[2:]):
    make(Path(sys.argv[1]) / name, None if name == "tiny" else int(name))
