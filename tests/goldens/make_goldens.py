#!/usr/bin/env python3
"""Makes every file of this folder that a test compares against: what PyTorch and transformers compute.

    python3 -m venv venv
    venv/bin/pip install torch transformers safetensors tokenizers jinja2
    venv/bin/python tests/goldens/make_goldens.py

Writes next to itself, needs no network and no GPU, takes under a minute, and gives the same bytes each time on one
machine (another CPU may differ in the last bits of f32: compare with a tolerance). The committed files were made with
Python 3.11, torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3, safetensors 0.8.0 and jinja2 3.1.6.

What it is not: a test. The tests read the files; neither building nor testing the project needs Python. README.md in this
folder says what each file holds. The script also checks itself: each config is read back by transformers before its
logits are written, and each feature of a variant (a bias, a window, a rope scaling, ...) is shown to move the logits, so
that a decoder that ignores it cannot pass.
"""
import json
import os
import random
import shutil
import warnings
import zlib
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
VOCAB, TOKENS = 97, 24


# ---------------------------------------------------------------------------------------------------------------- shared


def generator(name):
    """A torch generator whose stream depends on `name` only, so that adding a variant changes no other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def fresh_folder(*parts):
    folder = HERE.joinpath(*parts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save(tensors, path):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def random_weights(config, seed):
    """Weights by name, as the folder stores them: matrices 0.15 randn, norms 1 + 0.2 randn (Gemma: 0.2 randn), biases 0.2 randn."""
    weights = {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in sorted(model.named_parameters()):  # a tied head is no parameter of its own
        x = torch.randn(parameter.shape, generator=generator(f"{seed}/{name}"))
        if name.endswith(".bias"):
            x = 0.2 * x
        elif "norm" in name or ".ln_" in name:
            x = (0 if config.model_type.startswith("gemma") else 1) + 0.2 * x
        else:
            x = 0.15 * x
        weights[name] = x
    assert ("lm_head.weight" in weights) != config.tie_word_embeddings
    return weights


def load(folder):
    """The folder as transformers reads it: f32 arithmetic, eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


# ---------------------------------------------------------------------------------------------------------------- models

LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  # head_dim 8, theta 10000: wavelengths 6.3, 63, 628, 6283 = kept, blended, divided, divided
                  "original_max_position_embeddings": 100}


