"""Logprobs of tokens by a Hugging Face forward pass: `python forward.py MODEL < tokens.json`."""

# mypy: ignore-errors

import json
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
found = []
for prompt, generated in json.load(sys.stdin):
    ids = torch.tensor([prompt + generated])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(generated) - 1)
    found.append([logprobs[at, token].item() for at, token in zip(places, generated, strict=True)])
json.dump(found, sys.stdout)
