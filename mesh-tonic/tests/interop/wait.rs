//! Waiting for peers, which tell nobody when they are ready.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Child,
    time::{sleep, timeout},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// A peer that has not started, or not taken its configuration, in this time has failed.
const PEER_MAX: Duration = Duration::from_secs(60);

/// Looks again until something is found.
pub(crate) async fn found<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(PAUSE).await;
        }
    };
    let found = timeout(PEER_MAX, found).await;
    found.unwrap_or_else(|_| panic!("{what}: not within {PEER_MAX:?}"))
}

/// Looks again until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    found(what, async || is_so().await.then_some(())).await;
}

/// Waits until somebody listens at `address`, who should be `process`.
pub(crate) async fn listens(process: &mut Child, address: SocketAddr) {
    until("Envoy listens", async || {
        if let Some(status) = process.try_wait().unwrap() {
            panic!("Envoy ended: {status}; its log says why");
        }
        TcpStream::connect(address).await.is_ok()
    })
    .await;
}

/// A plain HTTP/1.1 exchange; the whole answer.
pub(crate) async fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !is_whole(&answer)
        && stream
            .read_buf(&mut answer)
            .await
            .is_ok_and(|read| read > 0)
    {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whether a final answer is there with its body: Envoy takes a second to close a connection.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let header = |name: &str| {
        let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find_map(|(found, value)| (found == name).then(|| value.trim().to_owned()))
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "204" || status == "304" {
        return true;
    }
    if status.starts_with('1') {
        return false;
    }
    match (header("content-length"), header("transfer-encoding")) {
        (_, Some(encoding)) if encoding == "chunked" => body.ends_with("0\r\n\r\n"),
        (Some(length), None) => length
            .parse()
            .is_ok_and(|length: usize| body.len() >= length),
        _ => false,
    }
}
