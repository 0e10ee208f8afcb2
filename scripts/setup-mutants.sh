#!/usr/bin/env bash
# Installs cargo-mutants, which changes the code one place at a time to see whether a test notices,
# into target/tools. Safe to run again; does nothing when it is there. docs/security.md has the score.
set -euo pipefail
cd "$(dirname "$0")/.."

version=25.3.1
tools="$PWD/target/tools"

if [ "$("$tools/bin/cargo-mutants" mutants --version 2>/dev/null)" = "cargo-mutants $version" ]; then
    echo "cargo-mutants $version is installed in $tools"
    exit 0
fi
echo "installing cargo-mutants $version into $tools"
cargo install --quiet --locked --debug --version "$version" --root "$tools" \
    --target-dir target/tools/build cargo-mutants
rm -rf target/tools/build
