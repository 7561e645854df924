#!/usr/bin/env bash
# Run the fast tests in two processes side by side, each about half of the time: flows, workers, whole loops and models; all others.
# Usage: infra/test.sh PYTEST [OPTION ...]
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'kill $(jobs -p) 2> /dev/null; rm -f "$log"' EXIT
"$@" -m "not slow" tests/flows tests/integration tests/workers tests/pipeline/models > "$log" 2>&1 &
loops=$!
"$@" -m "not slow" tests --ignore=tests/flows --ignore=tests/integration --ignore=tests/workers --ignore=tests/pipeline/models
others=$?
wait "$loops"
loops=$?
echo "== tests/flows, tests/integration, tests/workers, tests/pipeline/models"
cat "$log"
[ "$others" -eq 0 ] && [ "$loops" -eq 0 ]
