#!/bin/bash
# Builds the image and replaces the container, for a Jenkins job whose credentials are in TOKEN and GROUPID.
# A build that fails leaves the running container as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

imageName="service.event-fetcher"
containerName="service.event-fetcher"
localIP="172.18.0.5"
networkName="TOASTER"

for name in TOKEN GROUPID; do
  if [[ -z ${!name:-} ]]; then
    echo "jenkins.sh: $name is not set: bind the community's credentials to TOKEN and GROUPID in the job" >&2
    exit 2
  fi
done
export TOKEN GROUPID

docker build . -t "$imageName"

if ! docker network inspect "$networkName" >/dev/null 2>&1; then
  # Other containers get their addresses from the upper half, so that none takes the fetcher's.
  docker network create --subnet 172.18.0.0/24 --gateway 172.18.0.1 --ip-range 172.18.0.128/25 "$networkName"
fi

if docker container inspect "$containerName" >/dev/null 2>&1; then
  docker stop "$containerName"
  docker rm -f "$containerName"
fi
# The token goes in when the container starts: it is in no layer and no history of the image.
docker run -d --name "$containerName" --restart always --network "$networkName" --ip "$localIP" \
  -e TOKEN -e GROUPID "$imageName"

# Only what this job left behind: `system prune` would also take other services' stopped containers and networks.
docker image prune -f --filter "label=org.opencontainers.image.title=event-fetcher"
