FROM python:3.13-slim

LABEL org.opencontainers.image.title="event-fetcher" \
      org.opencontainers.image.description="VK community events on a Redis bus: each once, typed, in VK's order" \
      org.opencontainers.image.licenses="MIT"

WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore -c requirements.txt vk_api redis python-dotenv

COPY main.py ./
COPY fetcher ./fetcher

# A build argument stays in the image's history; `docker run -e TOKEN` does not, and wins. They stand before a RUN because
# podman notices only there that one has changed.
ARG TOKEN=""
ARG GROUPID=""
# The base image has no compiled modules and the user below may write none: importing everything once, here, spares
# each start and each health check the work. And an image that does not start is not built.
RUN python main.py --version

ENV TOKEN=$TOKEN GROUPID=$GROUPID REDIS_URL=redis://redis:6379/0
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "main.py", "--health"]
CMD ["python", "main.py"]
