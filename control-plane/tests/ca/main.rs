//! The certificate service over a real socket: who gets a certificate, and what it says.

mod issuer;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use control_plane::{
    audit::Audit,
    ca::{
        Authority, CaError, Callers, CertificateService, DenyList, Identity, IssuanceLimits,
        IstioCertificateServiceServer, TokenUse, Tokens, create_token, create_token_for,
        proto::{
            IstioCertificateRequest,
            istio_certificate_service_client::IstioCertificateServiceClient,
        },
    },
    metrics::Metrics,
};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType,
    SignatureAlgorithm, SigningKey,
};
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
        Self::start_with(data, authority, IssuanceLimits::default()).await
    }

    async fn start_with(data: TempDir, authority: Arc<Authority>, limits: IssuanceLimits) -> Self {
        let tokens = Tokens::open(data.path()).unwrap();
        let denied = DenyList::open(data.path()).unwrap();
        let audit = Audit::open(&data.path().join("audit.log"));
        let callers = Arc::new(Callers::new(tokens, None, denied).audited(&audit));
        let metrics = Metrics::new();
        let service = CertificateService::new(
            Arc::clone(&authority),
            callers,
            limits,
            metrics.clone(),
            audit,
        );
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
    assert!((before - 600..=after - 600).contains(&leaf.not_before));
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
    for (asked, given) in [(1, 300), (0, 3600), (i64::MAX, 3600)] {
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
        ("not a request", kit.authority.root_pem()),
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

#[tokio::test]
async fn a_one_time_token_gives_one_certificate_and_a_bad_request_does_not_use_it_up() {
    let mut kit = Kit::start().await;
    let greeter = Identity::new("default", "greeter").unwrap();
    let token = create_token_for(kit.data.path(), &greeter, HOUR, TokenUse::Once).unwrap();
    let bearer = format!("Bearer {token}");
    let csr = csr(&KeyPair::generate().unwrap());
    let bad = kit.ask(Some(&bearer), "x".into(), 600).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    kit.ask(Some(&bearer), csr.clone(), 600).await.unwrap();
    let again = kit.ask(Some(&bearer), csr, 600).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("used already"), "{again}");
    assert!(!again.message().contains(&token));
}

#[tokio::test]
async fn whom_the_list_denies_gets_no_certificate() {
    let mut kit = Kit::start().await;
    let bearer = format!("Bearer {}", kit.token());
    let csr = csr(&KeyPair::generate().unwrap());
    kit.ask(Some(&bearer), csr.clone(), 600).await.unwrap();
    fs::write(kit.data.path().join("denied"), "ns/default/sa/greeter\n").unwrap();
    let denied = kit.ask(Some(&bearer), csr, 600).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let text = kit.metrics.encode();
    assert!(text.contains("mesh_control_plane_csr_denied 1"), "{text}");
}

#[tokio::test]
async fn an_identity_that_asks_without_end_is_slowed_down() {
    let data = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(data.path(), "cluster.local", HOUR).unwrap());
    let limits = IssuanceLimits {
        issuances: (0.001, 2.0),
        ..IssuanceLimits::default()
    };
    let mut kit = Kit::start_with(data, authority, limits).await;
    let bearer = format!("Bearer {}", kit.token());
    let csr = csr(&KeyPair::generate().unwrap());
    for _ in 0..2 {
        kit.ask(Some(&bearer), csr.clone(), 600).await.unwrap();
    }
    let limited = kit.ask(Some(&bearer), csr, 600).await.unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted);
}

/// A certificate of an authority, and the key that signs below it.
struct Link {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_pem: String,
}

fn link(name: &str, above: Option<&Link>, days: u64) -> Link {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400)).into();
    let certificate = match above {
        None => params.self_signed(&key),
        Some(above) => params.signed_by(&key, &above.issuer),
    };
    Link {
        pem: certificate.unwrap().pem(),
        key_pem: key.serialize_pem(),
        issuer: Issuer::new(params, key),
    }
}

