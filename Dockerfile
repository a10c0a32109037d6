# wsi_ips on the CPU, or with --build-arg TORCH=cuda on NVIDIA cards (run with --gpus all; about 7 GB instead of 2).
#   docker build -t wsi_ips .
#   docker run --rm -v /data:/data wsi_ips predict /data/slides --checkpoint /data/model.safetensors --out /data/run
ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY wsi_ips wsi_ips
COPY pipelines pipelines
COPY data_manifests data_manifests
RUN pip install --no-cache-dir 'build>=1.2' && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim
ARG TORCH=cpu
ARG EXTRAS=fast,plots,remote,segmenter,zarr
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /wheels
RUN if [ "$TORCH" = cpu ]; then \
      grep -E '^(torch|torchvision)==' /tmp/constraints.txt > /tmp/torch.txt && \
      pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu -r /tmp/torch.txt; \
    fi && \
    pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /wheels/*.whl)[$EXTRAS]" && \
    rm -r /wheels /tmp/constraints.txt && \
    useradd --create-home --uid 1000 pathologist
# By its number, so that a cluster can see that it is not root.
USER 1000
WORKDIR /data
# The viewer is reached from outside the container: view RUN --host 0.0.0.0, and -p 8080:8080.
EXPOSE 8080
ENTRYPOINT ["wsi-ips"]
CMD ["--help"]
