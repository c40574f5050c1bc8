#!/usr/bin/env bash
# Block a change that makes an edited model worse: compare a released folder with accepted baselines.
#
#   gate.sh DIR BASELINE...        e.g. gate.sh safe-llamagen baselines/last.txt baselines/released.txt
#
# Environment (all optional):
#   INCONCLUSIVE  fail (default) or warn: what "nothing is shown either way" does; never `warn` for a release
#   SUITE         smoke, ci or audit: look at no more prompts than this
#   TRUST         folder of *.pub keys: verify the folder's signature first
#   REQUIRE_SIGNATURE  1: refuse a folder whose signature is not verified (needs TRUST); for tags
#   FRESH         1: draw and judge again instead of reading the folder's outcomes
#   RESULTS       folder for gate.xml (JUnit) and gate.json (default: gate-results)
#
# Exit codes are those of `safear-edit check`: 0 PASS, 1 FAIL, 2 unusable, 3 INCONCLUSIVE, 4 untrusted.
# The step summary is written by `check` itself where GITHUB_STEP_SUMMARY is set.
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "usage: gate.sh DIR BASELINE..." >&2
  exit 2
fi
folder=$1
shift

options=(--inconclusive "${INCONCLUSIVE:-fail}")
for baseline in "$@"; do options+=(--baseline "$baseline"); done
if [ -n "${SUITE:-}" ]; then options+=(--suite "$SUITE"); fi
if [ -n "${TRUST:-}" ]; then options+=(--trust "$TRUST"); fi
if [ "${REQUIRE_SIGNATURE:-0}" = 1 ]; then options+=(--require-signature); fi
if [ "${FRESH:-0}" = 1 ]; then options+=(--fresh); fi

results=${RESULTS:-gate-results}
mkdir -p "$results"
code=0
safear-edit check "$folder" "${options[@]}" --junit "$results/gate.xml" --json > "$results/gate.json" || code=$?

case $code in
  0) echo "gate lets $folder through, see $results/gate.json" ;;
  1) echo "gate failed: $folder regressed, see $results/gate.json" >&2 ;;
  3) echo "gate inconclusive: too few prompts to say, see $results/gate.json" >&2 ;;
  *) echo "gate could not be run on $folder (exit $code)" >&2 ;;
esac
exit "$code"