#[tokio::test]
async fn a_plugged_in_intermediate_signs_and_its_chain_goes_out() {
    let root = link("root", None, 30);
    let upper = link("upper", Some(&root), 20);
    let lower = link("lower", Some(&upper), 1);
    let stranger = link("stranger", None, 30);
    let dir = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let open = || {
        let week = Duration::from_secs(7 * 86_400);
        Authority::plugged_in(data.path(), dir.path(), "cluster.local", week)
    };
    write("ca-key.pem", &lower.key_pem);
    write("ca-cert.pem", &lower.pem);
    write("cert-chain.pem", &(lower.pem.clone() + &upper.pem));
    write("root-cert.pem", &(stranger.pem.clone() + &root.pem));
    let authority = open().unwrap();
    let identity = Identity::new("default", "greeter").unwrap();
    let issued = authority
        .issue(&identity, Duration::from_secs(7 * 86_400))
        .unwrap();
    let left = issued.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(
        left <= Duration::from_secs(86_400),
        "never past what signs it"
    );
    let ders: Vec<_> = issued
        .chain_pem
        .iter()
        .map(|pem| parse_x509_pem(pem.as_bytes()).unwrap().1)
        .collect();
    let chain: Vec<_> = ders.iter().map(|pem| pem.parse_x509().unwrap()).collect();
    let subjects: Vec<_> = chain[1..].iter().map(|c| c.subject().to_string()).collect();
    assert_eq!(subjects[..2], ["CN=lower", "CN=upper"]);
    chain[0]
        .verify_signature(Some(chain[1].public_key()))
        .unwrap();
    assert_eq!(authority.roots().borrow().len(), 2);
    let refused = authority.begin_rotation().unwrap_err().to_string();
    assert!(refused.contains("plugged in"), "{refused}");

    // What does not hold together is refused at the start.
    write("cert-chain.pem", &lower.pem);
    let error = open().unwrap_err().to_string();
    assert!(error.contains("nothing in cert-chain.pem"), "{error}");
    write("cert-chain.pem", &upper.pem);
    write("root-cert.pem", &stranger.pem);
    assert!(open().is_err());
    write("root-cert.pem", &root.pem);
    write("ca-key.pem", &stranger.key_pem);
    let error = open().unwrap_err().to_string();
    assert!(error.contains("not of the key"), "{error}");
    fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
    assert!(open().is_err());
}

/// Bounded, seeded fuzzing: damage is refused, or what is signed still leads to a root.
#[test]
fn damaged_files_of_a_plugged_in_authority_are_refused_or_still_vouch_for_what_they_sign() {
    let rounds = std::env::var("MESH_FUZZ_ROUNDS").ok();
    let rounds: u64 = rounds.map_or(300, |text| text.parse().expect("a number"));
    let root = link("root", None, 30);
    let lower = link("lower", Some(&root), 1);
    let files = [
        ("ca-key.pem", lower.key_pem.clone()),
        ("ca-cert.pem", lower.pem.clone()),
        ("cert-chain.pem", format!("{}{}", lower.pem, root.pem)),
        ("root-cert.pem", root.pem),
    ];
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let identity = Identity::new("default", "greeter").unwrap();
    let mut rng = mesh_core::rng::SplitMix64::new(17);
    let mut below = |bound: usize| {
        use mesh_core::rng::Rng as _;
        (rng.unit() * bound as f64) as usize
    };
    let mut refused = 0;
    for round in 0..rounds {
        let chosen = below(files.len());
        for (at, (name, text)) in files.iter().enumerate() {
            let mut bytes = text.clone().into_bytes();
            if at == chosen {
                let place = below(bytes.len());
                match below(4) {
                    0 => bytes.truncate(place),
                    1 => _ = bytes.remove(place),
                    2 => bytes[place] = b"A-=\n\0"[below(5)],
                    _ => bytes.extend_from_within(place..),
                }
            }
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let Ok(authority) = Authority::plugged_in(data.path(), dir.path(), "cluster.local", HOUR)
        else {
            refused += 1;
            continue;
        };
        let issued = authority.issue(&identity, HOUR).unwrap();
        let ders = issued.chain_pem.iter();
        let ders = ders.map(|pem| parse_x509_pem(pem.as_bytes()).unwrap().1);
        let ders: Vec<_> = ders.collect();
        let chain: Vec<_> = ders.iter().map(|pem| pem.parse_x509().unwrap()).collect();
        for pair in chain.windows(2) {
            let signed = pair[0].verify_signature(Some(pair[1].public_key()));
            assert!(signed.is_ok(), "round {round}");
        }
    }
    assert!(refused * 2 > rounds, "{refused} refused of {rounds}");
}

#[test]
fn a_change_of_roots_goes_on_after_a_restart_and_can_be_turned_back() {
    let data = tempfile::tempdir().unwrap();
    let open = || Authority::open(data.path(), "cluster.local", HOUR).unwrap();
    let identity = Identity::new("default", "greeter").unwrap();
    let signs = |authority: &Authority| {
        let issued = authority.issue(&identity, HOUR).unwrap();
        // The issuing root comes first in the last text; this checks the signature.
        read_leaf(&issued.chain_pem);
        authority.roots().borrow()[0].clone()
    };
    let trusts = |authority: &Authority| authority.roots().borrow().len();

    let authority = open();
    let old = signs(&authority);
    assert!(authority.advance_rotation().is_err(), "nothing is going on");
    authority.begin_rotation().unwrap();
    assert!(authority.begin_rotation().is_err(), "one at a time");
    let authority = open();
    assert_eq!((signs(&authority), trusts(&authority)), (old.clone(), 2));
    authority.advance_rotation().unwrap();
    let ends = authority.rotation().unwrap().leaves_end;
    let leaf_ends = u64::try_from(unix_now()).unwrap() + 3600;
    assert!(
        ends >= leaf_ends - 60,
        "{ends} is before the last leaf's end {leaf_ends}"
    );
    let authority = open();
    let new = signs(&authority);
    assert_ne!(new, old);
    assert_eq!(trusts(&authority), 2);

    authority.abort_rotation().unwrap();
    assert_eq!((signs(&authority), trusts(&authority)), (old, 2));
    authority.abort_rotation().unwrap();
    assert_eq!((signs(&authority), trusts(&authority)), (new.clone(), 2));
    authority.advance_rotation().unwrap();
    let authority = open();
    assert_eq!((signs(&authority), trusts(&authority)), (new.clone(), 1));
    assert!(authority.abort_rotation().is_err(), "the old root is gone");
    authority.advance_rotation().unwrap();
    let authority = open();
    assert_eq!(authority.rotation(), None);
    assert_eq!((signs(&authority), trusts(&authority)), (new.clone(), 1));
    // The first root's key is no more.
    assert!(!data.path().join("ca/root-key.pem").exists());

    authority.begin_rotation().unwrap();
    authority.abort_rotation().unwrap();
    assert_eq!((signs(&authority), trusts(&authority)), (new, 1));
}

/// Everything that is logged in this process, however little it matters.
fn logged() -> &'static std::sync::Mutex<Vec<u8>> {
    use tracing_subscriber::{filter::LevelFilter, fmt};
    static LOG: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    struct Writer;
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LOG.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let builder = fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(|| Writer);
    // Another test of this binary may have been first.
    _ = builder.with_ansi(false).try_init();
    &LOG
}

