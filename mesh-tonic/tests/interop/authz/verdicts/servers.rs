//! The three servers of each row.

use std::{fs, net::SocketAddr, path::Path, process::Stdio};

use control_plane::compile::Compiled;
use envoy_types::pb::envoy::{
    config::{
        core::v3::{DataSource, TransportSocket, data_source::Specifier, transport_socket},
        listener::v3::Listener as ProtoListener,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, DownstreamTlsContext, TlsCertificate,
        common_tls_context::ValidationContextType,
    },
};
use mesh_examples::ports::free_address;
use mesh_tower::server::{InboundState, Server};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::Child,
    sync::watch,
    time::timeout,
};

use super::{
    super::{for_envoy, inbound, proxy},
    SERVES,
    caller::Authority,
    rows::Row,
};
use crate::{World, python_of, routes::any};

pub(super) type Address = SocketAddr;

/// What the servers call themselves.
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/api";

/// A server that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    Envoy,
    Grpc,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Ours, Self::Envoy, Self::Grpc];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Envoy => "Envoy",
            Self::Grpc => "gRPC",
        }
    }
}

/// Servers for all rows, one of each kind, that do not run yet.
pub(super) struct Servers {
    addresses: Vec<Vec<Address>>,
}

/// The servers; they end when this is dropped.
pub(super) struct Running {
    /// Of each row, in order of [`Kind::ALL`].
    pub(super) addresses: Vec<Vec<Address>>,
    _envoy: Child,
    _grpc: [Child; 2],
    _world: World,
    _folder: TempDir,
}

impl Servers {
    pub(super) fn new(rows: usize) -> Self {
        let row = |_| Kind::ALL.iter().map(|_| free_address().unwrap()).collect();
        Self {
            addresses: (0..rows).map(row).collect(),
        }
    }

    pub(super) fn addresses(&self) -> &[Vec<Address>] {
        &self.addresses
    }

    pub(super) async fn start(
        self,
        rows: &[Row],
        objects: &str,
        compiled: &Compiled,
        authority: &Authority,
    ) -> Running {
        let addresses = self.addresses;
        let folder = tempfile::tempdir().unwrap();
        let pair = authority.issue(SERVER);
        for (file, text) in [
            ("cert-chain.pem", &pair.chain),
            ("key.pem", &pair.key),
            ("root-cert.pem", &authority.root_pem()),
            ("no-secret.yaml", &"resources: []\n".to_owned()),
        ] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let listener = |address: Address| {
            compiled.inbound_listener("inbound", address, "default", &Default::default())
        };
        let mut for_envoys = Vec::new();
        let mut for_grpc = [Vec::new(), Vec::new()];
        for (row, addresses) in rows.iter().zip(&addresses) {
            for (kind, &address) in Kind::ALL.into_iter().zip(addresses) {
                match kind {
                    Kind::Ours => {
                        let socket = TcpListener::bind(address).await.unwrap();
                        serve(&listener(address), row, socket, authority);
                    }
                    Kind::Envoy => {
                        let listener = for_envoy(&listener(address));
                        for_envoys.push(with_files(listener, row, folder.path()));
                    }
                    Kind::Grpc => for_grpc[usize::from(!row.has_certificate)].push(address),
                }
            }
        }
        let last = addresses[addresses.len() - 1][1];
        let envoy = proxy::envoy(folder.path(), for_envoys, last).await;
        let world = World::start().await;
        world.write("table.yaml", objects);
        let [with, without] = for_grpc;
        let grpc = [
            grpc(&world, &with, Some(folder.path())).await,
            grpc(&world, &without, None).await,
        ];
        Running {
            addresses,
            _envoy: envoy,
            _grpc: grpc,
            _world: world,
            _folder: folder,
        }
    }
}

/// Our server; it answers everything.
fn serve(
    listener: &mesh_core::config::Listener,
    row: &Row,
    socket: TcpListener,
    authority: &Authority,
) {
    let state = InboundState::Ready(std::sync::Arc::new(inbound(listener).clone()));
    let (keep, state) = watch::channel(state);
    let mut server = Server::builder(state);
    if row.has_certificate {
        server = server.identity(authority.identity(SERVER));
    }
    let application = axum::Router::new().fallback(async || "");
    tokio::spawn(async move {
        let _keep = keep;
        let server = server.build();
        server
            .serve(socket, application, std::future::pending())
            .await
    });
}

/// A gRPC server of the C-core, which gets its listeners from the control plane.
async fn grpc(world: &World, addresses: &[Address], certificates: Option<&Path>) -> Child {
    let node = match certificates {
        Some(_) => "grpc",
        None => "grpc-without-certificate",
    };
    let arguments = addresses.iter().map(ToString::to_string);
    let mut server = python_of(
        &[world.xds_addr()],
        node,
        certificates,
        "grpc_any_server.py",
    )
    .await
    .env("GRPC_VERBOSITY", "NONE")
    .args(arguments)
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = timeout(SERVES, lines.next_line()).await.expect("it serves");
    assert_eq!(line.unwrap().as_deref(), Some("serving"));
    server
}

/// The listener with certificates of files, as Envoy has no control plane here.
fn with_files(mut listener: ProtoListener, row: &Row, folder: &Path) -> ProtoListener {
    for chain in &mut listener.filter_chains {
        let Some(TransportSocket {
            config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
            ..
        }) = &mut chain.transport_socket
        else {
            continue;
        };
        let mut context = DownstreamTlsContext::decode(&*config.value).unwrap();
        let common = context.common_tls_context.as_mut().unwrap();
        let file = |name: &str| {
            Some(DataSource {
                specifier: Some(Specifier::Filename(
                    folder.join(name).to_str().unwrap().to_owned(),
                )),
                ..DataSource::default()
            })
        };
        if row.has_certificate {
            common.tls_certificate_sds_secret_configs.clear();
            common.tls_certificates = vec![TlsCertificate {
                certificate_chain: file("cert-chain.pem"),
                private_key: file("key.pem"),
                ..TlsCertificate::default()
            }];
        } else {
            for secret in &mut common.tls_certificate_sds_secret_configs {
                secret.sds_config = Some(proxy::source_of_file(&folder.join("no-secret.yaml")));
            }
        }
        let held = match common.validation_context_type.take() {
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                combined.default_validation_context.unwrap_or_default()
            }
            other => panic!("{other:?}"),
        };
        let validation = CertificateValidationContext {
            trusted_ca: file("root-cert.pem"),
            ..held
        };
        common.validation_context_type = Some(ValidationContextType::ValidationContext(validation));
        *config = any(&context);
    }
    listener
}
