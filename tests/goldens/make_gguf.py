#!/usr/bin/env python3
"""Makes gguf/: tiny GGUF files written by llama.cpp's own Python library, and what transformers makes of texts and tokens.

    venv/bin/pip install torch transformers tokenizers gguf
    venv/bin/python tests/goldens/make_gguf.py

One file per way of splitting text that distill builds a tokenizer for. Where transformers has the model's tokenizer it is the
oracle (GPT2Tokenizer, Qwen2Tokenizer, the TikTokenConverter that Llama 3's was made with); SmolLM's is its published
tokenizer.json: single digits, then GPT-2's expression. All four have one vocabulary, whose merges were learned across word
boundaries: wherever two ways of splitting differ, so do the ids. The logits are those of transformers' models on the weights as
gguf dequantises them. The committed files were made with torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3 and gguf 0.19.0.
"""
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import torch
from gguf import GGMLQuantizationType as Q, TokenType
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "gguf"

CORPUS = """\
The ferry leaves at 7:45, and at 12:30, and in 2024 it will leave at 10000 o'clock. It's late; we're early, they've gone and
I'LL wait. IT'S 3.14159!  Two  spaces,   three   spaces.

\tA tab, then a blank line.\r\n\r\n    def f(x):\n        return x[0:10] + "it's"  # 100%\n
naïve café — “quoted” … Ünïcödé ÄÖÜ ß. 日本語の文章、中文句子。한국어 문장. Привет, мир! مرحبا 123 ١٢٣ Ⅷ ½ x² 🌊🌊 👩‍👩‍👧 e\u0301te\u0301
https://example.org/a_b-c?d=e&f=1234567890 $1,234.56 (a)[b]{c} <x/> don't Don't DON'T 'tis rock'n'roll it’s
"""

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", " \n \n", "\t", "a\tb", "a \t b", "\r\n", "a\r\n\r\nb", "a  \n  b", "trailing   ", "   leading",
    "The ferry leaves at 7:45.", "12345", " 12345", "1 2 3", "3.14159", "10000 o'clock", "١٢٣ Ⅷ ½ x²", "abc123def456",
    "it's IT'S It'S we're they've I'LL I'd I'm don't DON'T", "'s't're 'S'T", "rock'n'roll it’s", "o''clock '' '",
    "Two  spaces,   three   spaces.    four", "x =  1;\n\n\n    y = 2\n\treturn", "    def f(x):\n        return x[0:10]\n",
    "naïve café e\u0301te\u0301 Å A\u030a \u1100\u1161 ﬁ", "日本語の文章、中文句子。한국어", "Привет, мир! مرحبا", "🌊🌊 👩‍👩‍👧 🇫🇷 ☎️",
    "a\u00a0b\u2003c\u3000d\u200be", "\ufeffbom", "…—“”!?!?##", "(a)[b]{c}<x/>_-_", "https://example.org/a_b?c=1234567890", "$1,234.56 100%",
    "<|im_start|>user\nHello it's 2024<|im_end|>\n", "a<|endoftext|>b", "x<tool_call>y</tool_call>  z", " <tool_call> ",
    "<|im_start|", "<|IM_END|>", "[PAD", "\0\x01\x7f", "the lighthouse keeper", " lighthouse", "lighthouses", "A\u0327\u0301", "ǅ ʰ ª",
]

ADDED = [("<|endoftext|>", TokenType.CONTROL), ("<|im_start|>", TokenType.CONTROL), ("<|im_end|>", TokenType.CONTROL),
         ("<tool_call>", TokenType.USER_DEFINED), ("</tool_call>", TokenType.USER_DEFINED)]
CHAT = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def vocabulary():
    """Tokens by id and merges. Learned without words; one token that no merge reaches; added tokens last, as Qwen's."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.train_from_iterator(CORPUS.split("\n\n") * 2, trainers.BpeTrainer(
        vocab_size=560, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False, max_token_length=8))
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    vocab["Ġlighthouse"] = len(vocab)
    return vocab, [tuple(m) for m in model["merges"]]


def oracle(name, vocab, merges):
    """The tokenizer that the model's makers have, over the tiny vocabulary."""
    if name == "gpt-2":
        t = GPT2Tokenizer(vocab=vocab, merges=merges, add_prefix_space=False).backend_tokenizer
    elif name == "qwen2":
        t = Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    elif name == "llama-bpe":
        class Converter(TikTokenConverter):
            def extract_vocab_merges_from_model(self, _):
                return vocab, merges
        t = Converter().converted()
        assert t.model.ignore_merges
    else:
        t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        t.decoder = decoders.ByteLevel()
    return t


def add_tokens(t):
    for text, kind in ADDED:
        token = AddedToken(text, special=kind == TokenType.CONTROL, normalized=False)
        t.add_special_tokens([token]) if token.special else t.add_tokens([token])


