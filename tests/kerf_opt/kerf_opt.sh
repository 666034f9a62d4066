#!/usr/bin/env bash
# What kerf-opt prints, rewrites and returns. Usage: kerf_opt.sh KERF_OPT TILE_FOLDER
set -euo pipefail
opt=$1
tiles=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
failures=0

# expect CODE TEXT COMMAND...: the command returns CODE and TEXT appears in what it prints.
expect() {
  local code=$1 text=$2 rc=0 out
  shift 2
  out=$("$@" 2>&1) || rc=$?
  if [[ $rc != "$code" || $out != *"$text"* ]]; then
    printf 'FAILED: %s\n  exit code %s, not %s, or no "%s" in:\n%s\n' "$*" "$rc" "$code" "$text" "$out"
    failures=$((failures + 1))
  fi
}

cat > mask.tile <<'END'
program p
axis V = 64
input x : f32 [V]
output y : f32 [V]
{
  %v = parallel V by 8 : block<V:8>
  %x = load x [%v] : tile<V:8, f32>
  %m = in_bounds %v : tile<V:8, bool>
  %0 = const 0 : f32
  %w = where %m, %x, %0 : tile<V:8, f32>
  store y [%v] %w
}
END
expect 0 'Exit codes' "$opt" --help
expect 0 'store y [%v] %w' "$opt" mask.tile
expect 0 'store y [%v] %x' "$opt" --pass drop_masks,fold mask.tile
expect 0 'store y [%v] %x' "$opt" --pipeline - < mask.tile
expect 0 '// after drop_dead' "$opt" --pipeline --print-after-all mask.tile
expect 0 '' "$opt" --verify-only mask.tile
expect 2 "'melt' is no pass; they are pipeline, drop_masks, fold" "$opt" --pass melt mask.tile
expect 2 'stdin:1:1: ' "$opt" - < /dev/null
expect 2 'missing.tile: cannot be read' "$opt" missing.tile
expect 2 ': cannot be read' "$opt" --check .
expect 2 'add --pass or --pipeline' "$opt" --print-after-all mask.tile
expect 2 'FILE' "$opt"
sed 's/%w = where %m, %x, %0/%w = where %x, %x, %0/' mask.tile > broken.tile
expect 2 'where' "$opt" --verify-only broken.tile

expect 0 '0 failed' "$opt" --check "$tiles"/*.tile
{ printf 'Words.\n\n== drop_masks,fold: the mask goes\n'; cat mask.tile; printf -- '-- after\nprogram p\n'; } > cases.tile
expect 1 'cases.tile:3: drop_masks,fold: the mask goes' "$opt" --check cases.tile
expect 1 '+   store y [%v] %x' "$opt" --check cases.tile
expect 0 '1 rewritten' "$opt" --check --update cases.tile
expect 0 '1 cases, 0 failed' "$opt" --check cases.tile
cp cases.tile before.tile
expect 0 '0 rewritten' "$opt" --check --update cases.tile
expect 0 '' cmp cases.tile before.tile
exit $((failures > 0))
