# The image of mnist-job. Works with Docker's classic builder and with BuildKit.
#
#   docker build -t mnist-train .                            CPU
#   docker build -t mnist-train:gpu --build-arg FLAVOUR=gpu .     CUDA libraries from PyPI; the node needs only the driver
#
# BASE is best given by digest (debian@sha256:...): a tag can name another image tomorrow. scripts/image --push takes nothing else.
# CONTRIBUTING.md says where to look the digest up, and when to renew it; put it into this line to keep it.
ARG BASE=debian:trixie-slim

# What both stages share: the same Python at the same path, so that a virtual environment can be copied.
FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    # Nothing in here may change its user.
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
COPY scripts/uv.txt /build/
RUN python3 -m venv /build/tools \
    && /build/tools/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /build/uv.txt

# A stage of its own: a change of pyproject.toml that leaves these packages alone installs nothing again.
FROM build AS lock
ARG FLAVOUR=cpu
COPY pyproject.toml uv.lock /build/
RUN cd /build && tools/bin/uv export --quiet --locked --no-dev --no-emit-project --no-header --no-annotate \
    --extra "$FLAVOUR" --output-file packages.txt

FROM build AS install
COPY --from=lock /build/packages.txt /build/
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
# Everything by the hashes of uv.lock. promise, which tensorflow-datasets needs, has no wheel: it is built in the second
# step, with the setuptools of the first, because what a build environment of its own would fetch has no hashes.
RUN cd /build && python3 -m venv --without-pip /opt/venv \
    && sed '/^promise==/,/[^\\]$/d' packages.txt > wheels.txt \
    && sed -n '/^promise==/,/[^\\]$/p' packages.txt > source.txt \
    && tools/bin/uv pip install --require-hashes --no-deps --only-binary :all: -r wheels.txt \
    && tools/bin/uv pip install --require-hashes --no-deps --no-build-isolation -r source.txt
# 300 MB that only a compiler (headers) or the packages' own developers (tests) would read, and programs that the job never starts.
RUN find /opt/venv/bin -mindepth 1 ! -name 'python*' -delete \
    && cd /opt/venv/lib/python3*/site-packages \
    && rm -rf tensorflow/include \
    && find . -name '*_test.py' -delete \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib
# The program itself: a change here copies a few files and compiles them, nothing above it is done again.
COPY job /app/job
COPY LICENSE /app/
RUN /opt/venv/bin/python -m compileall -q /app \
    && printf '#!/opt/venv/bin/python\nfrom job.__main__ import main\n\nmain()\n' > /app/mnist-job \
    && chmod 755 /app/mnist-job

# The root of the image: Python is the only program that is left. No shell, no package manager, no perl, no tar: whoever makes
# the job run a command finds none. dpkg's list of packages stays, for scanners.
FROM python AS root
RUN install -d -o 65532 -g 65532 /work \
    && rm -rf /etc/apt /etc/cron.daily /usr/lib/apt /usr/lib/dpkg /usr/lib/init /usr/libexec /usr/share/perl* /usr/lib/*-linux-gnu/perl* /var/lib/apt \
    && find /usr/bin /usr/sbin ! -type d ! -name 'python3' ! -name 'python3.[0-9]*' -delete

# From nothing, so that what was removed is not in a layer below.
FROM scratch
COPY --from=root / /
COPY --from=install /opt/venv /opt/venv
COPY --from=install /app /app
# Your own models and data sources: COPY them into /app, which is on the path. PYTHONSAFEPATH keeps the working folder,
# the only one beside /tmp that has to be writable, off it.
ENV PATH=/app:/opt/venv/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/work
WORKDIR /work
USER 65532:65532
# A builder that does not keep owners would only be noticed in a pod.
RUN ["python", "-c", "import os, sys; sys.exit(not os.access('/work', os.W_OK))"]
ARG VERSION=0.1.0
ARG REVISION=unknown
# Recorded with every attempt.
ENV REVISION=${REVISION}
LABEL org.opencontainers.image.title="mnist-train" \
      org.opencontainers.image.description="A batch-training job for TensorFlow that publishes a whole, verified model or nothing" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No init: the job is PID 1 and handles its signals itself.
ENTRYPOINT ["mnist-job"]
CMD ["run"]
