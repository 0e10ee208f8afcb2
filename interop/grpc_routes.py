"""Makes calls through xDS with gRPC's C-core and prints where each went, as a JSON list.

Usage: grpc_routes.py TARGET < REQUESTS    (bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG)
REQUESTS is a JSON list of {"path": "/a.B/C", "metadata": [["name", "value"], ...]}.
"""

import json
import sys

import grpc


def main():
    requests = json.load(sys.stdin)
    answers = []
    with grpc.insecure_channel(sys.argv[1]) as channel:
        for request in requests:
            call = channel.unary_unary(
                request["path"],
                request_serializer=lambda data: data,
                response_deserializer=lambda data: data.decode(),
            )
            metadata = [tuple(pair) for pair in request["metadata"]]
            try:
                answers.append(call(b"", metadata=metadata, timeout=20, wait_for_ready=False))
            except grpc.RpcError as error:
                answers.append(f"{error.code().name}: {error.details()}")
    print(json.dumps(answers))


main()
