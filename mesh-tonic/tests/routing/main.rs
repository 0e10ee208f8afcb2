//! What routes ask for beyond a cluster, over real sockets: HTTP/1.1, HTTP/2 and gRPC.

mod addresses;
mod answers;
mod attempts;
mod callers;
mod changes;
mod churn;
mod clusters;
mod echo;
mod explain;
mod filters;
mod hashes;
mod intent;
#[allow(dead_code, reason = "shared with the target `acceptance`")]
#[path = "../acceptance/plane.rs"]
mod plane;
mod redirecting;
mod redirects;
mod replays;
#[allow(dead_code, reason = "shared with the target `acceptance`")]
#[path = "../acceptance/resources.rs"]
mod resources;
mod retries;
mod scene;
mod secrets;
mod sessions;
mod stateful;
mod timeouts;
mod unruly;
#[path = "../e2e/world.rs"]
mod world;
