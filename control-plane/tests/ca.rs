//! The certificate service over a real socket: who gets a certificate, and what it says.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use control_plane::{
    ca::{
        Authority, CaError, CertificateService, Identity, IstioCertificateServiceServer, Tokens,
        create_token,
        proto::{
            IstioCertificateRequest,
            istio_certificate_service_client::IstioCertificateServiceClient,
        },
    },
    metrics::Metrics,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SanType, SignatureAlgorithm, SigningKey};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Server},
};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

const HOUR: Duration = Duration::from_secs(3600);
const GREETER: &str = "spiffe://cluster.local/ns/default/sa/greeter";

struct Kit {
    data: TempDir,
    authority: Arc<Authority>,
    metrics: Metrics,
    client: IstioCertificateServiceClient<Channel>,
}

impl Kit {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(data.path(), "cluster.local", HOUR).unwrap());
        let tokens = Arc::new(Tokens::open(data.path()).unwrap());
        let metrics = Metrics::new();
        let service = CertificateService::new(Arc::clone(&authority), tokens, metrics.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            Server::builder()
                .add_service(IstioCertificateServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
        Self {
            data,
            authority,
            metrics,
            client: IstioCertificateServiceClient::new(channel),
        }
    }

    fn token(&self) -> String {
        create_token(self.data.path(), "default", "greeter", HOUR).unwrap()
    }

    async fn ask(
        &mut self,
        authorization: Option<&str>,
        csr: String,
        validity_duration: i64,
    ) -> Result<Vec<String>, Status> {
        let body = IstioCertificateRequest {
            csr,
            validity_duration,
            metadata: None,
        };
        let mut request = Request::new(body);
        if let Some(value) = authorization {
            request
                .metadata_mut()
                .insert("authorization", value.parse().unwrap());
        }
        let response = self.client.create_certificate(request).await?;
        Ok(response.into_inner().cert_chain)
    }
}

fn csr(key: &impl SigningKey) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

fn unix_now() -> i64 {
    i64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
    .unwrap()
}

/// What a test wants to know of a leaf.
struct Leaf {
    uris: Vec<String>,
    names: usize,
    has_subject: bool,
    is_ca: bool,
    usages: (bool, bool, bool),
    not_before: i64,
    not_after: i64,
    public_key: Vec<u8>,
}

/// Reads the leaf, after checking that the root signed it.
fn read_leaf(chain: &[String]) -> Leaf {
    let pems: Vec<_> = chain
        .iter()
        .map(|pem| parse_x509_pem(pem.as_bytes()).unwrap().1)
        .collect();
    let root = pems.last().unwrap().parse_x509().unwrap();
    let leaf = pems[0].parse_x509().unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let names = &leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    let more = usage.any || usage.code_signing || usage.ocsp_signing || !usage.other.is_empty();
    Leaf {
        uris: uris.collect(),
        names: names.len(),
        has_subject: leaf.subject().iter().next().is_some(),
        is_ca: leaf.is_ca(),
        usages: (usage.client_auth, usage.server_auth, more),
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
        public_key: leaf.public_key().raw.to_vec(),
    }
}

#[tokio::test]
async fn a_token_and_a_csr_give_a_certificate_of_the_tokens_identity() {
    let mut kit = Kit::start().await;
    let bearer = format!("Bearer {}", kit.token());
    let key = KeyPair::generate().unwrap();
    let before = unix_now();
    let chain = kit.ask(Some(&bearer), csr(&key), 600).await.unwrap();
    let after = unix_now();

    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], kit.authority.root_pem());
    let leaf = read_leaf(&chain);
    assert_eq!((leaf.uris, leaf.names), (vec![GREETER.to_owned()], 1));
    assert!(!leaf.is_ca && !leaf.has_subject);
    assert_eq!(leaf.usages, (true, true, false));
    assert_eq!(leaf.public_key, key.subject_public_key_info());
    assert!((before - 60..=after - 60).contains(&leaf.not_before));
    assert!((before + 600..=after + 600).contains(&leaf.not_after));
    assert!(
        kit.metrics
            .encode()
            .contains("citadel_server_success_cert_issuance_count 1")
    );
}

