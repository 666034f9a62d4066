#!/usr/bin/env bash
# include <- lib <- codegen <- runtime <- tests, tools: a folder includes only folders left of it, and LLVM appears in
# codegen/ alone. The linker enforces the arrows for functions (CMakeLists.txt here); this reads the include lines, which
# also draws the line for what lives in headers. Usage: arrows.sh SOURCE_FOLDER
set -euo pipefail
cd "$1"
status=0

# forbid FOLDER PATTERN REASON: no include line under FOLDER matches.
forbid() {
  local hits
  if [[ ! -d $1 ]]; then return; fi
  hits=$(grep -rnE --include='*.h' --include='*.cpp' --include='*.def' "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" \
              "$1" || true)
  if [[ -n $hits ]]; then
    printf '%s\n  %s\n' "$3:" "${hits//$'\n'/$'\n  '}" >&2
    status=1
  fi
}

# Tests of what codegen emits go through its door; nothing else does.
for folder in include lib runtime tests tools; do
  forbid "$folder" 'llvm(-c)?/' "$folder names LLVM, which only codegen may"
done
for folder in include lib runtime tests/lib tests/runtime tests/loss tests/tour tools; do
  forbid "$folder" 'codegen/llvm\.h|codegen/cpu/(math|target)\.h' "$folder includes LLVM through codegen"
done
forbid include '(lib|codegen|runtime|tests|tools)/|fmt/|nlohmann/|cuda' 'include may include itself and the standard library'
forbid lib '(codegen|runtime|tests|tools)/' 'lib may include include and lib'
forbid codegen '(runtime|tests|tools)/' 'codegen may include include, lib and codegen'
forbid runtime '(tests|tools)/' 'runtime may include include, lib, codegen and runtime'
forbid tests/lib '(codegen|runtime|tools)/' 'tests/lib covers lib alone'
forbid tools 'tests/' 'tools may not include tests'
forbid tools/train_lm '(lib|codegen|runtime)/' 'the trainer is a user: public headers only'
hits=$(grep -rlE --include='*.h' --include='*.cpp' '#[[:space:]]*include[[:space:]]*<llvm' codegen | grep -v '^codegen/llvm\.h$' || true)
if [[ -n $hits ]]; then
  echo "LLVM headers are included in codegen/llvm.h alone, not in $hits" >&2
  status=1
fi
exit $status
