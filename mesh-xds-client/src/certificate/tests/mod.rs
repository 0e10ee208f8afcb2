//! What answers are accepted, and how the client gets and renews over a real socket.

#[cfg(unix)]
mod files;
mod keep;
mod life;
#[allow(unreachable_pub, reason = "public where the examples share it")]
#[path = "../../../../examples/src/ports.rs"]
mod ports;
#[cfg(unix)]
mod workload;

use std::{
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    SanType,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};

use super::{
    proto::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
    *,
};

const MUST_HAPPEN: Duration = Duration::from_secs(10);

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl Signer {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    fn sign(&self, csr: &str, names: &[&str], life: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let uri = |name: &&str| SanType::URI((*name).try_into().unwrap());
        request.params.subject_alt_names = names.iter().map(uri).collect();
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(1)).into();
        request.params.not_after = (now + life).into();
        vec![
            request.signed_by(&self.issuer).unwrap().pem(),
            self.root.clone(),
        ]
    }
}

const NAME: &str = "spiffe://t/ns/a/sa/b";
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn an_answer_for_our_key_is_accepted_without_the_root() {
    let request = csr::SigningRequest::new().unwrap();
    let answer = Signer::new().sign(&request.pem, &[NAME], HOUR);
    let certificate = request.accept(&answer, SystemTime::now()).unwrap();
    assert_eq!(certificate.spiffe_id, NAME);
    assert_eq!(certificate.chain.len(), 1);
    assert!(certificate.not_after > SystemTime::now());
    let debug = format!("{certificate:?}");
    assert!(!debug.to_lowercase().contains("key"), "{debug}");
}

#[test]
fn other_answers_are_refused() {
    let signer = Signer::new();
    let check = |answer: &dyn Fn(&str) -> Vec<String>, now: SystemTime, expected: &str| {
        let request = csr::SigningRequest::new().unwrap();
        let answer = answer(&request.pem);
        let error = request.accept(&answer, now).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    let now = SystemTime::now();
    let other = csr::SigningRequest::new().unwrap().pem;
    check(&|_| signer.sign(&other, &[NAME], HOUR), now, "another key");
    check(&|_| vec![], now, "no certificate");
    check(&|_| vec!["-----BEGIN CERTIFICATE-----\n*".into()], now, "");
    check(&|csr| signer.sign(csr, &[], HOUR), now, "name");
    check(
        &|csr| signer.sign(csr, &[NAME, "spiffe://t/other"], HOUR),
        now,
        "2 URI names",
    );
    check(
        &|csr| signer.sign(csr, &["https://t/x"], HOUR),
        now,
        "is not a SPIFFE ID",
    );
    check(
        &|csr| signer.sign(csr, &[NAME], HOUR),
        now + 2 * HOUR,
        "has expired",
    );
}

/// Answers with a bad certificate first, then with good ones of two seconds.
struct Service {
    signer: Signer,
    calls: AtomicUsize,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes());
        if token != Some(b"Bearer secret".as_slice()) {
            return Err(Status::unauthenticated("who are you?"));
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let names: &[&str] = if call == 0 { &[] } else { &[NAME] };
        let request = request.into_inner();
        assert_eq!(request.validity_duration, 24 * 60 * 60);
        let cert_chain = self
            .signer
            .sign(&request.csr, names, Duration::from_secs(2));
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[tokio::test]
async fn a_bad_answer_is_retried_and_the_certificate_renewed_before_it_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service {
        signer: Signer::new(),
        calls: AtomicUsize::new(0),
    };
    let server = tonic::transport::Server::builder()
        .add_service(IstioCertificateServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);

    let mut token = tempfile::NamedTempFile::new().unwrap();
    token.write_all(b"secret\n").unwrap();
    let mut config = CertificateConfig::new(ServerUri::parse(&address.to_string()).unwrap());
    config.token_file = Some(token.path().to_path_buf());
    config.backoff_base = Duration::from_millis(5);
    let mut watch = CertificateClient::start(config);

    let mut next = async || {
        tokio::time::timeout(MUST_HAPPEN, watch.changed())
            .await
            .unwrap()
            .unwrap();
        watch.borrow_and_update().clone().unwrap()
    };
    let first = next().await;
    let second = next().await;
    assert_eq!((&*first.spiffe_id, &*second.spiffe_id), (NAME, NAME));
    assert_ne!(
        first.key, second.key,
        "each certificate has a key of its own"
    );
    assert!(SystemTime::now() < first.not_after + Duration::from_secs(1));
}
