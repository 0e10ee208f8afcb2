//! What the bootstrap accepts, and how it complains.

use std::io::Write as _;

use super::*;

const FULL: &str = r#"{
  "xds_servers": [{
    "server_uri": "dns:///istiod.local:15010",
    "channel_creds": [{"type": "google_default"}, {"type": "insecure", "config": {}}],
    "server_features": ["xds_v3", {"unknown": 1}]
  }],
  "node": {
    "id": "greeter-1", "cluster": "greeter",
    "metadata": {"GENERATOR": "grpc", "weight": 3},
    "locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"}
  },
  "certificate_providers": {
    "default": {"plugin_name": "mesh_csr", "config": {
      "server_uri": "http://ca:15012", "token_file": "/var/run/token", "trust_bundle": "ROOTS"}},
    "plain": {"plugin_name": "mesh_csr"},
    "files": {"plugin_name": "other_plugin", "config": {"certificate_file": "x"}}
  },
  "server_listener_resource_name_template": "mesh/inbound/%s",
  "unknown_field": [1, 2]
}"#;

#[test]
fn every_field_is_read() {
    let bootstrap = Bootstrap::from_json(FULL).unwrap();
    assert_eq!(bootstrap.servers[0].uri.to_string(), "istiod.local:15010");
    assert_eq!(
        bootstrap.servers[0].uri.http_uri(),
        "http://istiod.local:15010"
    );
    assert!(bootstrap.servers[0].features.contains("xds_v3"));
    assert_eq!(bootstrap.node.id, "greeter-1");
    assert_eq!(bootstrap.node.metadata["GENERATOR"], "grpc");
    assert_eq!(bootstrap.node.locality.sub_zone, "a");
    let expected = MeshCsr {
        server_uri: Some(ServerUri::parse("ca:15012").unwrap()),
        token_file: Some("/var/run/token".into()),
        trust_bundle: "ROOTS".into(),
    };
    assert_eq!(
        bootstrap.certificate_providers["default"],
        CertificateProvider::MeshCsr(expected)
    );
    assert_eq!(
        bootstrap.certificate_providers["plain"].trust_bundle(),
        Some("ROOTCA")
    );
    let config = bootstrap.certificate_config("plain").unwrap();
    assert_eq!(config.server.to_string(), "istiod.local:15010");
}

#[test]
fn an_unknown_plugin_is_an_error_only_when_used() {
    let bootstrap = Bootstrap::from_json(FULL).unwrap();
    let error = bootstrap.certificate_config("files").unwrap_err();
    assert!(error.is_certificate());
    assert!(error.to_string().contains("other_plugin"), "{error}");
    assert!(error.to_string().contains("mesh_csr"), "{error}");
    assert!(bootstrap.certificate_config("none").is_err());
}

#[test]
fn errors_name_the_field() {
    let server = |fields: &str| format!(r#"{{"xds_servers": [{{{fields}}}]}}"#);
    let creds = r#""channel_creds": [{"type": "insecure"}]"#;
    for (text, expected) in [
        ("{".to_owned(), "EOF"),
        ("{}".to_owned(), "xds_servers: at least one"),
        (
            r#"{"xds_servers": {}}"#.to_owned(),
            "xds_servers: invalid type",
        ),
        (server(creds), "xds_servers[0]: missing field `server_uri`"),
        (
            server(r#""server_uri": "a:1""#),
            "xds_servers[0].channel_creds: none of [] is supported; supported are \"insecure\"",
        ),
        (
            server(r#""server_uri": "a:1", "channel_creds": [{"type": "google_default"}]"#),
            "xds_servers[0].channel_creds: none of [\"google_default\"] is supported",
        ),
        (
            server(
                r#""server_uri": "a:1", "channel_creds": [{"type": "tls", "config": {
                "certificate_file": "x"}}]"#,
            ),
            "xds_servers[0].channel_creds[0].config: certificate_file and private_key_file",
        ),
        (
            server(
                r#""server_uri": "a:1", "channel_creds": [{"type": "tls", "config": {
                "spiffe_trust_bundle_map_file": 1}}]"#,
            ),
            "xds_servers[0].channel_creds[0].config.spiffe_trust_bundle_map_file: invalid type",
        ),
        (
            server(
                r#""server_uri": "a:1", "channel_creds": [{"type": "insecure"}], "call_creds":
                [{"type": "jwt_token_file", "config": {"jwt_token_file": "/t"}}]"#,
            ),
            "xds_servers[0].call_creds: a token would travel in the clear to a:1",
        ),
        (
            server(
                r#""server_uri": "unix:/s", "channel_creds": [{"type": "insecure"}], "call_creds":
                [{"type": "jwt_token_file"}]"#,
            ),
            "xds_servers[0].call_creds[0].config.jwt_token_file: is missing",
        ),
        (
            server(&format!(r#""server_uri": "https://a:1", {creds}"#)),
            "xds_servers[0].server_uri: \"https://a:1\" asks for TLS",
        ),
        (
            server(&format!(r#""server_uri": "a", {creds}"#)),
            "xds_servers[0].server_uri: \"a\" is not an address",
        ),
        (
            format!(
                r#"{{"xds_servers": [{{"server_uri": "a:1", {creds}}}],
                "certificate_providers": {{"x": {{"plugin_name": "mesh_csr",
                "config": {{"token_file": 3}}}}}}}}"#
            ),
            "certificate_providers.x.config.token_file: invalid type",
        ),
    ] {
        let error = Bootstrap::from_json(&text).unwrap_err();
        assert!(error.is_bootstrap());
        assert!(
            error.to_string().contains(expected),
            "{error}\n!= {expected}"
        );
    }
}