def base(family, **changes):
    """config.json in the transformers-4 spelling (what most folders on the hub hold)."""
    config = {
        "architectures": [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                           "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "gemma2": "Gemma2ForCausalLM",
                           "gemma3_text": "Gemma3ForCausalLM"}[family]],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
    }
    config.update({
        "llama": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None},
        "mistral": {"sliding_window": None},
        # a window that is named but switched off, as Qwen's own files have it: it must not apply
        "qwen2": {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0, "rms_norm_eps": 1e-6},
        "qwen3": {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "head_dim": 16,
                  "attention_bias": False, "rms_norm_eps": 1e-6, "rope_scaling": None},
        "smollm3": {**SMALL, "attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "sliding_window": None,
                    "rope_scaling": None, "tie_word_embeddings": True},
        "gemma2": {**SMALL, **GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
        "gemma3_text": {**SMALL, **GEMMA, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2,
                        "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    }[family])
    config.update(changes)
    if family.startswith("gemma"):
        del config["hidden_act"]
    return config


# a pad token's embedding would get no gradient
SMALL = {"hidden_size": 24, "intermediate_size": 32, "head_dim": 6, "pad_token_id": None}
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 10, "sliding_window": 5, "attention_bias": False,
         "rms_norm_eps": 1e-6, "tie_word_embeddings": True}


def gpt2(**changes):
    """config.json of a GPT-2, whose keys are its own."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "n_embd": 24,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 40,
        "vocab_size": VOCAB,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
        **changes,
    }


def as_v5(config):
    """The same config in the transformers-5 spelling: rope_parameters and dtype instead of rope_theta, rope_scaling, torch_dtype."""
    config = dict(config, dtype=config["torch_dtype"], transformers_version="5.24.0")
    config["rope_parameters"] = {"rope_theta": config["rope_theta"], "rope_type": "default", **(config.get("rope_scaling") or {})}
    for old in ("rope_theta", "rope_scaling", "torch_dtype"):
        config.pop(old, None)
    if config["model_type"] == "llama":
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if config["model_type"] == "gemma3_text":
        rope = config["rope_parameters"]
        config["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": config.pop("rope_local_base_freq"), "rope_type": "default"}}
        every = config.pop("sliding_window_pattern")
        config["layer_types"] = ["sliding_attention" if (i + 1) % every else "full_attention"
                                 for i in range(config["num_hidden_layers"])]
    if config["model_type"].startswith("qwen"):
        config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    return dict(sorted(config.items()))


# name -> (config.json, the readings of it that must give other logits: a changed config, or (suffix, value) for weights)
MODELS = {
    "llama_tied": (as_v5(base("llama", tie_word_embeddings=True, rope_theta=500.0)),
                   [{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, {"rms_norm_eps": 1e-3}]),
    "llama_untied": (base("llama", rope_theta=2000.0), [{"rope_theta": 10000.0}]),
    "llama_biases": (base("llama", attention_bias=True, mlp_bias=True),
                     [("q_proj.bias", 0), ("k_proj.bias", 0), ("v_proj.bias", 0), ("o_proj.bias", 0), ("gate_proj.bias", 0),
                      ("up_proj.bias", 0), ("down_proj.bias", 0)]),
    "llama3_rope": (base("llama", max_position_embeddings=800, rope_scaling=LLAMA3_SCALING),
                    [{"rope_scaling": None}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
                     {"rope_scaling": dict(LLAMA3_SCALING, high_freq_factor=2.0)},
                     {"rope_scaling": dict(LLAMA3_SCALING, original_max_position_embeddings=800)}]),
    "llama3_rope_v5": (as_v5(base("llama", max_position_embeddings=800, rope_scaling=LLAMA3_SCALING)),
                       [{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}]),
    "llama_linear_rope": (base("llama", rope_scaling={"type": "linear", "factor": 4.0}), [{"rope_scaling": None}]),
    "llama_mha": (base("llama", num_key_value_heads=4), []),
    "llama_head_dim": (base("llama", head_dim=12), []),
    "mistral": (base("mistral"), [{"sliding_window": 5}]),
    "mistral_window": (base("mistral", sliding_window=5),
                       [{"sliding_window": None}, {"sliding_window": 4}, {"sliding_window": 6}]),
    "qwen2": (base("qwen2"), [("q_proj.bias", 0), ("k_proj.bias", 0), ("v_proj.bias", 0), {"use_sliding_window": True}]),
    "qwen2_tied": (base("qwen2", tie_word_embeddings=True, rope_theta=1000000.0), [{"rope_theta": 10000.0}]),
    "qwen3": (as_v5(base("qwen3", rope_theta=1000000.0)), [("q_norm.weight", 1), ("k_norm.weight", 1)]),
    "qwen3_tied": (base("qwen3", tie_word_embeddings=True), [("q_norm.weight", 1), ("k_norm.weight", 1)]),
    "smollm3": (base("smollm3", num_hidden_layers=3, no_rope_layer_interval=2),
                [{"no_rope_layer_interval": 4}, {"no_rope_layers": [1, 1, 0]}, {"rope_theta": 100.0}]),
    # the layers that do not rotate slide
    "smollm3_window_v5": (as_v5(base("smollm3", use_sliding_window=True, sliding_window=5, no_rope_layers=[0, 1],
                                     attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
                          [{"no_rope_layers": [1, 1]}, {"use_sliding_window": False}, {"sliding_window": 6},
                           {"layer_types": ["full_attention", "sliding_attention"]}, ("o_proj.bias", 0), ("down_proj.bias", 0)]),
    "gemma2": (base("gemma2"),
               [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"query_pre_attn_scalar": 6},
                {"sliding_window": 6}, {"layer_types": ["full_attention", "sliding_attention"]},
                ("pre_feedforward_layernorm.weight", 0), ("post_feedforward_layernorm.weight", 0),
                ("post_attention_layernorm.weight", 0), ("input_layernorm.weight", 0)]),
    "gemma2_no_caps_v5": (as_v5(base("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None,
                                     layer_types=["full_attention", "sliding_attention"], tie_word_embeddings=False)),
                          [{"attn_logit_softcapping": 5.0}, {"layer_types": None}]),
    "gemma3": (base("gemma3_text", num_hidden_layers=3),
               [{"rope_scaling": None}, {"rope_local_base_freq": 10000.0}, {"rope_theta": 100.0}, {"sliding_window": 6},
                {"sliding_window_pattern": 3}, {"query_pre_attn_scalar": 6}, ("q_norm.weight", 0), ("k_norm.weight", 0)]),
    "gemma3_v5": (as_v5(base("gemma3_text", num_hidden_layers=3)), [{"layer_types": None}]),
    "gemma3_cap": (base("gemma3_text", final_logit_softcapping=2.0, attention_bias=True, tie_word_embeddings=False,
                        rope_scaling=None),
                   [{"final_logit_softcapping": None}, ("q_proj.bias", 0), ("o_proj.bias", 0)]),
    "gpt2": (gpt2(), [("c_attn.bias", 0), ("c_proj.bias", 0), ("c_fc.bias", 0), ("ln_f.bias", 0), ("ln_1.bias", 0),
                      ("wpe.weight", 0), {"layer_norm_epsilon": 1e-2}]),
    # as the first files on the hub: no prefix, and the causal mask among the weights
    "gpt2_bare": (gpt2(n_inner=40, activation_function="gelu_pytorch_tanh"), [{"activation_function": "relu"}]),
    "gpt2_untied": (gpt2(tie_word_embeddings=False, n_head=8), []),
    "llama_sharded": (base("llama"), []),
    "llama_bf16": (base("llama", torch_dtype="bfloat16"), []),
    "llama_f16": (base("llama", torch_dtype="float16"), []),
}
SEED_OF = {"llama3_rope_v5": "llama3_rope", "gemma3_v5": "gemma3"}  # the same weights, the other spelling


def read_config(config, folder):
    write_json(folder / "config.json", config)
    return AutoConfig.from_pretrained(folder)


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def logits_of_misreading(change, config, weights, ids, scratch):
    """The logits if `change` is made to the config, or to the weights whose names end in a suffix."""
    if isinstance(change, dict):
        config = {**config, **change}
    else:
        suffix, value = change
        assert any(k.endswith(suffix) for k in weights), suffix
        weights = {k: torch.full_like(v, value) if k.endswith(suffix) else v for k, v in weights.items()}
    model = AutoModelForCausalLM.from_config(read_config(config, scratch), attn_implementation="eager").float().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return logits_of(model, ids)


def make_models():
    shutil.rmtree(HERE / "models", ignore_errors=True)
    expected = {}
    for name, (config, misreadings) in MODELS.items():
        folder = fresh_folder("models", name)
        weights = random_weights(read_config(config, folder), SEED_OF.get(name, name))
        stored_as = getattr(torch, config.get("dtype", config.get("torch_dtype")))
        weights = {k: v.to(stored_as) for k, v in weights.items()}
        if name == "llama_sharded":
            shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
            where = {k: shards[i % 3 == 2] for i, k in enumerate(sorted(weights))}  # a layer's tensors lie in both
            for shard in shards:
                save({k: v for k, v in weights.items() if where[k] == shard}, folder / shard)
            size = sum(v.numel() * v.element_size() for v in weights.values())
            write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
        elif name == "gpt2_bare":
            bare = {k.removeprefix("transformer."): v for k, v in weights.items()}
            masks = {f"h.{i}.attn.bias": torch.tril(torch.ones(1, 1, 40, 40)) for i in range(config["n_layer"])}
            save({**bare, **masks}, folder / "model.safetensors")
        else:
            save(weights, folder / "model.safetensors")

        ids = torch.randint(0, VOCAB, (1, TOKENS), generator=generator(f"{SEED_OF.get(name, name)}/input_ids"))
        logits = logits_of(load(folder), ids)
        assert logits.shape == (1, TOKENS, VOCAB) and logits.dtype == torch.float32 and logits.std() > 0.5
        save({"input_ids": ids, "logits": logits}, folder / "expected.safetensors")
        expected[name] = logits

        scratch = fresh_folder("scratch")
        upcast = {k: v.float() for k, v in weights.items()}
        same = (logits_of_misreading({}, config, upcast, ids, scratch) - logits).abs().max().item()
        assert same < 1e-5, (name, same)
        least = [(logits_of_misreading(m, config, upcast, ids, scratch) - logits).abs().max().item() for m in misreadings]
        assert all(d > 2e-3 for d in least), (name, list(zip(misreadings, least)))
        shutil.rmtree(scratch)
        print(f"models/{name}: logits std {logits.std():.2f}, least effect of a misreading "
              f"{min(least):.1e}" if least else f"models/{name}: logits std {logits.std():.2f}")
    assert torch.equal(expected["llama3_rope"], expected["llama3_rope_v5"])
    assert torch.equal(expected["gemma3"], expected["gemma3_v5"])


# ------------------------------------------------------------------------------------------------------------------ step

STEP = {
    "objective": "(1 - w) T^2 mean KL(p_T || q_T) + w mean CE, means over the N target tokens of the whole step",
    "temperature": 2.0,
    "hard_label_weight": 0.3,
    "steps": 10,
    "peak_learning_rate": 3e-3,
    "warmup_steps": 4,
    "schedule": "peak (step + 1) / 4 for step < 4, then peak (10 - step) / (10 - 4)",
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "weight_decay_on": "matrices, embeddings included; not norms, not biases",
    "max_grad_norm": 1.0,
    "clip": "torch.nn.utils.clip_grad_norm_: gradients times min(1, max_grad_norm / (norm + 1e-6))",
}
STUDENT_SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
STUDENTS = {
    "student": base("llama", hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1,
                    head_dim=8, tie_word_embeddings=True),
    "student_qwen2": base("qwen2", hidden_size=24, intermediate_size=40, num_attention_heads=3, num_key_value_heads=1),
    "student_smollm3": base("smollm3", **STUDENT_SIZE, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=4),
    "student_gemma2": base("gemma2", **STUDENT_SIZE, sliding_window=4),
    # wider than the others: at 16, rounding operands to bf16 moves PyTorch's own gradient by 7%, at 24 by 1%
    "student_gemma3": base("gemma3_text", **{**STUDENT_SIZE, "hidden_size": 24, "intermediate_size": 32}, sliding_window=4),
    "student_gpt2": gpt2(n_embd=16, n_inner=24, n_head=2, n_positions=20),
}


def by_the_decoders_names(gradients):
    """GPT-2's gradients as the decoder holds its weights: queries, keys and values apart, matrices [out, in]."""
    modules = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
               "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    whole = {"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm"}
    named = {}
    for name, g in gradients.items():
        module, kind = name.removeprefix("transformer.").rsplit(".", 1)
        if module in whole:
            named[f"model.{whole[module]}.{kind}"] = g
            continue
        _, block, module = module.split(".", 2)
        if not module.startswith("ln_"):
            g = g.T if g.dim() == 2 else g
        if module == "attn.c_attn":
            for part, x in zip("qkv", g.chunk(3)):
                named[f"model.layers.{block}.self_attn.{part}_proj.{kind}"] = x
        else:
            named[f"model.layers.{block}.{modules[module]}.{kind}"] = g
    return named


def make_batches():
    """Ten steps of four ragged rows. targets[i] = 1: token i is predicted, by the logits at i - 1 (so never token 0)."""
    rng = random.Random(7)
    batches = []
    for step in range(STEP["steps"]):
        lengths = [3, 17] + [rng.randint(4, 16) for _ in range(2)]
        rng.shuffle(lengths)
        poor = rng.randrange(4)  # this row has one target
        rows = []
        for r, length in enumerate(lengths):
            while True:
                targets = [0] + [int(rng.random() < 0.6) for _ in range(length - 1)]
                if r == poor:
                    targets = [0] * (length - 1) + [1]
                if any(targets):
                    break
            rows.append({"ids": [rng.randrange(VOCAB) for _ in range(length)], "targets": targets})
        batches.append(rows)
    return batches


def step_loss(teacher, student, rows):
    """Sums over the target tokens of a step, divided once by their number: total, KL(p_T || q_T), cross-entropy.

    Each row runs alone, so that no padding and no mask can matter. Models in f32, the loss of their logits in f64."""
    t, w = STEP["temperature"], STEP["hard_label_weight"]
    count, kl, ce = 0, 0.0, 0.0
    for row in rows:
        ids = torch.tensor([row["ids"]])
        at = torch.tensor(row["targets"]).nonzero()[:, 0]
        with torch.no_grad():
            p = F.log_softmax(teacher(input_ids=ids, use_cache=False).logits[0, at - 1].double() / t, -1)
        z = student(input_ids=ids, use_cache=False).logits[0, at - 1].double()
        kl = kl + F.kl_div(F.log_softmax(z / t, -1), p, log_target=True, reduction="sum")
        ce = ce + F.cross_entropy(z, ids[0, at], reduction="sum")
        count += len(at)
    kl, ce = kl / count, ce / count
    return (1 - w) * t * t * kl + w * ce, kl, ce, count


def learning_rate(step):
    warmup, steps = STEP["warmup_steps"], STEP["steps"]
    return STEP["peak_learning_rate"] * ((step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup))


def run_steps(teacher, student, batches, decay_matrices=None, decay_vectors=0.0, only=None):
    """Ten AdamW steps: what each step saw before its update, and the gradients of step 0 by name (divided by N, not clipped)."""
    parameters = dict(student.named_parameters()) if only is None else only
    decay_matrices = STEP["weight_decay"] if decay_matrices is None else decay_matrices
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": decay_matrices},
         {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": decay_vectors}],
        betas=(STEP["beta1"], STEP["beta2"]), eps=STEP["epsilon"])
    history, gradients = [], None
    for step, rows in enumerate(batches):
        loss, kl, ce, count = step_loss(teacher, student, rows)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), STEP["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        history.append({"targets": count, "loss": loss.item(), "divergence": kl.item(),
                        "cross_entropy": ce.item(), "grad_norm": norm.item(), "learning_rate": learning_rate(step)})
    return history, gradients


