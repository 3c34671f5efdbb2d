#!/usr/bin/env bash
# mutants.sh [PATTERN]: plants the bugs of mutants.txt (those whose line matches) in a copy of our kernels, one at a time,
# rebuilds the emulator with each, and runs the unit tests on it: every bug has to make one fail. Prints a table; exits
# with 1 when a bug was missed.
# Wants what toolkit.sh exports. About six seconds for each bug. TESTS=FILE is the unit tests' binary where cargo is not to
# build it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${CUDA_HOME:-}" ] || { echo 'mutants.sh: CUDA_HOME is not set: eval "$(cuda/toolkit.sh DIR)"' >&2; exit 1; }
pattern=${1:-}
base=${CARGO_TARGET_DIR:-target}/cuda/emulator
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cuda/emulate.sh "$base"
cp -a "$base" "$work/emulator"
tests=${TESTS:-$(cargo test --features cuda --lib --no-run --message-format=json 2>"$work/build.log" |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')} || { cat "$work/build.log" >&2; exit 1; }
run_tests() { REQUIRE_CUDA=1 CUDA_LAZY_PATH=$work/emulator timeout 300 "$tests" on_a_gpu; }
run_tests > "$work/log" 2>&1 || { cat "$work/log"; echo "mutants.sh: the tests fail without any bug" >&2; exit 1; }
grep '^test result' "$work/log"

caught=0 missed=0
while IFS= read -r line; do
  if [[ -z $line || $line = '#'* || ! $line =~ $pattern ]]; then continue; fi
  file=${line%% | *} rest=${line#* | }
  expression=${rest% | *} what=${rest##* | }
  rm -rf "$work/kernels"
  cp -r src/kernels "$work/kernels"
  sed -i "$expression" "$work/kernels/$file"
  if cmp -s "src/kernels/$file" "$work/kernels/$file"; then
    echo "mutants.sh: changes nothing in $file: $expression" >&2
    exit 1
  fi
  if ! OUR_KERNELS=$work/kernels cuda/emulate.sh "$work/emulator" 2> "$work/log"; then
    cat "$work/log" >&2
    echo "mutants.sh: does not compile: $line" >&2
    exit 1
  fi
  code=0
  # A forgotten barrier may need another order of threads.
  for seed in '' 1 2; do
    EMULATED_SEED=$seed run_tests > "$work/log" 2>&1 || code=$?
    if [ "$code" != 0 ]; then break; fi
  done
  if [ "$code" = 0 ]; then
    missed=$((missed + 1)) verdict=MISSED by=''
  else
    caught=$((caught + 1)) verdict=caught
    # A bug that the emulator stops, or that ends the process, leaves no list of tests.
    by=$(sed -n 's/^    \([a-z_:]*on_a_gpu[a-z_:]*\)$/\1/p; s/^\(emulator: .*\)/\1/p' "$work/log" | sort -u | head -1)
    by=${by:-exit $code}
  fi
  printf '%-6s  %-24s  %-62s  %s\n' "$verdict" "$(basename "$file")" "$what" "$by"
done < cuda/mutants.txt
echo "$caught caught, $missed missed"
[ "$missed" = 0 ]
