#!/usr/bin/env bash
# emulate.sh OUT_DIR: builds a CUDA driver, cuBLAS and cuRAND that run on the CPU, from candle's kernels and our own
# (src/kernels/*/*.cu). A binary that was linked by toolkit.sh then has a GPU:
#   eval "$(cuda/toolkit.sh DIR)"; cuda/emulate.sh OUT_DIR; CUDA_LAZY_PATH=OUT_DIR cargo test --features cuda
# It needs g++, and CUDA_HOME for NVIDIA's headers. Objects are kept in OUT_DIR: after a change of one kernel only that
# one is compiled again. README.md says what is emulated and how to look closer.
#
# OUR_KERNELS=DIR takes our kernels from a copy of src/kernels. ASAN=1 names the line of an access out of bounds; run with
#   LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0
set -euo pipefail
die() { printf 'emulate.sh: %s\n' "$*" >&2; exit 1; }
[ $# = 1 ] || die "usage: emulate.sh OUT_DIR"
here=$(cd "$(dirname "$0")" && pwd)
ours=$(cd "${OUR_KERNELS:-$here/../src/kernels}" && pwd)
mkdir -p "$1/objects"
out=$(cd "$1" && pwd)
[ -e "${CUDA_HOME:-}/include/cuda_bf16.h" ] || die "CUDA_HOME is no CUDA toolkit: cuda/toolkit.sh makes one"
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
version=$(grep -A1 '^name = "candle-kernels"' "$here/../Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')
candle=$(find "$registry" -maxdepth 2 -name "candle-kernels-$version" 2>/dev/null | head -1)/src
[ -e "$candle/reduce.cu" ] || die "candle-kernels $version is not in $registry: run cargo fetch first"

flags=(-std=c++17 -O2 -fno-strict-aliasing -w -fPIC -I"$here/emulator" -isystem "$CUDA_HOME/include" -isystem "$CUDA_HOME/include/cccl")
if [ -n "${ASAN:-}" ]; then flags+=(-fsanitize=address -g); fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
objects=()

# compile NAME SOURCE FOLDER: adds the object of SOURCE, which sees FOLDER's headers, unless there is one of the same text.
compile() {
  local name=$1 source=$2 object
  object=$out/objects/$name-$( (echo "${flags[@]}"; cat "$source" "$here"/emulator/*.hpp "$3"/*.cuh 2>/dev/null || true) | sha256sum | cut -c1-16).o
  objects+=("$object")
  [ -e "$object" ] && return
  rm -f "$out/objects/$name"-????????????????.o
  g++ "${flags[@]}" -fpermissive -I"$3" -c -o "$work/$name.o" "$source"
  mv "$work/$name.o" "$object"
}

# Two spellings no header can change: shared memory of a size that the launch gives, and the architecture.
for_the_host() {
  sed -E 's/extern __shared__ ([A-Za-z_0-9 ]+) ([A-Za-z_0-9]+)\[\];/\1 *\2 = (\1 *)emulator::dynamic_shared;/
    s/__CUDA_ARCH__/EMULATED_ARCH/g' "$1"
}

mkdir "$work/candle" "$work/ours"
for header in "$candle"/*.cuh; do for_the_host "$header" > "$work/candle/${header##*/}"; done
for name in affine binary cast fill indexing reduce sort ternary unary; do
  { echo '#include "device.hpp"'; for_the_host "$candle/$name.cu"; } > "$work/candle/$name.cpp"
  compile "candle-$name" "$work/candle/$name.cpp" "$work/candle"
done
candles=("${objects[@]}")
objects=()
# A GPU faults at a vector that lies off a multiple of its size; here that traps.
plain=("${flags[@]}")
flags+=(-fsanitize=alignment -fsanitize-undefined-trap-on-error)
for kernel in "$ours"/*/*.cu; do
  name=$(basename "$kernel" .cu)
  # A namespace, because helpers of one name are different functions in different files.
  { printf '#include "device.hpp"\nnamespace our_%s {\n#line 1 "%s"\n' "$name" "$kernel"; for_the_host "$kernel"; echo '}'; } > "$work/ours/$name.cpp"
  compile "our-$name" "$work/ours/$name.cpp" "$ours"
done
flags=("${plain[@]}")
flags[1]=-O3
for name in threads driver blas; do compile "$name" "$here/emulator/$name.cpp" "$here/emulator"; done

# candle's helpers are ordinary functions, repeated in every file (muldefs); two of our kernels may not share a name.
all=$out/objects/candle.o
for object in "${candles[@]}"; do
  if [ ! "$all" -nt "$object" ]; then ld -r -z muldefs -o "$all" "${candles[@]}"; fi
done
link=(-shared -Wl,-Bsymbolic -Wl,-z,noexecstack)
if [ -n "${ASAN:-}" ]; then link+=(-fsanitize=address); fi
g++ "${link[@]}" -o "$work/libemulator.so" "${objects[@]}" "$all" -ldl
mv "$work/libemulator.so" "$out/libemulator.so"
for name in libcuda.so.1 libcublas.so.13 libcurand.so.10; do ln -sfn libemulator.so "$out/$name"; done
