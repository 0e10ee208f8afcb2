//! The Workload API over a real Unix socket, served by this test as SPIRE's agent serves it.

use std::{collections::HashMap, path::Path, sync::Mutex};

use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};

use super::*;
use crate::certificate::{
    files::BundleMapWatch,
    workload::{
        self, HEADER,
        proto::{
            X509svid, X509svidRequest, X509svidResponse,
            spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
        },
    },
};

type Message = Result<X509svidResponse, Status>;

/// An agent; each stream gets what was sent last, and what is sent from then on.
#[derive(Clone, Default)]
struct Agent {
    streams: Arc<Mutex<Vec<mpsc::Sender<Message>>>>,
    last: Arc<Mutex<Option<X509svidResponse>>>,
    refusals: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = ReceiverStream<Message>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (name, value) = HEADER;
        let security = request.metadata().get(name);
        if security.is_none_or(|told| told.as_bytes() != value.as_bytes()) {
            return Err(Status::invalid_argument(
                "security header missing from request",
            ));
        }
        let Some(last) = self.last.lock().unwrap().clone() else {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(Status::permission_denied("no identity issued"));
        };
        let (tx, rx) = mpsc::channel(8);
        tx.try_send(Ok(last)).unwrap();
        self.streams.lock().unwrap().push(tx);
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

impl Agent {
    fn serve(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(async move { server.await.unwrap() })
    }

    fn send(&self, message: &X509svidResponse) {
        *self.last.lock().unwrap() = Some(message.clone());
        for stream in self.streams.lock().unwrap().iter() {
            _ = stream.try_send(Ok(message.clone()));
        }
    }
}

fn der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem.as_bytes())
        .unwrap()
        .to_vec()
}

fn message(signer: &Signer, name: &str, federated: &[(&str, &[&Signer])]) -> X509svidResponse {
    let request = csr::SigningRequest::new().unwrap();
    let answer = signer.sign(&request.pem, &[name], HOUR);
    let key = KeyPair::from_pem(&request.key_pem()).unwrap();
    let roots = |signers: &[&Signer]| signers.iter().flat_map(|s| der(&s.root)).collect();
    let federated = federated
        .iter()
        .map(|(id, of)| ((*id).to_owned(), roots(of)));
    X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: name.into(),
            x509_svid: der(&answer[0]),
            x509_svid_key: key.serialize_der(),
            bundle: der(&signer.root),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: federated.collect::<HashMap<_, _>>(),
    }
}

async fn next(watch: &mut CertificateWatch, before: Option<&Arc<Certificate>>) -> Arc<Certificate> {
    let is_new = |held: &Option<Arc<Certificate>>| match (held, before) {
        (Some(held), Some(before)) => !Arc::ptr_eq(held, before),
        (held, _) => held.is_some(),
    };
    let held = tokio::time::timeout(MUST_HAPPEN, watch.wait_for(is_new)).await;
    held.unwrap().unwrap().clone().unwrap()
}

fn domains(bundles: &BundleMapWatch) -> Vec<(String, usize)> {
    let held = bundles.borrow().clone().unwrap();
    let domains = held.bundles.iter();
    domains
        .map(|(domain, roots)| (domain.clone(), roots.len()))
        .collect()
}

