"""Small pairs of an image and a text tower with random weights, in the format in which open_clip keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lookalike.models.open_clip import import_open_clip

CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# Like SigLIP: an image tower of timm, a text tower without a causal mask, and a tokenizer of its own.
SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 12,
        "hf_tokenizer_name": "somebody/tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "dog", "on", "beach", "car", "cat"]


def write_clip(folder: Path, *, pickle: bool = False, seed: int = 0) -> Path:
    """A pair like CLIP, with CLIP's tokenizer."""
    open_clip = import_open_clip()
    torch.manual_seed(seed)
    pair = open_clip.CLIP(**CLIP)
    _write(folder, pair, CLIP, {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}, pickle)
    return folder


def write_siglip(folder: Path) -> Path:
    """A pair like SigLIP, whose tokenizer is in the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    open_clip = import_open_clip()
    torch.manual_seed(0)
    towers = {key: value for key, value in SIGLIP.items() if key != "custom_text"}
    towers["text_cfg"] = {key: value for key, value in SIGLIP["text_cfg"].items() if key != "tokenizer_kwargs"}
    _write(folder, open_clip.CustomTextCLIP(**towers), SIGLIP, {"resize_mode": "squash"}, False)
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "</s>"}}))
    return folder


def _write(folder: Path, pair: torch.nn.Module, cfg: dict[str, Any], preprocess: dict[str, Any], pickle: bool) -> None:
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    if pickle:
        torch.save(pair.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(pair.state_dict(), folder / "open_clip_model.safetensors")
