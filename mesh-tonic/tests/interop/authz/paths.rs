//! Generated paths: what the application sees behind our server and behind Envoy.

use std::net::Ipv4Addr;

use mesh_core::rng::{Rng as _, SplitMix64};
use mesh_examples::ports::free_address;
use tokio::net::TcpListener;

use super::{ask, for_envoy, listener, proxy, serve};

/// Paths of a run for each option.
const PATHS: usize = 400;

/// A path out of pieces that matter. A `#` is left out: Envoy refuses it, and the library that reads
/// our requests drops what is behind it before anybody looks.
fn generated(rng: &mut SplitMix64) -> String {
    const PIECES: [&str; 24] = [
        "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "\\", "a", "admin",
        "%61", "%7E", "%25", "//", "?", "=", "[", "^", "%C3%BC", "%20",
    ];
    let mut path = String::from("/");
    for _ in 0..rng.next_u64() % 10 {
        path.push_str(PIECES[(rng.next_u64() % PIECES.len() as u64) as usize]);
    }
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_see_the_same_path_behind_envoy_and_behind_our_server() {
    let options = ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"];
    let mut pairs = Vec::new();
    let mut listeners = Vec::new();
    for option in options {
        let envoy = free_address().unwrap();
        let policy = format!(
            "kind: MeshPolicy\nmetadata: {{name: a}}\nspec: {{pathNormalization: {option}}}\n"
        );
        let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let our_address = ours.local_addr().unwrap();
        serve(&listener(&policy, our_address), ours).await;
        listeners.push(for_envoy(&listener(&policy, envoy)));
        pairs.push((option, our_address, envoy));
    }
    let folder = tempfile::tempdir().unwrap();
    let last = pairs[pairs.len() - 1].2;
    let _envoy = proxy::envoy(folder.path(), listeners, last).await;
    let mut rng = SplitMix64::new(2_021);
    for _ in 0..PATHS {
        let path = generated(&mut rng);
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        for (option, ours, envoy) in &pairs {
            let (ours, mut theirs) = (ask(*ours, &request).await, ask(*envoy, &request).await);
            // Envoy keeps two slashes of a path that has nothing else; docs/envoy-deviations.md.
            if option.ends_with("MERGE_SLASHES") && theirs.1.starts_with("//") {
                theirs.1.remove(0);
            }
            if ours.0 == 200 && theirs.0 == 200 {
                assert_eq!(ours, theirs, "{option} {path}");
            } else {
                assert_eq!(ours.0, theirs.0, "{option} {path}: {ours:?} {theirs:?}");
            }
        }
    }
}