def model(name, vocab_size):
    """A model of one block and its tensors by GGUF name, each as it is in the file and as transformers' model holds it."""
    torch.manual_seed(len(name))
    size = dict(vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.3,
                tie_word_embeddings=True, attn_implementation="eager")
    qwen = name == "qwen2"
    m = Qwen2ForCausalLM(Qwen2Config(**size)) if qwen else LlamaForCausalLM(LlamaConfig(**size))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2 if qwen else gguf.MODEL_ARCH.LLAMA, 1)
    tensors = {}
    for long, parameter in m.named_parameters():
        short = names.get_name(long, try_suffixes=(".weight", ".bias"))
        if parameter.dim() == 1:
            parameter.data = torch.rand_like(parameter) + 0.5
            tensors[short] = (parameter.detach().numpy(), None)
            continue
        kind = {"attn_v": Q.Q4_1, "ffn_down": Q.Q5_0, "ffn_up": Q.F16}.get(short.split(".")[-2], Q.Q8_0)
        stored = parameter.detach()
        rotated = not qwen and short.split(".")[-2] in ("attn_q", "attn_k")
        if rotated:  # llama.cpp's files hold the rows of a head's halves in turn
            stored = stored.view(-1, 2, 8, 32).transpose(1, 2).reshape(stored.shape)
        packed = quantize(stored.contiguous().numpy(), kind)
        tensors[short] = (packed, kind)
        values = torch.from_numpy(dequantize(packed, kind))
        if rotated:
            values = values.view(-1, 8, 2, 32).transpose(1, 2).reshape(values.shape)
        parameter.data = values.contiguous()
    return m.eval(), tensors


def write(name, vocab, merges, settings):
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda item: item[1])] + [t for t, _ in ADDED]
    kinds = [TokenType.NORMAL] * len(vocab) + [k for _, k in ADDED]
    while len(tokens) % 8:
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(TokenType.UNUSED)
    m, tensors = model(name, len(tokens))
    w = gguf.GGUFWriter(FOLDER / f"{name}.gguf", "qwen2" if name == "qwen2" else "llama")
    w.add_block_count(1)
    w.add_context_length(256)
    w.add_embedding_length(32)
    w.add_feed_forward_length(64)
    w.add_head_count(2)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    if name != "qwen2":
        w.add_rope_dimension_count(16)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(name)
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges([" ".join(merge) for merge in merges])
    ids = {token: i for i, token in enumerate(tokens)}
    w.add_bos_token_id(ids[settings["bos"]])
    w.add_eos_token_id(ids["<|im_end|>"])
    w.add_pad_token_id(ids["<|endoftext|>"])
    if settings.get("eot"):
        w.add_eot_token_id(ids[settings["eot"]])
    if "add_bos" in settings:
        w.add_add_bos_token(settings["add_bos"])
    w.add_chat_template(CHAT)
    for short, (values, kind) in tensors.items():
        w.add_tensor(short, values, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return m, ids


def main():
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    vocab, merges = vocabulary()
    cases, logits, seen = {}, {}, {}
    for name, settings in {
        "gpt-2": {"bos": "<|endoftext|>", "add_bos": True},
        "smollm": {"bos": "<|im_start|>", "add_bos": False},
        "qwen2": {"bos": "<|endoftext|>", "add_bos": False},
        "llama-bpe": {"bos": "<|im_start|>", "eot": "<|endoftext|>"},  # without a word on it, llama.cpp adds BOS
    }.items():
        m, ids = write(name, vocab, merges, settings)
        t = oracle(name, vocab, merges)
        add_tokens(t)
        bos = settings["bos"]
        if settings.get("add_bos", True):
            t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
        assert all(t.token_to_id(token) == ids[token] for token, _ in ADDED)
        cases[name] = [{"text": text, "ids": t.encode(text, add_special_tokens=False).ids, "special": t.encode(text).ids,
                        "decoded": t.decode(t.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)} for text in TEXTS]
        seen[name] = {case["text"]: tuple(case["ids"]) for case in cases[name]}
        tokens = t.encode("The ferry leaves at 12345. It's late!", add_special_tokens=False).ids
        with torch.no_grad():
            logits[f"{name}.logits"] = m(torch.tensor([tokens])).logits[0, -1]
        logits[f"{name}.ids"] = torch.tensor(tokens)
    for one in seen:
        for other in seen:
            different = sum(seen[one][text] != seen[other][text] for text in TEXTS)
            assert one == other or different >= 5, (one, other, different)
    (FOLDER / "cases.json").write_text(json.dumps(cases, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in logits.items()}, FOLDER / "expected.safetensors", metadata={"format": "pt"})
    (FOLDER / "expected.safetensors").chmod(0o644)
    for f in sorted(FOLDER.iterdir()):
        print(f"{f.stat().st_size:>8} {f.name}")


if __name__ == "__main__":
    main()
