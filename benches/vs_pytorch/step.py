"""One distillation step of random models in PyTorch: the twin of `distill bench --teacher … --student …`.

    step.py TEACHER.json STUDENT.json [--batch 2] [--length 256] [--steps 7] [--mode f32|bf16-teacher|bf16|top-64]

Full-vocabulary forward KL at T = 2 on every position, AdamW, clipping at 1, what a loop on transformers would write.
bf16-teacher: the frozen teacher in bfloat16. bf16: also the student, under autocast. top-64: no teacher, 64 stored tokens
per position.
The first step does not count. Prints one JSON line: median seconds of each phase, tokens per second, peak memory in bytes.
Needs: pip install torch transformers
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM


def model(path):
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), attn_implementation="sdpa")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--mode", default="f32", choices=["f32", "bf16-teacher", "bf16", "top-64"])
    args = parser.parse_args()
    torch.manual_seed(0)
    student = model(args.student).train()
    teacher = None if args.mode == "top-64" else model(args.teacher).eval().requires_grad_(False)
    if args.mode in ("bf16-teacher", "bf16"):
        teacher = teacher.bfloat16()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0)
    temperature, vocabulary = 2.0, student.config.vocab_size
    times = {name: [] for name in ("teacher", "forward", "loss", "backward", "optimizer")}
    for step in range(args.steps + 1):
        tokens = torch.randint(0, vocabulary, (args.batch, args.length))
        stored = torch.randint(0, vocabulary, (args.batch * args.length, 64))
        marks = [time.perf_counter()]
        if teacher is not None:
            with torch.no_grad():
                p = teacher(input_ids=tokens, use_cache=False).logits.float().view(-1, vocabulary)
        marks.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mode == "bf16"):
            q = student(input_ids=tokens, use_cache=False).logits
        q = q.float().view(-1, vocabulary)
        marks.append(time.perf_counter())
        log_q = F.log_softmax(q / temperature, -1)
        if teacher is not None:
            log_p = F.log_softmax(p / temperature, -1)
            loss = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * temperature**2
        else:
            loss = (torch.tensor(1 / 64).log() - log_q.gather(1, stored)).mean(-1).mean() * temperature**2
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        if step > 0:
            for values, start, end in zip(times.values(), marks, marks[1:]):
                values.append(end - start)
    total = [sum(parts) for parts in zip(*times.values())]
    print(json.dumps({
        "mode": args.mode,
        **{name: round(statistics.median(values), 4) for name, values in times.items()},
        "tokens_per_second": round(args.batch * args.length / statistics.median(total), 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