def make_step():
    folder = fresh_folder("step")
    for name, config in {"teacher": base("llama"), **STUDENTS}.items():
        (folder / name).mkdir()
        save(random_weights(read_config(config, folder / name), f"step/{name}"), folder / name / "model.safetensors")
    batches = make_batches()
    lines = [json.dumps(row, separators=(",", ":")) for rows in batches for row in rows]
    (folder / "batches.json").write_text(
        "[\n" + ",\n".join("[\n" + ",\n".join(lines[4 * i:4 * i + 4]) + "\n]" for i in range(len(batches))) + "\n]\n")
    teacher = load(folder / "teacher").requires_grad_(False)
    for name in STUDENTS:
        history, gradients = run_steps(teacher, load(folder / name), batches)
        assert all(g.abs().max() > 0 for g in gradients.values())
        gradients = by_the_decoders_names(gradients) if name == "student_gpt2" else gradients
        save(gradients, folder / f"expected_{name}.safetensors")
        write_json(folder / f"expected_{name}.json", {**STEP, **{k: [h[k] for h in history] for k in history[0]}})
        # what the usual mistakes with weight decay change
        for other in ({"decay_matrices": 0.0}, {"decay_vectors": STEP["weight_decay"]}):
            wrong, _ = run_steps(teacher, load(folder / name), batches, **other)
            effect = max(abs(a["loss"] - b["loss"]) for a, b in zip(history, wrong))
            print(f"step/{name}: losses {history[0]['loss']:.4f} to {history[-1]['loss']:.4f}, {other} moves one by {effect:.1e}")
            assert effect > 2e-5


