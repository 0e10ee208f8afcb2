"""Answers every method at many addresses as an xDS server with gRPC's C-core, until its standard input
closes.

Usage: grpc_any_server.py ADDRESS ...    (bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG)
"""

import concurrent.futures
import sys

import grpc


class Everything(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), xds=True)
    server.add_generic_rpc_handlers([Everything()])
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials())
    for address in sys.argv[1:]:
        server.add_secure_port(address, credentials)
    server.start()
    print("serving", flush=True)
    sys.stdin.read()
    server.stop(1).wait()


main()
