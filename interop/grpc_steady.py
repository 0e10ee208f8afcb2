"""Calls the greeter through xDS with gRPC's C-core at a steady rate until its standard input closes.

For each line that it reads it prints what it saw since the last one as JSON:
{"seen": {VERSION: CALLS}, "failed": [ERROR, ...]}

Usage: grpc_steady.py TARGET PAUSE_SECONDS    (bootstrap in GRPC_XDS_BOOTSTRAP_CONFIG)
"""

import collections
import json
import sys
import threading

import grpc

import greeter


class Steady:
    def __init__(self, channel, pause):
        self.say_hello = channel.unary_unary(
            greeter.METHOD, request_serializer=greeter.encode, response_deserializer=greeter.decode
        )
        self.pause = pause
        self.end = threading.Event()
        self.lock = threading.Lock()
        self.seen, self.failed = collections.Counter(), []

    def run(self):
        while not self.end.wait(self.pause):
            try:
                version = self.say_hello({1: "python"}, timeout=20).get(2, "")
                with self.lock:
                    self.seen[version] += 1
            except grpc.RpcError as error:
                with self.lock:
                    self.failed.append(f"{error.code().name}: {error.details()}")

    def take(self):
        with self.lock:
            taken = {"seen": self.seen, "failed": self.failed}
            self.seen, self.failed = collections.Counter(), []
        return taken


def main():
    # Plaintext where the control plane asks for no mTLS.
    credentials = grpc.xds_channel_credentials()
    with grpc.secure_channel(sys.argv[1], credentials) as channel:
        steady = Steady(channel, float(sys.argv[2]))
        thread = threading.Thread(target=steady.run)
        thread.start()
        for _ in sys.stdin:
            print(json.dumps(steady.take()), flush=True)
        steady.end.set()
        thread.join()


main()
