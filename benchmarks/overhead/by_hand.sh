#!/usr/bin/env bash
# The main job without us: what a competent user would otherwise write, on the same objects.
# usage: by_hand.sh WORK
#
# WORK holds root/ (the terraform root module), backend.tfbackend.json, variables.tfvars.json and manifests/, and takes what is
# made: steps (a line a step: when it began, its name), report.log. In the environment: KUBECONFIG, AWS_*, HELM, CHART,
# VALUES, KARPENTER_CHART, KARPENTER_VALUES, NGC_URL, NGC_KEY_FILE, REPOSITORY, TAG, MODEL, NAME, NAMESPACE, OPERATOR
# (its Deployment).
set -euo pipefail
umask 077

work=$(cd "${1:?usage: by_hand.sh WORK}" && pwd)
manifests=$work/manifests
step=start forward=
export TF_IN_AUTOMATION=1 TF_CLI_ARGS=-no-color CHECKPOINT_DISABLE=1 TF_DATA_DIR=$work/terraform

begin() {
    step=$1
    printf '%s %s\n' "$(date +%s.%N)" "$step" >>"$work/steps"
    printf '== %s\n' "$step"
}
ended() {
    local status=$?
    if [[ -n $forward ]]; then kill "$forward" 2>/dev/null || true; fi
    if ((status)); then printf 'by_hand.sh: the step "%s" failed with status %d\n' "$step" "$status" >&2; fi
}
trap ended EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

tf() { terraform -chdir="$work/root" "$@"; }
# Server-side, as the pipeline's; the ConfigMap would not fit into the annotation of a client-side apply anyway.
apply() { kubectl apply --server-side -f "$@"; }
wait_for() { kubectl -n "$NAMESPACE" wait --timeout=600s "$@"; }
# The key on standard input, so that no process list shows it.
ngc() { printf 'user = "$oauthtoken:%s"\n' "$(<"$NGC_KEY_FILE")" | curl -fsS --config - "$@"; }

begin validate
for tool in terraform kubectl curl jq "$HELM"; do
    command -v "$tool" >/dev/null || { echo "$tool is not there" >&2; exit 1; }
done
grep -q '^nvapi-' "$NGC_KEY_FILE" || { echo "$NGC_KEY_FILE holds no NGC key" >&2; exit 1; }
path=${REPOSITORY#*/}
token=$(ngc "$NGC_URL/proxy_auth?account=\$oauthtoken&scope=repository:$path:pull" | jq -er .token)
printf 'header = "Authorization: Bearer %s"\n' "$token" |
    curl -fsS --config - --head "$NGC_URL/v2/$path/manifests/$TAG" >/dev/null

begin "terraform plan"
tf init -input=false -reconfigure -backend-config="$work/backend.tfbackend.json" ${TF_PLUGIN_DIR:+"-plugin-dir=$TF_PLUGIN_DIR"}
tf plan -input=false -var-file="$work/variables.tfvars.json" -out="$work/plan.tfplan"

begin "terraform apply"
tf apply -input=false "$work/plan.tfplan"

begin "terraform outputs"
file_system=$(tf output -raw efs_file_system_id)
node_role=$(tf output -raw node_role_name)
discovery=$(tf output -json discovery_tag | jq -er '."karpenter.sh/discovery"')

begin "cluster access"
kubectl version >/dev/null

begin charts
"$HELM" upgrade --install karpenter "$KARPENTER_CHART" -n kube-system --values "$KARPENTER_VALUES" \
    --set "settings.clusterName=$discovery"

"$HELM" upgrade --install nim-operator "$CHART" -n nim-operator --create-namespace --values "$VALUES"

begin platform
sed "s/fs-00000000000000000/$file_system/" "$manifests/storage-class.yaml" | apply -
apply "$manifests/namespace.yaml"
kubectl wait --timeout=120s --for=condition=established \
    crd/nimcaches.apps.nvidia.com crd/nimservices.apps.nvidia.com \
    crd/nodepools.karpenter.sh crd/nodeclaims.karpenter.sh crd/ec2nodeclasses.karpenter.k8s.aws
for file in "$manifests"/node-pools/*.yaml; do
    sed "s/role: put-in/role: $node_role/; s|discovery: put-in|discovery: $discovery|" "$file" | apply -
done
kubectl wait --timeout=120s --for=condition=Ready nodepools --all
kubectl -n nim-operator wait --timeout=120s --for=condition=available "deployment/$OPERATOR"
for file in nimcache nimservice benchmark; do apply "$manifests/$file.yaml" --dry-run=server; done

begin secrets
auth=$(printf '$oauthtoken:%s' "$(<"$NGC_KEY_FILE")" | base64 -w0)
printf '{"auths": {"nvcr.io": {"auth": "%s"}}}' "$auth" |
    kubectl -n "$NAMESPACE" create secret generic ngc-secret --type=kubernetes.io/dockerconfigjson \
        --from-file=.dockerconfigjson=/dev/stdin --dry-run=client -o yaml | apply -
printf '%s' "$(<"$NGC_KEY_FILE")" |
    kubectl -n "$NAMESPACE" create secret generic ngc-api-secret \
        --from-file=NGC_API_KEY=/dev/stdin --dry-run=client -o yaml | apply -

begin cache
apply "$manifests/nimcache.yaml"
wait_for --for=jsonpath='{.status.state}'=Ready "nimcache/$NAME"

begin service
apply "$manifests/nimservice.yaml"
wait_for --for=jsonpath='{.status.state}'=Ready "nimservice/$NAME"

begin "smoke test"
kubectl -n "$NAMESPACE" port-forward "svc/$NAME" :8000 >"$work/forward" &
forward=$!
until port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$work/forward") && [[ -n $port ]]; do
    kill -0 "$forward" || { echo "the port-forward has ended" >&2; exit 1; }
    sleep 0.1
done
curl -fsS "http://127.0.0.1:$port/v1/health/ready" >/dev/null
curl -fsS "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' -d @- <<JSON |
{"model": "$MODEL", "max_tokens": 64, "temperature": 0,
 "messages": [{"role": "user", "content": "Name the planets of the solar system in one sentence."}]}
JSON
    jq -e '.choices[0].message.content != "" and .usage.completion_tokens > 0' >/dev/null
kill "$forward" && forward=

begin benchmark
apply "$manifests/benchmark.yaml"
job=$(kubectl -n "$NAMESPACE" get jobs -o name -l by-hand=benchmark)
wait_for --for=condition=complete "$job"

begin report
kubectl -n "$NAMESPACE" logs "$job" >"$work/report.log"
grep -q '^benchmark done' "$work/report.log"

begin end
