"""A greeter over plaintext with gRPC's C-core that streams its load, until its standard input closes.

Usage: grpc_orca_server.py VERSION UTILIZATION

It prints its address, and a line for each stream of reports that begins or ends.
xds.service.orca.v3.OpenRcaService by hand: OrcaLoadReport { double rps_fractional = 6,
application_utilization = 9 }.
"""

import concurrent.futures
import struct
import sys
import time

import grpc

import greeter

METHOD = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
INTERVAL = 0.05


def main():
    version, utilization = sys.argv[1], float(sys.argv[2])
    report = b"\x31" + struct.pack("<d", 100.0) + b"\x49" + struct.pack("<d", utilization)

    def stream(request, context):
        context.add_callback(lambda: print("ended", flush=True))
        print("began", flush=True)
        while context.is_active():
            yield report
            time.sleep(INTERVAL)

    class Services(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == METHOD:
                return grpc.unary_stream_rpc_method_handler(stream)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: {1: f"hello {request.get(1, '')}", 2: version},
                request_deserializer=greeter.decode,
                response_serializer=greeter.encode,
            )

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers([Services()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(1).wait()


main()