# ------------------------------------------------------------------------------------------------------------------ lora

LORA = {"base": "step/student_qwen2", "rank": 3, "alpha": 6.0, "scale": "alpha / rank: W + scale B A"}


class LowRank(torch.nn.Module):
    """A frozen matrix with scale B A added, A [rank, in] and B [out, rank]."""

    def __init__(self, weight, name):
        super().__init__()
        draw = lambda letter, *shape: torch.nn.Parameter(
            0.3 * torch.randn(shape, generator=generator(f"lora/{name}.{letter}")))
        self.a, self.b = draw("A", LORA["rank"], weight.shape[1]), draw("B", weight.shape[0], LORA["rank"])

    def forward(self, weight):
        return weight + LORA["alpha"] / LORA["rank"] * self.b @ self.a


def make_lora():
    """The ten steps of `step` for a frozen student whose blocks' matrices have low-rank factors, which alone learn."""
    folder = fresh_folder("lora")
    teacher = load(HERE / "step" / "teacher").requires_grad_(False)
    student = load(HERE / LORA["base"]).requires_grad_(False)
    factors = {}
    for name, module in list(student.named_modules()):
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            low = LowRank(module.weight, name)
            torch.nn.utils.parametrize.register_parametrization(module, "weight", low)
            factors |= {f"base_model.model.{name}.lora_{letter}.weight": p for letter, p in (("A", low.a), ("B", low.b))}
    assert len(factors) == 2 * 2 * 7
    save({name: p.detach().clone() for name, p in factors.items()}, folder / "adapters.safetensors")
    assert sum(p.requires_grad for p in student.parameters()) == len(factors)
    history, gradients = run_steps(teacher, student, make_batches(), only=factors)
    assert all(g.abs().max() > 0 for g in gradients.values())
    save(gradients, folder / "expected.safetensors")
    write_json(folder / "expected.json", {**STEP, **LORA, **{k: [h[k] for h in history] for k in history[0]}})
    print(f"lora: losses {history[0]['loss']:.4f} to {history[-1]['loss']:.4f}")