#[tokio::test]
async fn the_life_is_clamped() {
    let mut kit = Kit::start().await;
    let bearer = format!("Bearer {}", kit.token());
    let csr = csr(&KeyPair::generate().unwrap());
    for (asked, given) in [(1, 5), (0, 3600), (i64::MAX, 3600)] {
        let before = unix_now();
        let leaf = read_leaf(&kit.ask(Some(&bearer), csr.clone(), asked).await.unwrap());
        let expected = before + given..=unix_now() + given;
        assert!(expected.contains(&leaf.not_after), "asked for {asked} s");
    }
    let status = kit.ask(Some(&bearer), csr, -1).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn without_a_known_token_nothing_is_signed() {
    let mut kit = Kit::start().await;
    let token = kit.token();
    let csr = csr(&KeyPair::generate().unwrap());
    let (wrong, basic) = (format!("Bearer {}0", token), format!("Basic {token}"));
    for authorization in [
        None,
        Some("Bearer "),
        Some(wrong.as_str()),
        Some(basic.as_str()),
    ] {
        let status = kit.ask(authorization, csr.clone(), 600).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
    }
    assert!(
        kit.metrics
            .encode()
            .contains("citadel_server_authentication_failure_count 4")
    );
}

#[tokio::test]
async fn names_in_the_csr_are_ignored() {
    let mut kit = Kit::start().await;
    let bearer = format!("Bearer {}", kit.token());
    let key = KeyPair::generate().unwrap();
    let mut forged = CertificateParams::new(["admin.example".to_owned()]).unwrap();
    let uri = "spiffe://cluster.local/ns/admin/sa/root"
        .try_into()
        .unwrap();
    forged.subject_alt_names.push(SanType::URI(uri));
    forged
        .distinguished_name
        .push(rcgen::DnType::CommonName, "admin");
    let csr = forged.serialize_request(&key).unwrap().pem().unwrap();
    let leaf = read_leaf(&kit.ask(Some(&bearer), csr, 600).await.unwrap());
    assert_eq!((leaf.uris, leaf.names), (vec![GREETER.to_owned()], 1));
    assert!(!leaf.has_subject);
}

/// Claims one key and signs with another.
struct Thief {
    claimed: KeyPair,
    own: KeyPair,
}

impl PublicKeyData for Thief {
    fn der_bytes(&self) -> &[u8] {
        self.claimed.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.claimed.algorithm()
    }
}

impl SigningKey for Thief {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.own.sign(message)
    }
}

#[tokio::test]
async fn a_csr_that_is_no_proof_of_possession_is_refused() {
    let mut kit = Kit::start().await;
    let bearer = format!("Bearer {}", kit.token());
    let (claimed, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let good = csr(&own);
    let bad = [
        ("stolen key", csr(&Thief { claimed, own })),
        ("empty", String::new()),
        ("not a request", kit.authority.root_pem().to_owned()),
        ("cut", good[..good.len() / 2].to_owned()),
        ("too long", format!("{good}{}", "\n".repeat(16 * 1024))),
    ];
    for (what, csr) in bad {
        let status = kit.ask(Some(&bearer), csr, 600).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}");
    }
    assert!(kit.ask(Some(&bearer), good, 600).await.is_ok());
}

#[test]
fn the_root_is_private_and_used_again() {
    let data = tempfile::tempdir().unwrap();
    let open = || Authority::open(data.path(), "cluster.local", HOUR);
    let first = open().unwrap();
    let dir = data.path().join("ca");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(dir.join("root-key.pem")), mode(dir.clone())),
        (0o600, 0o700)
    );

    let again = open().unwrap();
    assert_eq!(first.root_pem(), again.root_pem());
    let identity = Identity::new("default", "greeter").unwrap();
    let issued = again.issue(&identity, HOUR).unwrap();
    assert_eq!(read_leaf(&issued.chain_pem).uris, [GREETER]);
    let key = KeyPair::from_pem(&issued.key_pem).unwrap();
    assert_eq!(
        read_leaf(&issued.chain_pem).public_key,
        key.subject_public_key_info()
    );
    assert!(!format!("{issued:?}").contains("PRIVATE"));

    // A lost or foreign key must not become a new root unnoticed.
    let foreign = KeyPair::generate().unwrap().serialize_pem();
    fs::write(dir.join("root-key.pem"), foreign).unwrap();
    assert!(matches!(open(), Err(CaError::Corrupt { .. })));
    fs::remove_file(dir.join("root-key.pem")).unwrap();
    assert!(matches!(open(), Err(CaError::Corrupt { .. })));
}
