"""Asks a server for reports of its load with gRPC's C-core, and prints some of them as hexadecimal.

Usage: grpc_orca_client.py ADDRESS COUNT
"""

import sys

import grpc

METHOD = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
# OrcaLoadReportRequest { report_interval { nanos: 1000000 } }
REQUEST = b"\x0a\x04\x10\xc0\x84\x3d"


def main():
    address, count = sys.argv[1], int(sys.argv[2])
    with grpc.insecure_channel(address) as channel:
        reports = channel.unary_stream(METHOD)(REQUEST, timeout=60)
        for _ in range(count):
            print(next(reports).hex(), flush=True)
        reports.cancel()


main()
