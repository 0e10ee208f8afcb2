"""Calls the greeter through xDS with gRPC's C-core and prints what it saw as JSON.

Usage: grpc_client.py TARGET CALLS [KEY=VALUE ...]    (bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG)
"""

import collections
import json
import sys

import grpc

import greeter


def main():
    target, calls = sys.argv[1], int(sys.argv[2])
    metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[3:]]
    seen = collections.Counter()
    with grpc.insecure_channel(target) as channel:
        say_hello = channel.unary_unary(
            greeter.METHOD, request_serializer=greeter.encode, response_deserializer=greeter.decode
        )
        for _ in range(calls):
            try:
                reply = say_hello({1: "python"}, metadata=metadata, timeout=20)
                seen[reply.get(2, "")] += 1
            except grpc.RpcError as error:
                seen[f"{error.code().name}: {error.details()}"] += 1
    print(json.dumps(seen))


main()
