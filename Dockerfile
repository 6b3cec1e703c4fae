# The Airflow image of NIM Rollouts: Airflow with the pinned providers, and the two tools that its tasks start.
FROM apache/airflow:3.3.2-python3.11

# Both are single programs of their vendors' releases; the checksums are part of the pin, so fill in both together:
#   docker build --build-arg TERRAFORM_SHA256=... --build-arg HELM_SHA256=... .
ARG TERRAFORM_VERSION=1.11.4
ARG TERRAFORM_SHA256=
ARG HELM_VERSION=4.3.1
ARG HELM_SHA256=
# Set by BuildKit; a default here would win over it and put amd64 tools into an arm64 image.
ARG TARGETARCH

USER root
RUN set -eu; \
    TARGETARCH="${TARGETARCH:-$(dpkg --print-architecture)}"; \
    apt-get update; apt-get install --yes --no-install-recommends unzip; rm -rf /var/lib/apt/lists/*; \
    check() { if [ -n "$1" ]; then echo "$1  $2" | sha256sum --check --strict; else echo "no checksum given for $2" >&2; fi; }; \
    cd /tmp; \
    curl --fail --silent --show-error --location --output terraform.zip \
        "https://releases.hashicorp.com/terraform/${TERRAFORM_VERSION}/terraform_${TERRAFORM_VERSION}_linux_${TARGETARCH}.zip"; \
    check "${TERRAFORM_SHA256}" terraform.zip; \
    unzip -q terraform.zip terraform -d /usr/local/bin; \
    curl --fail --silent --show-error --location --output helm.tar.gz \
        "https://get.helm.sh/helm-v${HELM_VERSION}-linux-${TARGETARCH}.tar.gz"; \
    check "${HELM_SHA256}" helm.tar.gz; \
    tar --extract --gzip --file helm.tar.gz --directory /usr/local/bin --strip-components 1 "linux-${TARGETARCH}/helm"; \
    rm terraform.zip helm.tar.gz; \
    terraform version; helm version --short; \
    install --directory --owner airflow --group 0 --mode 0775 /opt/airflow/work /opt/airflow/auth

USER airflow
COPY requirements.txt /requirements.txt
RUN pip install --no-cache-dir --requirement /requirements.txt

# A copy in the image, so that it also runs where nothing is mounted (on Kubernetes, for one).
COPY --chown=airflow:0 dags /opt/airflow/dags
COPY --chown=airflow:0 plugins /opt/airflow/plugins
COPY --chown=airflow:0 include /opt/airflow/include
ENV PYTHONPATH=/opt/airflow/plugins \
    NIM_ROLLOUTS_INCLUDE=/opt/airflow/include \
    NIM_ROLLOUTS_WORK=/opt/airflow/work