# ---------------------------------------------------------------------------------------------------------------- losses


def forward_kl(p_logits, q_logits, t):
    """KL(p || q) per row at temperature t, without the factor t^2; 0 log 0 = 0."""
    p, q = F.log_softmax(p_logits / t, -1), F.log_softmax(q_logits / t, -1)
    inside = torch.isfinite(p)
    return torch.where(inside, p.exp() * (torch.where(inside, p, 0.0) - q), 0.0).sum(-1)


def mean_log(a, b):
    """Sum of a * b where a is not 0."""
    return torch.where(a > 0, a * torch.where(a > 0, b, 0.0), 0.0).sum(-1)


def probabilities(p_logits, q_logits, t):
    return F.softmax(p_logits / t, -1), F.softmax(q_logits / t, -1)


def reverse_kl(p_logits, q_logits, t):
    """KL(q || p) over the teacher's support, q renormalised there."""
    inside = torch.isfinite(p_logits)
    q_logits = torch.where(inside, q_logits, float("-inf"))
    p, q = F.log_softmax(p_logits / t, -1), F.log_softmax(q_logits / t, -1)
    q_of = torch.where(inside, q, 0.0)
    return torch.where(inside, q_of.exp() * (q_of - torch.where(inside, p, 0.0)), 0.0).sum(-1)


