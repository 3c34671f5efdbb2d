#!/usr/bin/env bash
# Does the teacher's signal help? The quickstart's student, trained on the teacher's distributions and on hard labels
# alone: same rows, same steps, each at three learning rates and three seeds. Prints a Markdown table.
#
#   examples/quickstart/compare.sh [DIR]          runs go to DIR, default runs/quickstart-compare
#
# DISTILL   the binary to run, default: cargo run --release
# RATES, SEEDS, SIGNALS   default "1e-3 2e-3 4e-3", "1 2 3", "quickstart quickstart-hard-labels" (files of configs/)
#
# 18 runs: about 18 minutes with 2 threads of a busy 2-core machine (13 minutes of CPU time). Runs that are complete are
# kept, so that the script goes on where it was stopped. Needs only bash, sed, grep and awk.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${1:-runs/quickstart-compare}
rates=${RATES:-1e-3 2e-3 4e-3}
seeds=${SEEDS:-1 2 3}
signals=${SIGNALS:-quickstart quickstart-hard-labels}
if [[ -n ${DISTILL:-} ]]; then
    distill=("$DISTILL")
else
    distill=(cargo run --release --quiet --manifest-path "$root/Cargo.toml" --)
fi

train() { # CONFIG RATE SEED RUN
    grep -qs '"status": "complete"' "$4/summary.json" && return
    echo "$4" >&2
    "${distill[@]}" train --config "$root/configs/$1.toml" --output "$4" --resume \
        --set "train.learning_rate=$2" --set "seed=$3" 2>"$4.log" >&2 || { tail -n 5 "$4.log" >&2; exit 1; }
}

evaluations() { # RUN: those of metrics.jsonl
    grep '"event":"eval"' "$1/metrics.jsonl"
}

figures() { # one evaluation on stdin → exact match, KL, agreement
    sed -E 's/.*"kl_mean":([^,}]*).*"top1_agreement":([^,}]*).*"student_exact_match":([^,}]*).*/\3 \1 \2/'
}

best_step() { # RUN
    sed -n '/"best": {/,/}/s/.*"step": \([0-9]*\).*/\1/p' "$1/summary.json"
}

mkdir -p "$dir"
for config in $signals; do
    for rate in $rates; do
        for seed in $seeds; do
            run=$dir/$config-$rate-$seed
            train "$config" "$rate" "$seed" "$run"
            echo "$config $rate last $(evaluations "$run" | tail -n 1 | figures)"
            echo "$config $rate best $(evaluations "$run" | grep "\"step\":$(best_step "$run")," | figures)"
        done
    done
done | awk '
    {
        key = $1 " | " $2 " | " ($3 == "last" ? "last step" : "least held-out KL")
        if (!(key in runs)) order[++keys] = key
        n = ++runs[key]
        for (i = 1; i <= 3; i++) { sum[key, i] += $(3 + i); value[key, i, n] = $(3 + i) }
    }
    function cell(key, i, scale, format,    text, n) {
        text = sprintf(format, sum[key, i] / runs[key] * scale)
        for (n = 1; n <= runs[key]; n++) text = text (n > 1 ? ", " : " (") sprintf(format, value[key, i, n] * scale)
        return text ")"
    }
    END {
        if (keys == 0) exit
        print "Held-out sums: mean over the seeds (and each seed)."
        print ""
        print "| config | learning rate | student of the | exact match, % | KL to the teacher, nats | top-1 agreement, % |"
        print "| --- | --- | --- | --- | --- | --- |"
        for (k = 1; k <= keys; k++) {
            key = order[k]
            print "| " key " | " cell(key, 1, 100, "%.1f") " | " cell(key, 2, 1, "%.3f") " | " \
                cell(key, 3, 100, "%.1f") " |"
        }
    }'
