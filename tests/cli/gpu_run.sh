#!/usr/bin/env bash
# gpu_run.sh SOURCE KERF STAND_IN: the script of the bundle for GPUs as a shell sees it, on a machine without one and with
# the stand-in for the driver, whose kernels compute nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin"
cp "$1"/tools/gpu/{run,in-parts} "$folder"
ln -s "$2" "$folder/bin/kerf"
cat >"$folder/bin/kerf_tests" <<'END'
#!/bin/sh
echo '[doctest] unskipped test cases passing the current filters: 3'
echo '[doctest] test cases: 3 | 3 passed | 0 failed | 0 skipped'
END
chmod +x "$folder/bin/kerf_tests"
echo 'Kerf of a test' >"$folder/version"
cd "$folder"

# expect CODE COMMAND...: its exit code, its output in the file out.
expect() {
  local wanted=$1 code=0
  shift
  "$@" >out 2>&1 || code=$?
  if ((code != wanted)); then
    echo "exit code $code in place of $wanted: $*" >&2
    cat out >&2
    exit 1
  fi
}
# holds FILE TEXT
holds() { grep -qF -- "$2" "$1" || { echo "$1 lacks: $2" >&2 && cat "$1" >&2 && exit 1; }; }

expect 2 ./run tset
holds out "'tset' is no section"
expect 2 ./run --limit
expect 2 ./run --data /nonexistent
expect 0 ./run --help

export KERF_CUDA_DRIVER=libkerf-there-is-no-such-driver.so
expect 3 ./run -o none.md tests
holds none.md 'Kerf of a test'
holds none.md 'there is no NVIDIA driver: libkerf-there-is-no-such-driver.so'
holds none.md 'There is no GPU that works; nothing else was run.'

export KERF_CUDA_DRIVER=$3
expect 1 ./run -o some.md --limit 20 tests
holds some.md 'doctor: exit code 1'
holds some.md ' steps, 1 failed'
printf '#!/bin/sh\nsleep 60\n' >slow
chmod +x slow
ln -sf "$folder/slow" bin/kerf_tests
expect 1 ./run -o slow.md --limit 1 tests
holds slow.md 'tests: ended after'
printf '#!/bin/sh\necho "[doctest] unskipped test cases passing the current filters: 0"\n' >slow
expect 1 ./run -o empty.md --limit 20 tests
holds empty.md 'tells no number of test cases'

# Of seven cases in three parts, one fails in the first part and the third breaks off.
cat >seven <<'END'
#!/usr/bin/env bash
case "$*" in
  *--count*) echo '[doctest] unskipped test cases passing the current filters: 7' ;;
  *--first=1\ --last=2*) echo '[doctest] test cases: 7 | 6 passed | 1 failed | 0 skipped' && exit 1 ;;
  *--first=3\ --last=4*) echo '[doctest] test cases: 7 | 7 passed | 0 failed | 0 skipped' ;;
  *--first=5\ --last=7*) kill -9 $$ ;;
esac
END
chmod +x seven
expect 1 ./in-parts 3 ./seven
holds out 'part 3 of 3 ends with exit code 137'
holds out 'test cases: 7 | 3 passed | 4 failed | in 3 processes at once'
expect 137 ./in-parts 3:3 ./seven
expect 0 ./in-parts 3:2 ./seven
holds out 'test cases: 7 | 7 passed'
expect 2 ./in-parts 3:4 ./seven
holds out 'there is no part 4 of 3'
