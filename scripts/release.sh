#!/usr/bin/env bash
# Makes a release of the version in src/easyeditor/version.py: checks, tests both tiers, builds, tags. Nothing is uploaded.
#
#     scripts/release.sh            # on a clean main
#     scripts/release.sh --check    # only what can be checked in a second
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' src/easyeditor/version.py)
fail() { echo "release: $*" >&2; exit 1; }

grep -q "^version: $version$" CITATION.cff || fail "CITATION.cff has another version than src/easyeditor/version.py ($version)."
grep -q "^## $version" CHANGELOG.md || fail "CHANGELOG.md has no section '## $version'."
grep -q "[-]$version-py3" spaces/requirements.txt || fail "spaces/requirements.txt names another wheel than $version."
[[ "${1:-}" == --check ]] && { echo "release: $version can be made."; exit; }

[[ -z "$(git status --porcelain)" ]] || fail "the working tree has changes; commit them."
[[ "$(git rev-parse --abbrev-ref HEAD)" == main ]] || fail "releases are made of main."
! git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null || fail "v$version exists already."
grep -q "^## $version (unreleased)" CHANGELOG.md && fail "CHANGELOG.md still says 'unreleased'; write the day there."

make setup lint test-full
rm -rf dist
make wheel
git tag --annotate "v$version" --message "$version"
echo "release: dist/ holds the wheel, v$version the tag. Push the tag, then upload dist/."
