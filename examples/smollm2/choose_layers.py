#!/usr/bin/env python3
"""Which layers of a Llama-like model can go? Prints candidates for `student.layers`, each with its divergence before training.

    venv/bin/python choose_layers.py model data/train.jsonl --keep 22

Needs torch and transformers. It looks at the first rows of the training file, never at the held-out ones, and measures
the forward KL, in nats per response token, between the model and itself without some layers:

* one contiguous block removed, wherever it may start;
* greedily, one layer after the other, always the one whose loss hurts least (Song et al., SLEB, arXiv 2402.09025).

A small divergence before training does not promise a small one after it, but a start at 13 nats is noise to be unlearned.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer


class Sample:
    """Rows padded on the right, which a causal model never sees from the left, and where their responses are predicted."""

    def __init__(self, tokenizer, path, rows, length):
        encoded = []
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                turn = [{"role": "user", "content": row["prompt"]}]
                prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                response = tokenizer(row["response"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
                if len(prompt) < length:
                    encoded.append((prompt + response, len(prompt)))
                if len(encoded) == rows:
                    break
        self.ids = torch.full((rows, length), tokenizer.eos_token_id)
        self.targets = torch.zeros(rows, length, dtype=torch.bool)
        for i, (ids, prompt) in enumerate(encoded):
            ids = ids[:length]
            self.ids[i, : len(ids)] = torch.tensor(ids)
            self.targets[i, prompt - 1 : len(ids) - 1] = True


class Layers:
    """A model that can be run without some of its layers, from any depth on."""

    def __init__(self, model, sample):
        self.model, self.sample = model, sample
        positions = torch.arange(sample.ids.shape[1])[None]
        self.embedded = model.model.embed_tokens(sample.ids)
        self.rope = model.model.rotary_emb(self.embedded, positions)
        self.teacher = self.log_probs(self.run(self.embedded, range(self.depth)))

    @property
    def depth(self):
        return len(self.model.model.layers)

    def run(self, hidden, layers):
        for i in layers:
            hidden = self.model.model.layers[i](hidden, attention_mask=None, position_embeddings=self.rope)
        return hidden

    def log_probs(self, hidden):
        return F.log_softmax(self.model.lm_head(self.model.model.norm(hidden[self.sample.targets])), -1)

    def kl(self, hidden):
        student = self.log_probs(hidden)
        return F.kl_div(student, self.teacher, log_target=True, reduction="none").sum(-1).mean().item()


def blocks(layers, cut):
    hidden = layers.embedded
    for start in range(layers.depth - cut + 1):
        kept = [*range(start), *range(start + cut, layers.depth)]
        yield layers.kl(layers.run(hidden, kept[start:])), kept
        hidden = layers.run(hidden, [start])


def greedy(layers, cut):
    kept = list(range(layers.depth))
    for _ in range(cut):
        hidden, scores = layers.embedded, []
        for at, layer in enumerate(kept):
            scores.append((layers.kl(layers.run(hidden, kept[at + 1 :])), layer))
            hidden = layers.run(hidden, [layer])
        kl, layer = min(scores)
        kept.remove(layer)
        yield kl, layer, list(kept)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--keep", type=int, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=160)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    layers = Layers(model, Sample(tokenizer, args.data, args.rows, args.length))
    cut = layers.depth - args.keep
    print(f"{args.rows} rows, {layers.sample.targets.sum()} response tokens; {cut} of {layers.depth} layers to go")

    for kl, kept in blocks(layers, cut):
        gone = sorted(set(range(layers.depth)) - set(kept))
        print(f"KL {kl:8.4f}  without the block {gone[0]}..{gone[-1]}", flush=True)
    for kl, layer, kept in greedy(layers, cut):
        print(f"KL {kl:8.4f}  then without layer {layer}", flush=True)
    print(f"layers = {kept}")


if __name__ == "__main__":
    main()
