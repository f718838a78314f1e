#!/bin/sh
# Builds the image and replaces two fetchers one after the other, because a single `up` would replace both at once. The
# first new fetcher must be healthy before the second old one is stopped, so one is always polling. If a step fails, the
# script stops and leaves the containers as they are.
set -eu
cd "$(dirname "$0")/.."

docker compose --profile second build
docker compose --profile second up -d --wait second
docker compose --profile second up -d --wait fetcher
