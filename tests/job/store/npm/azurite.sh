#!/bin/sh
# Brings Azurite from the npm registry into a folder outside of the repository, each file by its hash, and says where its program is.
# Usage: tests/job/store/npm/azurite.sh FOLDER     then: AZURITE_BLOB=FOLDER/node_modules/.bin/azurite-blob scripts/test --full tests/job/store
set -eu
folder=${1:?name a folder}
program=$folder/node_modules/.bin/azurite-blob
if [ ! -x "$program" ] || ! cmp -s "$(dirname "$0")/package-lock.json" "$folder/package-lock.json"; then
    mkdir -p "$folder"
    cp "$(dirname "$0")/package.json" "$(dirname "$0")/package-lock.json" "$folder"
    npm ci --prefix "$folder" --no-audit --no-fund --ignore-scripts --silent >&2
fi
echo "$program"
