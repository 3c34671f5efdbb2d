#!/usr/bin/env bash
# nvcc for binaries that are published; toolkit.sh puts it beside the real one.
#
# candle's quantised and mixture-of-experts kernels are compiled for one architecture only and launched unchecked: on a
# newer GPU they would leave garbage. So that the driver can compile them for any, objects also get their PTX, and are
# compressed, which takes 25 MiB off the binary.
#
# With NVCC_SKIP_STATIC=1 those kernels, most of the compiler's time, become functions that abort: for tests only.
set -euo pipefail
compile='' library='' ptx='' architecture='' out='' previous=''
for argument in "$@"; do
  case $argument in
    -c | --compile) compile=1 ;;
    -ptx | --ptx) ptx=1 ;;
    --lib) library=1 ;;
    -gencode=arch=compute_*) architecture=${argument#*=*=} architecture=${architecture%%,*} ;;
  esac
  [ "$previous" != -o ] || out=$argument
  previous=$argument
done

if [ -n "${NVCC_SKIP_STATIC:-}" ] && [ "${CARGO_PKG_NAME:-}" = candle-kernels ] && [ -n "$out" ]; then
  if [ -n "$compile" ]; then
    exec gcc -x c -c -o "$out" /dev/null
  elif [ -n "$library" ]; then
    { printf '#include <stdio.h>\n#include <stdlib.h>\n'
      grep -oE 'pub fn \w+' src/ffi.rs |
        awk '{ printf "void %s(void) { fputs(\"%s: left out (NVCC_SKIP_STATIC)\\n\", stderr); abort(); }\n", $3, $3 }'
    } | gcc -x c -c -fPIC -o "$out.o" -
    rm -f "$out"
    exec ar rcs "$out" "$out.o"
  fi
fi
nvcc=$(dirname "$0")/nvcc
if [ -n "$compile" ] && [ -z "$ptx" ] && [ -n "$architecture" ]; then
  exec "$nvcc" "$@" "-gencode=arch=$architecture,code=$architecture" --compress-mode=size
fi
exec "$nvcc" "$@"