#[test]
fn the_path_wins_and_does_not_fall_through() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(FULL.as_bytes()).unwrap();
    let path = Some(file.path().to_path_buf());
    let read = |path: Option<PathBuf>, text: Option<&str>| {
        Bootstrap::from_variables(path, text.map(str::to_owned))
    };
    assert_eq!(read(path, Some("not JSON")).unwrap().node.id, "greeter-1");
    assert_eq!(read(None, Some(FULL)).unwrap().node.id, "greeter-1");
    let missing = read(Some("/nowhere/at/all".into()), Some(FULL))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("GRPC_XDS_BOOTSTRAP: /nowhere/at/all: cannot be read"),
        "{missing}"
    );
    let invalid = read(None, Some("[]")).unwrap_err().to_string();
    assert!(invalid.contains("GRPC_XDS_BOOTSTRAP_CONFIG: "), "{invalid}");
    let unset = read(None, None).unwrap_err().to_string();
    assert!(
        unset.contains(PATH_VARIABLE) && unset.contains(CONFIG_VARIABLE),
        "{unset}"
    );
}

#[test]
fn server_uris() {
    for (text, expected) in [
        ("http://10.0.0.1:15010", Some("10.0.0.1:15010")),
        ("http://host:80/", Some("host:80")),
        ("host:80", Some("host:80")),
        ("dns:///host:80", Some("host:80")),
        ("dns:host:80", Some("host:80")),
        ("[::1]:80", Some("[::1]:80")),
        ("unix:/etc/istio/XDS", Some("unix:/etc/istio/XDS")),
        ("unix:///etc/istio/XDS", Some("unix:/etc/istio/XDS")),
        ("host", None),
        ("unix:", None),
        ("http://host", None),
        ("https://host:80", None),
        ("xds:///host:80", None),
        ("http://user@host:80", None),
        ("", None),
    ] {
        let parsed = ServerUri::parse(text).ok().map(|uri| uri.to_string());
        assert_eq!(parsed.as_deref(), expected, "{text}");
    }
    for (text, expected) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("localhost:1", true),
        ("10.0.0.1:1", false),
    ] {
        assert_eq!(
            ServerUri::parse(text).unwrap().is_local(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn listener_names_follow_the_templates() {
    let mut bootstrap = Bootstrap::from_json(FULL).unwrap();
    for target in ["greeter:80", "xds:///greeter:80", "xds:greeter:80"] {
        assert_eq!(bootstrap.client_listener_name(target), "greeter:80");
    }
    bootstrap.client_default_listener_resource_name_template = "xdstp://a/%s?x".into();
    assert_eq!(
        bootstrap.client_listener_name("a b/c%"),
        "xdstp://a/a%20b/c%25?x"
    );
    for (address, expected) in [
        ("10.0.0.1:8080", "mesh/inbound/10.0.0.1:8080"),
        ("[::1]:8080", "mesh/inbound/[::1]:8080"),
    ] {
        let name = bootstrap.server_listener_name(address.parse().unwrap());
        assert_eq!(name.unwrap(), expected);
    }
    bootstrap.server_listener_resource_name_template = None;
    let error = bootstrap
        .server_listener_name("1.1.1.1:1".parse().unwrap())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("server_listener_resource_name_template"),
        "{error}"
    );
}

/// Bounded, seeded fuzzing: no text makes the bootstrap panic, and what is accepted can be used.
#[test]
fn damaged_bootstraps_are_refused_or_usable() {
    use crate::mutate;
    use mesh_core::rng::SplitMix64;
    let text = r#"{
        "xds_servers": [{
            "server_uri": "dns:///cp:15010",
            "channel_creds": [{"type": "google_default"}, {"type": "insecure"}],
            "server_features": ["xds_v3", "fail_on_data_errors"]
        }, {"server_uri": "unix:///run/xds", "channel_creds": [{"type": "insecure"}]}],
        "authorities": {"x": {
            "xds_servers": [{"server_uri": "h:1", "channel_creds": [{"type": "insecure"}]}],
            "client_listener_resource_name_template": "xdstp://x/t/%s"
        }},
        "node": {"id": "me", "metadata": {"a": [1, null, {"b": true}]}, "locality": {"zone": "z"}},
        "certificate_providers": {"default": {"plugin_name": "mesh_csr", "config": {}}},
        "server_listener_resource_name_template": "mesh/inbound/%s",
        "client_default_listener_resource_name_template": "%s"
    }"#;
    Bootstrap::from_json(text).unwrap();
    let mut rng = SplitMix64::new(5);
    let mut usable = 0;
    for round in 0..mutate::rounds(20_000) {
        let damaged = mutate::text(text, &mut rng);
        match Bootstrap::from_json(&damaged) {
            Ok(bootstrap) => {
                usable += 1;
                assert!(!bootstrap.servers.is_empty(), "round {round}");
                let target = mutate::text("xds://x/greeter", &mut rng);
                _ = bootstrap.client_listener_name(&target);
                _ = bootstrap.check_target(&target);
            }
            Err(error) => assert!(error.is_bootstrap(), "round {round}"),
        }
        let uri = mutate::text("dns:///[::1]:15010", &mut rng);
        if let Ok(uri) = ServerUri::parse(&uri) {
            let again = ServerUri::parse(&uri.to_string());
            assert_eq!(again.as_ref(), Ok(&uri), "round {round}");
        }
    }
    assert!(usable > 100, "{usable}");
}

#[test]
fn the_first_known_channel_credentials_count_and_all_known_call_credentials() {
    let text = r#"{"xds_servers": [{
        "server_uri": "https://cp:443",
        "channel_creds": [
            {"type": "google_default"},
            {"type": "tls", "config": {
                "ca_certificate_file": "/ca", "certificate_file": "/cert",
                "private_key_file": "/key", "refresh_interval": "60s"}},
            {"type": "insecure"}
        ],
        "call_creds": [
            {"type": "unknown"},
            {"type": "jwt_token_file", "config": {"jwt_token_file": "/token"}}
        ]
    }]}"#;
    let server = &Bootstrap::from_json(text).unwrap().servers[0];
    assert_eq!(server.uri.to_string(), "cp:443");
    let files = TlsFiles::with_roots("/ca").identity("/cert", "/key");
    assert_eq!(server.channel, ChannelCredentials::Tls(files));
    let token = CallCredentials::JwtTokenFile("/token".into());
    assert_eq!(server.calls, [token]);
}

