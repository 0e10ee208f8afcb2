"""Serves the greeter as an xDS server with gRPC's C-core until its standard input closes.

Usage: grpc_server.py ADDRESS VERSION    (bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG)
"""

import concurrent.futures
import sys

import grpc

import greeter


def main():
    address, version = sys.argv[1], sys.argv[2]

    def say_hello(request, context):
        return {1: "hello " + request.get(1, ""), 2: version}

    handler = grpc.unary_unary_rpc_method_handler(
        say_hello, request_deserializer=greeter.decode, response_serializer=greeter.encode
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), xds=True)
    service, method = greeter.METHOD[1:].split("/")
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials())
    server.add_secure_port(address, credentials)
    server.start()
    print("serving", flush=True)
    sys.stdin.read()
    server.stop(1).wait()


main()
