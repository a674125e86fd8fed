"""Writes test/golden-capacity/*.safetensors: what transformers 5.17 (torch, CPU, eager attention) computes for the golden NLLB-MoE model where its
experts have less room than its tokens ask for (configs.json there: what each changes in config.json). Run by hand, where torch and transformers are; test_capacity.py reads the files.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "test" / "golden-capacity"


def main(model=ROOT / "test" / "golden" / "nllb_moe", out=OUT):
    io = load_file(model / "io.safetensors")
    for name, change in json.loads((OUT / "configs.json").read_text()).items():
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(model, directory, dirs_exist_ok=True)
            config = json.loads((model / "config.json").read_text()) | change
            (Path(directory) / "config.json").write_text(json.dumps(config))
            network = AutoModelForSeq2SeqLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
            with torch.no_grad():
                logits = network(input_ids=io["input_ids"], decoder_input_ids=io["decoder_input_ids"]).logits
        save_file({"logits": logits.contiguous()}, out / f"{name}.safetensors")
        print(name, float((logits - io["logits"]).abs().max() / io["logits"].abs().max()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