#[test]
fn certificates_are_asked_for_over_the_same_security_as_resources() {
    let bootstrap = Bootstrap::builder("https://cp:443")
        .tls(TlsFiles::with_roots("/ca"))
        .certificate_provider("default", CertificateProvider::MeshCsr(MeshCsr::default()))
        .build()
        .unwrap();
    let config = bootstrap.certificate_config("default").unwrap();
    assert_eq!(config.channel, bootstrap.servers[0].channel);
}

#[test]
fn a_token_in_code_is_refused_in_the_clear_too() {
    let builder = Bootstrap::builder("cp:1").token_file("/token");
    let error = builder.clone().build().unwrap_err().to_string();
    assert!(error.contains("in the clear"), "{error}");
    builder.tls(TlsFiles::default()).build().unwrap();
    let local = Bootstrap::builder("127.0.0.1:1").token_file("/token");
    local.build().unwrap();
}

#[test]
fn an_authority_says_whether_what_is_known_matters_for_a_fall_back() {
    let text = |value: &str| {
        format!(
            r#"{{"xds_servers": [{{"server_uri": "cp:1", "channel_creds": [{{"type": "insecure"}}]}}],
                "authorities": {{"x": {{"fallback_on_reachability_only": {value}}}, "y": {{}}}}}}"#
        )
    };
    let bootstrap = Bootstrap::from_json(&text("true")).unwrap();
    assert!(bootstrap.authorities["x"].fallback_on_reachability_only);
    assert!(!bootstrap.authorities["y"].fallback_on_reachability_only);
    let error = Bootstrap::from_json(&text("1")).unwrap_err().to_string();
    assert!(
        error.contains("authorities.x.fallback_on_reachability_only"),
        "{error}"
    );
}
