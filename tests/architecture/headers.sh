#!/usr/bin/env bash
# headers.sh INCLUDE_FOLDER COMPILER...: every public header, alone, is clean C++20.
set -euo pipefail
folder=$1
shift
for compiler in "$@"; do
  [[ -n $compiler ]] || continue
  for header in "$folder"/kerf/*.h; do
    echo "#include <kerf/${header##*/}>" |
      "$compiler" -x c++ -std=c++20 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$folder" -
  done
done
