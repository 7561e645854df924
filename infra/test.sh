#!/usr/bin/env bash
# Run the fast tests in three processes side by side, as those of loops wait often; each is about a third of the time.
# Usage: infra/test.sh PYTEST [OPTION ...]
set -uo pipefail
cd "$(dirname "$0")/.."
parts=(
  "tests/integration tests/workers tests/pipeline/models"
  "tests/flows tests/browser"
)
logs=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null; rm -rf "$logs"' EXIT
running=()
for part in "${parts[@]}"; do
  "$@" -m "not slow" $part > "$logs/${#running[@]}" 2>&1 &
  running+=($!)
done
"$@" -m "not slow" tests $(printf -- "--ignore=%s " ${parts[@]})
failed=$?
for number in "${!running[@]}"; do
  wait "${running[number]}" || failed=1
  echo "== ${parts[number]}"
  cat "$logs/$number"
done
exit "$failed"
