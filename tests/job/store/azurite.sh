#!/bin/sh
# Brings Azurite from the npm registry into a folder outside of the repository, and says where its program is.
# Usage: tests/job/store/azurite.sh FOLDER     then: AZURITE_BLOB=FOLDER/node_modules/.bin/azurite-blob scripts/test --full tests/job/store
set -eu
folder=${1:?name a folder}
program=$folder/node_modules/.bin/azurite-blob
if [ ! -x "$program" ]; then
    mkdir -p "$folder"
    npm install --prefix "$folder" --no-audit --no-fund --ignore-scripts --silent azurite@3.37.0 >&2
fi
echo "$program"