def jsd(p_logits, q_logits, t, beta):
    p, q = probabilities(p_logits, q_logits, t)
    m = beta * p + (1 - beta) * q
    return beta * mean_log(p, p.log() - m.log()) + (1 - beta) * mean_log(q, q.log() - m.log())


def skew_kl(p_logits, q_logits, t, weight):
    p, q = probabilities(p_logits, q_logits, t)
    return mean_log(p, p.log() - (weight * p + (1 - weight) * q).log())


def skew_reverse_kl(p_logits, q_logits, t, weight):
    p, q = probabilities(p_logits, q_logits, t)
    return mean_log(q, q.log() - ((1 - weight) * p + weight * q).log())


def tvd(p_logits, q_logits, t):
    p, q = probabilities(p_logits, q_logits, t)
    return (p - q).abs().sum(-1) / 2


def of_known(logits, ids, t, tail):
    """Logits, for a temperature of 1, of the distribution over the tokens `ids`: with one bucket of all others, or without."""
    known = (logits / t).gather(-1, ids)
    if tail == "renormalize":
        return known
    others = (logits / t).scatter(-1, ids, float("-inf"))
    return torch.cat([known, torch.logsumexp(others, -1, keepdim=True)], -1)


def make_losses():
    n, v = 7, 61
    g = generator("losses")
    teacher, student = 3 * torch.randn(n, v, generator=g), 3 * torch.randn(n, v, generator=g)
    labels = torch.randint(0, v, (n,), generator=g)
    teacher[2, ::4] = float("-inf")       # a quarter of the vocabulary is impossible
    teacher[5, :] = float("-inf")         # all but two entries are
    teacher[5, 17], teacher[5, 40] = 1.5, -0.25
    student[3] = teacher[3]               # p == q: value and gradient 0
    tensors = {"teacher": teacher, "student": student, "labels": labels}
    sums = {}

    def expect(name, loss, analytic=None):
        z = student.double().requires_grad_(True)
        values = loss(z)
        values.sum().backward()
        assert torch.isfinite(z.grad).all()
        assert analytic is None or (z.grad - analytic(z.detach())).abs().max() < 1e-12
        tensors[f"{name}.values"], tensors[f"{name}.gradient"] = values.detach(), z.grad
        sums[name] = values.sum().item()

    for t in (1.0, 2.0, 4.0):
        expect(f"forward_kl_t{t:g}", lambda z: forward_kl(teacher.double(), z, t),
               lambda z: (F.softmax(z / t, -1) - F.softmax(teacher.double() / t, -1)) / t)
    y = teacher.double()
    for t in (1.0, 2.0):
        expect(f"reverse_kl_t{t:g}", lambda z: reverse_kl(y, z, t))
        expect(f"tvd_t{t:g}", lambda z: tvd(y, z, t))
        for beta in (0.1, 0.5, 0.9):
            expect(f"jsd_{beta}_t{t:g}", lambda z: jsd(y, z, t, beta))
        for weight in (0.1, 0.5):
            expect(f"skew_kl_{weight}_t{t:g}", lambda z: skew_kl(y, z, t, weight))
            expect(f"skew_reverse_kl_{weight}_t{t:g}", lambda z: skew_reverse_kl(y, z, t, weight))
    ids = teacher.topk(8, -1).indices
    tensors["top8"] = ids
    for tail in ("bucket", "renormalize"):
        def truncated(name, loss):
            of = lambda logits: of_known(logits, ids, 2.0, tail)
            expect(f"{name}_t2_top8_{tail}", lambda z: loss(of(y), of(z)))
        truncated("forward_kl", lambda p, q: forward_kl(p, q, 1.0))
        truncated("reverse_kl", lambda p, q: reverse_kl(p, q, 1.0))
        truncated("tvd", lambda p, q: tvd(p, q, 1.0))
        for beta in (0.1, 0.5, 0.9):
            truncated(f"jsd_{beta}", lambda p, q: jsd(p, q, 1.0, beta))
        for weight in (0.1, 0.5):
            truncated(f"skew_kl_{weight}", lambda p, q: skew_kl(p, q, 1.0, weight))
            truncated(f"skew_reverse_kl_{weight}", lambda p, q: skew_reverse_kl(p, q, 1.0, weight))
    expect("cross_entropy", lambda z: F.cross_entropy(z, labels, reduction="none"),
           lambda z: F.softmax(z, -1) - F.one_hot(labels, v))
    save(tensors, HERE / "losses.safetensors")
    write_json(HERE / "losses.json", {
        "rows": n, "vocabulary": v,
        "inputs": "teacher, student [7, 61] f32; labels [7] i64; expectations in f64 from the f32 logits",
        "values": "<name>.values [7] f64, nats per row; <divergence>[_<beta or lambda>]_t<T> at temperature T without the factor T^2 or T; …_t2_top8_<tail>: of the teacher's tokens top8 [7, 8] i64 alone",
        "gradients": "<name>.gradient [7, 61] f64: of the sum of the values, with respect to the student's logits; not divided",
        "rows_with_negative_infinity": [2, 5], "row_with_p_equal_q": 3,
        "sums": sums})
    print("losses:", ", ".join(f"{k} {v:.6f}" for k, v in sums.items()))


