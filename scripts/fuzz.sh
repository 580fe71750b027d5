#!/bin/bash
# Runs every fuzz target of the module, one after the other, for FUZZTIME each. An
# input that fails is left in testdata/fuzz of its package: it belongs in the
# commit that mends what it found.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${FUZZTIME:-30s}

# go test -list prints the names of a package's targets, then "ok" and its path.
targets=$(go test -list '^Fuzz' "${@:-./...}" | awk '
	/^Fuzz/  { names[++n] = $1 }
	$1 == "ok" { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }')
if [ -z "$targets" ]; then
	echo "no fuzz targets" >&2
	exit 1
fi

# To make an input smaller that is merely new takes go up to a minute by default, in
# which nothing is looked for.
count=0 failed=()
while read -r pkg name; do
	echo "== $pkg $name"
	count=$((count + 1))
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" -fuzzminimizetime 1s "$pkg" </dev/null || failed+=("$pkg $name")
done <<<"$targets"

for f in "${failed[@]+"${failed[@]}"}"; do
	echo "failed: $f"
done
echo "$count fuzz targets, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