#[tokio::test]
async fn an_agent_gives_certificates_and_roots_anew_with_each_rotation_and_after_its_restart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = Agent::default();
    // It may start after us, and may not know us at first.
    let mut held = workload::start(socket.clone(), "ROOTCA".into());
    let serving = agent.serve(&socket);
    let denied = async {
        while agent.refusals.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(MUST_HAPPEN, denied).await.unwrap();
    assert!(held.certificate.borrow().is_none());

    let (ours, partner, next_partner) = (Signer::new(), Signer::new(), Signer::new());
    agent.send(&message(
        &ours,
        NAME,
        &[("spiffe://partner.example", &[&partner])],
    ));
    let mut last = next(&mut held.certificate, None).await;
    assert_eq!(last.spiffe_id, NAME);
    let one_each = [("partner.example".to_owned(), 1), ("t".to_owned(), 1)];
    assert_eq!(domains(&held.bundles), one_each);
    for _ in 0..3 {
        agent.send(&message(
            &ours,
            NAME,
            &[("spiffe://partner.example", &[&partner])],
        ));
        let renewed = next(&mut held.certificate, Some(&last)).await;
        assert_ne!(renewed.key, last.key);
        last = renewed;
    }

    // What cannot be used is not used in part.
    let mut bad = message(&ours, NAME, &[("spiffe://partner.example", &[&partner])]);
    bad.federated_bundles
        .insert("spiffe://Else".into(), der(&partner.root));
    agent.send(&bad);
    let both: &[&Signer] = &[&partner, &next_partner];
    agent.send(&message(&ours, NAME, &[("spiffe://partner.example", both)]));
    let after = next(&mut held.certificate, Some(&last)).await;
    assert_eq!(domains(&held.bundles)[0], ("partner.example".to_owned(), 2));
    assert!(
        held.bundles
            .borrow()
            .as_ref()
            .unwrap()
            .bundles
            .keys()
            .all(|d| d != "Else")
    );

    // The agent goes and comes back with another certificate.
    serving.abort();
    _ = serving.await;
    agent.streams.lock().unwrap().clear();
    std::fs::remove_file(&socket).unwrap();
    assert!(Arc::ptr_eq(
        &after,
        held.certificate.borrow().as_ref().unwrap()
    ));
    agent.send(&message(&ours, NAME, &[]));
    agent.serve(&socket);
    next(&mut held.certificate, Some(&after)).await;
    assert_eq!(
        domains(&held.bundles),
        [("t".to_owned(), 1)],
        "no longer federated"
    );
}

#[test]
fn a_message_is_taken_whole_or_not_at_all() {
    let (ours, other) = (Signer::new(), Signer::new());
    let read = |change: &dyn Fn(&mut X509svidResponse)| {
        let mut message = message(&ours, NAME, &[]);
        change(&mut message);
        workload::read(&"ROOTCA".into(), &message, &Clock::system()).err()
    };
    assert_eq!(read(&|_| {}), None);
    let another = message(&other, NAME, &[]).svids.remove(0);
    type Change<'a> = &'a dyn Fn(&mut X509svidResponse);
    let changes: [(Change<'_>, &str); 8] = [
        (&|m| m.svids.clear(), "no certificate"),
        (&|m| m.svids[0].x509_svid.clear(), "x509_svid: it is empty"),
        (&|m| m.svids[0].x509_svid.push(1), "x509_svid: not X.509"),
        (&|m| m.svids[0].spiffe_id.push('x'), "is that of"),
        (
            &|m| m.svids[0].x509_svid_key.clone_from(&another.x509_svid_key),
            "x509_svid_key",
        ),
        (&|m| m.svids[0].x509_svid_key.clear(), "x509_svid_key"),
        (&|m| m.svids[0].bundle.truncate(9), "bundle of"),
        (
            &|m| _ = m.federated_bundles.insert("spiffe://".into(), Vec::new()),
            "bundle of \"spiffe://\": a trust domain",
        ),
    ];
    for (change, expected) in changes {
        let error = read(change).expect(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Whatever is federated under our name, our own bundle is ours.
    let mut message = message(&ours, NAME, &[("spiffe://t", &[&other])]);
    let (_, map) = workload::read(&"ROOTCA".into(), &message, &Clock::system()).unwrap();
    assert_eq!(map.bundles["t"], [der(&ours.root)]);
    message.svids[0].bundle.clear();
    let (_, map) = workload::read(&"ROOTCA".into(), &message, &Clock::system()).unwrap();
    assert!(map.bundles["t"].is_empty(), "no roots of ours, no trust");
}