# ------------------------------------------------------------------------------------------------------------------ chat

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
PARAGRAPH = """\
The lighthouse keeper counted the waves because nobody else would. On calm days there were fourteen in a minute, and in a
storm he lost count before the kettle boiled. "What is the use of it?" asked the girl who brought the bread. He thought
about the question for three days, and then he said: the waves don't need to be counted, but I need to count. She laughed,
and the next morning she brought two loaves and a notebook. You are a helpful assistant. What is the capital of France? The
capital of France is Paris. Write one sentence about the sea. The system, the user and the assistant took turns; the user
asked, the assistant answered, and the system said nothing at all. Let me think about it: two and two is four, four and
four is eight, so the answer is eight. Thank you, and good night.
"""

# SmolLM2's own template, with its default system prompt.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}")

# In the manner of Llama 3: a BOS before the first turn, trimmed contents, an end-of-turn token that is not the EOS.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|endoftext|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}")

# In the manner of Mistral Instruct: no markers but text, alternation enforced, no generation prompt of its own.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")

# In the manner of Qwen 3: thinking is kept only after the last user turn; several lines, so that trim_blocks and
# lstrip_blocks matter, and Python's string methods, namespace and slices, which a Jinja in another language must offer.
QWEN3 = """\
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and message.content is string %}
        {%- set ns.last_user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- set turns = messages[1:] %}
    {%- set offset = 1 %}
{%- else %}
    {%- set turns = messages %}
    {%- set offset = 0 %}
{%- endif %}
{%- for message in turns %}
    {%- set index = loop.index0 + offset %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if index > ns.last_user and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# In the manner of reasoning models whose generation prompt opens the thinking that a rendered turn does not have:
# the rendering of messages[..i] is then no prefix of the whole. Block tags on lines of their own, without dashes.
OPEN_THINK = """\
{{ bos_token }}
{% for message in messages %}
    {% if message.role == 'assistant' %}
<|im_start|>assistant
{{ message.content.split('</think>')[-1].strip() }}<|im_end|>
    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
