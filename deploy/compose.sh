#!/bin/sh
# Builds the image and replaces two fetchers one after the other: `up` alone would replace both at once. Each new one must
# be healthy before the next old one is stopped, so one is always polling. A failure leaves what is running as it is.
set -eu
cd "$(dirname "$0")/.."

docker compose --profile second build
docker compose --profile second up -d --wait second
docker compose --profile second up -d --wait fetcher