#[tokio::test]
async fn who_made_used_and_was_refused_a_token_or_a_certificate_is_written_down_and_no_token_is() {
    let mut kit = Kit::start().await;
    let greeter = Identity::new("default", "greeter").unwrap();
    let token = create_token_for(kit.data.path(), &greeter, HOUR, TokenUse::Once).unwrap();
    let wrong = "0123456789".repeat(6);
    let csr = csr(&KeyPair::generate().unwrap());
    let bearer = |token: &str| format!("Bearer {token}");
    let (good, bad) = (bearer(&token), bearer(&wrong));
    kit.ask(Some(&good), csr.clone(), 600).await.unwrap();
    kit.ask(Some(&good), csr.clone(), 600).await.unwrap_err();
    kit.ask(Some(&bad), csr.clone(), 600).await.unwrap_err();
    fs::write(kit.data.path().join("denied"), "ns/default/sa/greeter\n").unwrap();
    let other = bearer(&kit.token());
    kit.ask(Some(&other), csr, 600).await.unwrap_err();
    let text = fs::read_to_string(kit.data.path().join("audit.log")).unwrap();
    for secret in [&token, &wrong, &other["Bearer ".len()..].to_owned()] {
        assert!(!text.contains(&**secret), "a token is in the audit log");
    }
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        // Serial numbers and hashes are others each time; what a token is called is always the same.
        let name = text("object").split(' ').next().unwrap().to_owned();
        let result = text("result").split(':').next().unwrap().to_owned();
        let is_uid = text("principal").starts_with("uid:");
        let principal = if is_uid {
            "uid".to_owned()
        } else {
            text("principal")
        };
        format!("{} {principal} {name} {result}", text("action"))
    });
    let lines: Vec<_> = lines.collect();
    let used = "the join token was used already";
    assert_eq!(
        lines,
        [
            "token.create uid join_token ok".to_owned(),
            "token.use ns/default/sa/greeter join_token ok".to_owned(),
            "certificate.issue ns/default/sa/greeter certificate ok".to_owned(),
            format!("token.use nobody join_token {used}"),
            "certificate.issue nobody certificate unauthenticated".to_owned(),
            "token.use nobody join_token the join token is not known".to_owned(),
            "certificate.issue nobody certificate unauthenticated".to_owned(),
            "token.create uid join_token ok".to_owned(),
            "deny.add uid ns/default/sa/greeter ok".to_owned(),
            "certificate.issue ns/default/sa/greeter certificate denied".to_owned(),
        ]
    );
    let name = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["object"]
            .as_str()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let all: Vec<_> = text.lines().collect();
    assert_eq!((name(all[0]), name(all[0])), (name(all[1]), name(all[3])));
}

#[tokio::test]
async fn no_token_and_no_key_is_logged_and_every_answer_is_audited() {
    let log = logged();
    let mut kit = Kit::start().await;
    let (token, wrong) = (kit.token(), "0123456789".repeat(6));
    let key = KeyPair::generate().unwrap();
    let csr = csr(&key);
    kit.ask(Some(&format!("Bearer {token}")), csr.clone(), 600)
        .await
        .unwrap();
    for (authorization, csr) in [(&wrong, csr), (&token, "x".to_owned())] {
        let authorization = format!("Bearer {authorization}");
        kit.ask(Some(&authorization), csr, 600).await.unwrap_err();
    }
    let text = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    for audited in [
        "certificate issued",
        "key_sha256",
        "result=\"unauthenticated\"",
        "result=\"invalid\"",
    ] {
        assert!(text.contains(audited), "{audited}");
    }
    for secret in [&token, &wrong, &key.serialize_pem()] {
        assert!(!text.contains(secret.trim()), "a secret is in the log");
    }
}