<think>
{% endif %}
"""

TEMPLATES = {"smollm2": SMOLLM2, "llama3": LLAMA3, "mistral": MISTRAL, "qwen3": QWEN3, "open_think": OPEN_THINK}


def talk(*contents, system=None):
    """user, assistant, user, ... after an optional system message."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


CONVERSATIONS = {
    "single_turn": talk("What is the capital of France?", "The capital of France is Paris."),
    "multi_turn": talk("What is two and two?", "Four.", "And four and four?", "Eight.\nThat is twice as much.", "Thank you", "Good night."),
    "system": talk("Write one sentence about the sea.", "The sea counts its own waves.", system="You are a lighthouse keeper."),
    "unicode": talk("Übersetze «naïve café» 🌊 ins 日本語", "ナイーブなカフェ 🌊🇫🇷 e\u0301 – ✓"),
    "whitespace": talk("  \n What is it?\t\n", " \n  The answer is 8.  \n\n", "\n", "  yes "),
    "empty_content": talk("", "", "Say nothing.", ""),
    "thinking": talk("What is two and two?", "<think>\ntwo and two\nis four\n</think>\n\nFour.", "And four and four?",
                     "<think>\nfour and four is eight\n</think>\n\nEight."),
    "two_assistant_turns": talk("Count.", "<think>\none\n</think>\n\nOne.")
    + [{"role": "assistant", "content": "<think>\ntwo\n</think>\n\nTwo."}] + talk("Thank you", "Good night."),
    "ends_with_user": talk("What is it?", "A wave.", "Which one?"),
    "special_tokens_in_content": talk("What does <|im_end|> mean?", "It ends a turn: <|im_end|>, not <s>."),
}
CASES = [(t, c) for t in TEMPLATES for c in CONVERSATIONS]


def make_chat():
    folder = fresh_folder("chat")
    # Digits apart, then byte-level BPE: as SmolLM2's. Encoding with special tokens puts <s> first, as Llama's tokenizers do.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([PARAGRAPH], trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names,
                                                  "clean_up_tokenization_spaces": False, "model_max_length": 512})
    hf = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False, **names)

    def render(template, messages, prompt):
        return hf.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)

    def ids(text):
        return hf(text, add_special_tokens=False)["input_ids"]

    cases = []
    for template, conversation in CASES:
        messages = CONVERSATIONS[conversation]
        case = {"name": f"{template}/{conversation}", "template": TEMPLATES[template], "messages": messages}
        try:
            case["rendered"] = render(TEMPLATES[template], messages, False)
        except Exception as error:  # raise_exception of a template
            assert type(error).__name__ == "TemplateError", error
            cases.append({**case, "error": str(error), "rendered": None, "ids": None, "prefixes": []})
            continue
        case["ids"] = ids(case["rendered"])
        case["prefixes"] = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                text = render(TEMPLATES[template], messages[:i], True)
                through = render(TEMPLATES[template], messages[:i + 1], False)
                case["prefixes"].append({
                    "message": i, "text": text, "ids": ids(text), "is_prefix_of_rendered": case["rendered"].startswith(text),
                    "through": through, "is_prefix_of_through": through.startswith(text)})
        cases.append(case)
    kinds = {(p["is_prefix_of_rendered"], p["is_prefix_of_through"]) for c in cases for p in c["prefixes"]}
    assert kinds == {(True, True), (False, True), (False, False)}, kinds
    assert any("error" in c for c in cases)
    rows = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
    (folder / "cases.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    texts = ["", " ", "The capital of France is Paris.", "In 2024 it's 12,345.", "  two  spaces\n\n\tand a tab ", "naïve café 🌊 日本語",
             "<|im_start|>user\nHello<|im_end|>\n", "a<s>b <|endoftext|> c"]
    write_json(folder / "encodings.json", [{
        "text": t, "ids": ids(t), "ids_with_special_tokens": hf(t)["input_ids"], "decoded": hf.decode(ids(t), skip_special_tokens=False),
        "decoded_without_special_tokens": hf.decode(ids(t), skip_special_tokens=True)} for t in texts])
    print(f"chat: vocabulary {tokenizer.get_vocab_size()}, {len(cases)} cases, {sum('error' in c for c in cases)} refused, "
          f"{sum(not p['is_prefix_of_rendered'] for c in cases for p in c['prefixes'])} prompts that are no prefix")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    make_models()
    make_step()
    make_lora()
    make_losses()
    make_chat()
    size = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{size / 1e6:.2f} MB in {HERE.name}/")


if __name__ == "__main__":
    main()
