# Two images: `--target server` for web, conductor, beat, ingest; `--target node` for a node, without the server's packages.
# A CPU-only torch makes both small: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM node:22-slim AS front
WORKDIR /front
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM python:3.11-slim AS base
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
RUN useradd --uid 10001 --create-home --home-dir /var/lib/trainmaster trainmaster
VOLUME /var/lib/trainmaster

FROM base AS node-packages
ARG PIP_EXTRA_INDEX_URL=
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY trainer trainer
RUN python -m venv .venv && pip install --no-cache-dir -c constraints.txt -e .

FROM node-packages AS server-packages
ARG PIP_EXTRA_INDEX_URL=
RUN pip install --no-cache-dir -c constraints.txt -e '.[server]'

FROM base AS node
COPY --from=node-packages /app /app
USER trainmaster
ENV TRAINMASTER_NODE_HOME=/var/lib/trainmaster
CMD ["trainmaster", "node", "start"]

FROM base AS server
COPY --from=server-packages /app /app
COPY --from=front /front/node_modules node_modules
COPY manage.py ./
COPY webapp webapp
COPY templates templates
COPY static static
USER trainmaster
ENV TRAINMASTER_HOME=/var/lib/trainmaster
CMD ["uvicorn", "webapp.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--lifespan", "off"]
