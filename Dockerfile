# The tag moves with Python's security releases. To pin the exact image, put its digest behind the tag
# (`docker image inspect -f '{{index .RepoDigests 0}}' python:3.13-slim`) and renew it yourself.
FROM python:3.13-slim

LABEL org.opencontainers.image.title="event-fetcher" \
      org.opencontainers.image.description="VK community events on a Redis bus: each once, typed, in VK's order" \
      org.opencontainers.image.version="1.2.0" \
      org.opencontainers.image.licenses="MIT"

WORKDIR /app

# Wheels only: there is no compiler here. pip checks the hashes in the file. The demo's server is one of these packages.
COPY requirements-run.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: -r requirements-run.txt

COPY main.py LICENSE ./
COPY fetcher ./fetcher

# A build argument stays in the image's history; `docker run -e TOKEN` does not, and wins. The arguments come before a
# RUN because podman notices only there that one has changed.
ARG TOKEN=""
ARG GROUPID=""
# The base image has no compiled modules and the user below may write none: importing everything here compiles it
# once, not at each start and health check. It also ends the build of an image that would not start.
RUN python main.py --version && python -c "import prometheus_client, hiredis, fetcher.commands.demo"

ENV TOKEN=$TOKEN GROUPID=$GROUPID REDIS_URL=redis://redis:6379/0
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "main.py", "--health"]
CMD ["python", "main.py"]
