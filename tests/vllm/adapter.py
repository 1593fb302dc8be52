"""LoRA adapters for the tiny model: `python adapter.py TINY DIR SEED ...`.

`DIR/merged-SEED` is the model that the adapter in `DIR/SEED` makes of TINY, for a forward pass
without LoRA.
"""

# mypy: ignore-errors

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

RANK = 8
MODULES = ("q_proj", "v_proj")


def make(tiny: str, adapter: Path, merged: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    found = {}
    for name, module in model.named_modules():
        if name.endswith(MODULES):
            down = torch.randn(RANK, module.in_features) * 0.3
            up = torch.randn(module.out_features, RANK) * 0.3
            found[f"base_model.model.{name}.lora_A.weight"] = down
            found[f"base_model.model.{name}.lora_B.weight"] = up
            module.weight.data += up @ down
    adapter.mkdir(parents=True, exist_ok=True)
    save_file(found, adapter / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": tiny,
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(MODULES),
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    model.save_pretrained(merged)


for given in sys.argv[3:]:
    folder = Path(sys.argv[2])
    make(sys.argv[1], folder / given, folder / f"merged-{given}", int(given))
