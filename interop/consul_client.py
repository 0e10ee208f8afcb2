"""A client of Consul's, against the control plane: registers, is found, watches and leaves."""

import sys
import threading

import consul

host, port = sys.argv[1].split(":")
client = consul.Consul(host=host, port=int(port))

check = consul.Check.ttl("60s")
check["DeregisterCriticalServiceAfter"] = "90m"
assert client.agent.service.register(
    "billing",
    service_id="billing-1",
    address="127.0.0.1",
    port=5001,
    tags=["v1"],
    meta={"app": "billing"},
    check=check,
)
services = client.agent.services()
assert services["billing-1"]["Port"] == 5001, services
assert services["billing-1"]["Meta"] == {"app": "billing"}, services

index, found = client.health.service("billing", passing=True)
assert found == [], found

# A blocking query sees the check pass.
seen = []


def watch():
    seen.append(client.health.service("billing", passing=True, index=index, wait="5m"))


watcher = threading.Thread(target=watch)
watcher.start()
assert client.agent.check.ttl_pass("service:billing-1", "all well")
watcher.join(20)
assert not watcher.is_alive(), "the blocking query did not answer"
later, found = seen[0]
assert int(later) > int(index), (index, later)
assert found[0]["Service"]["ID"] == "billing-1", found
assert found[0]["Checks"][0]["Output"] == "all well", found

_, names = client.catalog.services()
assert names == {"billing": ["v1"]}, names
_, nodes = client.catalog.service("billing", tag="v1")
assert nodes[0]["ServiceAddress"] == "127.0.0.1", nodes
_, nodes = client.catalog.service("billing", tag="v2")
assert nodes == [], nodes

assert client.agent.service.maintenance("billing-1", True, "upgrade")
_, critical = client.health.state("critical")
assert critical[0]["CheckID"] == "_service_maintenance:billing-1", critical
assert client.agent.service.maintenance("billing-1", False)

assert client.agent.service.register(
    "probed", port=int(port), check=consul.Check.tcp(host, int(port), "1s", "5s")
)
index = None
while not found or found[0]["Service"]["Service"] != "probed":
    index, found = client.health.service("probed", passing=True, index=index, wait="20s")

assert client.agent.service.deregister("billing-1")
assert "billing-1" not in client.agent.services()
try:
    client.agent.check.ttl_pass("service:billing-1")
except consul.ConsulException as error:
    assert "Unknown check ID" in str(error), error
else:
    raise AssertionError("a check that is gone was told")
print("ok")
