#!/bin/bash
# Builds the image and replaces two fetchers one after the other, for a Jenkins job whose credentials are in TOKEN and
# GROUPID. The first new fetcher must be healthy before the second old one is stopped, so one is always polling. If a
# step fails, the script stops and leaves the containers as they are. Other settings in the job's environment, such as
# METRICS_PORT, are passed to the containers, too.
set -euo pipefail
cd "$(dirname "$0")/.."

imageName="service.event-fetcher"
containerName="service.event-fetcher"
localIP="172.18.0.5"
networkName="TOASTER"
settings=(TOKEN GROUPID REDIS_URL BUS COMMAND_PREFIXES STREAM_MAXLEN NAMES_TTL POLL_WAIT RENEW_AFTER LOG_LEVEL RAW METRICS_PORT
  HTTPS_PROXY)

for name in TOKEN GROUPID; do
  if [[ -z ${!name:-} ]]; then
    echo "jenkins.sh: $name is not set: bind the community's credentials to TOKEN and GROUPID in the job" >&2
    exit 2
  fi
done

options=()
for name in "${settings[@]}"; do
  if [[ -n ${!name:-} ]]; then
    export "${name?}"
    options+=(-e "$name")
  fi
done

replace() { # CONTAINER OPTION...: the options are for `docker run`
  local container=$1
  shift
  if docker container inspect "$container" >/dev/null 2>&1; then
    docker stop "$container"
    docker rm -f "$container"
  fi
  # The token is passed when the container starts, so neither a layer nor the history of the image has it.
  docker run -d --name "$container" --restart always --network "$networkName" "$@" "${options[@]}" "$imageName"
  for _ in {1..60}; do
    docker exec "$container" python main.py --health && return
    sleep 2
  done
  docker logs --tail 20 "$container" || true
  echo "jenkins.sh: $container is not healthy after two minutes: the other one is left as it is" >&2
  return 1
}

docker build . -t "$imageName"

if ! docker network inspect "$networkName" >/dev/null 2>&1; then
  # Other containers get their addresses from the upper half, so that none takes the fetcher's.
  docker network create --subnet 172.18.0.0/24 --gateway 172.18.0.1 --ip-range 172.18.0.128/25 "$networkName"
fi

replace "$containerName-2"
replace "$containerName" --ip "$localIP"

# Remove only this job's old images: `system prune` would also remove other services' stopped containers and networks.
docker image prune -f --filter "label=org.opencontainers.image.title=event-fetcher"
