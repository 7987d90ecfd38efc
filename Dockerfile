# Two images: `node` runs owners and coordinators, `aggregator` has no PyTorch in it.
#
#   docker build --target node -t cairn-node .
#   docker build --target aggregator -t cairn-aggregator .
#
# PIP_EXTRA_INDEX_URL is one more index to install from. PyTorch from the default index brings gigabytes
# of CUDA; give the index of PyTorch's CPU wheels here to leave those out.

FROM python:3.11-slim-bookworm AS dependencies
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/cairn
WORKDIR /source
# First what Cairn depends on: it changes less often than Cairn's own code.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > dependencies.txt \
 && /opt/cairn/bin/pip install --constraint constraints.txt --requirement dependencies.txt

FROM dependencies AS wheel
COPY README.md LICENSE ./
COPY cairn cairn
COPY owner_node owner_node
COPY aggregator_node aggregator_node
COPY coordinator coordinator
COPY examples examples
RUN /opt/cairn/bin/pip wheel --no-deps --wheel-dir /wheels .

# pip has no work in an image that runs as it was built.
FROM dependencies AS build-aggregator
COPY --from=wheel /wheels /wheels
RUN /opt/cairn/bin/pip install --no-deps /wheels/*.whl && /opt/cairn/bin/pip uninstall --yes pip setuptools

# Of PyTorch, leave out what only its own tests and C++ extensions need.
FROM dependencies AS torch
ARG PIP_EXTRA_INDEX_URL=
RUN python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["torch"], *extras["dp"], sep="\n")' > torch.txt \
 && /opt/cairn/bin/pip install --constraint constraints.txt --requirement torch.txt \
 && cd /opt/cairn/lib/python3.11/site-packages/torch \
 && rm -rf test include \
 && find bin -type f ! -name torch_shm_manager -delete

FROM torch AS build-node
COPY --from=wheel /wheels /wheels
RUN /opt/cairn/bin/pip install --no-deps /wheels/*.whl && /opt/cairn/bin/pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm AS runtime
# A new volume takes its owner and its mode from the directory that it is mounted over. Each node's
# directory holds its file and its keys; docker-compose.yml gives each a volume of its own.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cairn \
 && install -d -o cairn -g cairn -m 0700 /nodes /runs \
 && install -d -o cairn -g cairn -m 0700 /nodes/authority /nodes/aggregator /nodes/coordinator /nodes/alice /nodes/bob
ENV PATH=/opt/cairn/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 10001:10001

FROM runtime AS aggregator
COPY --from=build-aggregator /opt/cairn /opt/cairn
CMD ["aggregator-node", "--help"]

FROM runtime AS node
COPY --from=build-node /opt/cairn /opt/cairn
CMD ["owner-node", "--help"]
