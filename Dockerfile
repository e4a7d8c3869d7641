# Groundtune as a container. For a CPU:   docker build -t groundtune .
# For an NVIDIA GPU, the index of PyTorch for your CUDA version:   docker build --build-arg CUDA=cu130 -t groundtune .
# Then, with your data in the current folder:   docker run --rm -it -v "$PWD:/data" groundtune -h
FROM python:3.12-slim
ARG CUDA=cpu
ARG TORCH=2.13.0
ARG EXTRAS=documents,endpoint,parquet,serve
RUN useradd --create-home --uid 1000 groundtune && mkdir /data && chown groundtune /data
WORKDIR /source
# PyTorch first, in a layer of its own: it is the largest by far, and changes least.
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${CUDA}" "torch==${TORCH}"
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY groundtune groundtune
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"
USER groundtune
WORKDIR /data
ENTRYPOINT ["groundtune"]
