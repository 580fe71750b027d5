#!/bin/bash
# Runs go test with the arguments given and says what came of it. A skipped test
# is no passed test: the reasons are listed, and with CI=true what is missing on the
# machine fails the run. The last line is "N passed, N failed, N skipped".
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go build -o "$tmp/testsum" ./scripts/testsum
go test -json "$@" | "$tmp/testsum"
