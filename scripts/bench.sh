#!/bin/sh
# Runs every measurement bench/*.py in turn; those about a peer have a target of their own.
set -u
cd "$(dirname "$0")/.." || exit 1
failed=0
found=0
for file in bench/*.py; do
    case "$file" in *lerobot*.py | *__init__.py | 'bench/*.py') continue ;; esac
    found=1
    echo "== $file"
    "$1" "$file" || failed=1
done
[ $found -eq 1 ] || echo "bench: no measurements here yet"
exit $failed
