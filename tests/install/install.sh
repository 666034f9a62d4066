#!/usr/bin/env bash
# Installs Kerf, moves it elsewhere, builds a program against it with find_package(kerf) and runs that, also beside
# another LLVM in the same process. Usage: install.sh BUILD_FOLDER static|shared C++_COMPILER CMAKE NM
set -euo pipefail
build=$1 llvm=$2 compiler=$3 cmake=$4 nm=$5
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$cmake" --install "$build" --prefix "$scratch/first" >/dev/null
mv "$scratch/first" "$scratch/moved"
library=$(find "$scratch/moved" -name libkerf.so)

echo "== libkerf shows names of kerf alone"
names=$("$nm" -DC --defined-only "$library")
grep -q ' T kerf::linear_cross_entropy(' <<<"$names"
if grep -vE ' [A-Z] ((typeinfo|typeinfo name|vtable) for )?kerf::' <<<"$names" >&2 ||
   grep -E ' [A-Z] kerf::(ir|passes|codegen|kernels)::' <<<"$names" >&2; then
  echo "these are not in include/kerf" >&2
  exit 1
fi
if grep -ri llvm "$scratch"/moved/*/cmake >&2 || { [[ $llvm == static ]] && ldd "$library" | grep -i llvm >&2; }; then
  echo "a user of kerf::kerf is asked for LLVM" >&2
  exit 1
fi

echo "== a consumer builds without LLVM"
"$cmake" -S "$here/consumer" -B "$scratch/consumer" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" \
  -DCMAKE_PREFIX_PATH="$scratch/moved" >/dev/null
"$cmake" --build "$scratch/consumer" >/dev/null
"$scratch/consumer/consumer"

for other in /usr/lib/*/libLLVM.so.*.* /usr/lib/*/libLLVM-[0-9]*.so.1; do
  [[ -e $other ]] || continue
  echo "== beside $other"
  "$scratch/consumer/consumer" "$other"
  LD_PRELOAD=$other "$scratch/consumer/consumer" "$other" >/dev/null
done
