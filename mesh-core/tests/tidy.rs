//! The rules of the house that a compiler does not check.

use std::{
    fs,
    path::{Path, PathBuf},
};

const CRATES: [&str; 7] = [
    "mesh-core",
    "mesh-xds-client",
    "mesh-tower",
    "mesh-tonic",
    "control-plane",
    "examples",
    "benches",
];

/// Which crates of ours each may use outside of its tests.
const MAY_USE: [(&str, &[&str]); 5] = [
    ("mesh-core", &[]),
    ("mesh-xds-client", &["mesh-core"]),
    ("mesh-tower", &["mesh-core", "mesh-xds-client"]),
    ("mesh-tonic", &["mesh-core", "mesh-tower"]),
    ("control-plane", &["mesh-core"]),
];

/// What decides without I/O does not need these.
const NOT_IN_CORE: [&str; 7] = [
    "prost",
    "tonic",
    "hyper",
    "hyper-util",
    "rustls",
    "axum",
    "h2",
];

/// Where mesh-tower may know the xDS client.
const XDS_ROOMS: [&str; 5] = [
    "mesh-tower/src/authorization.rs",
    "mesh-tower/src/mesh/",
    "mesh-tower/src/mesh_services.rs",
    "mesh-tower/src/orca.rs",
    "mesh-tower/src/registration.rs",
];

/// Where xDS protobuf types may appear.
const PROTOBUF_ROOMS: [&str; 13] = [
    "mesh-xds-client/src/check/",
    "mesh-xds-client/src/resource",
    "mesh-xds-client/src/ads",
    "mesh-xds-client/src/transport",
    "mesh-xds-client/src/driver.rs",
    "mesh-xds-client/tests",
    "control-plane/src/encode",
    "control-plane/src/cache",
    "control-plane/src/server",
    "control-plane/src/run.rs",
    "control-plane/tests",
    "mesh-tonic/tests",
    "benches/src/big",
];

/// Longest file, in lines.
const LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace")
        .to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source by its path from the root, with its text.
fn all_sources() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for name in CRATES {
        for folder in ["src", "tests", "benches", "quickstart"] {
            sources(&root.join(name).join(folder), &mut found);
        }
    }
    assert!(found.len() > 50, "the scan finds the sources");
    let relative = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a readable file");
        let path = path.strip_prefix(&root).expect("a file below the root");
        (path.to_string_lossy().into_owned(), text)
    };
    found.into_iter().map(relative).collect()
}

/// The names under a header of a manifest.
fn section(manifest: &str, header: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != header).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_use_only_what_is_below_them() {
    for (name, allowed) in MAY_USE {
        let manifest =
            fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
        for dependency in section(&manifest, "[dependencies]") {
            if CRATES.contains(&dependency.as_str()) {
                assert!(
                    allowed.contains(&dependency.as_str()),
                    "{name} uses {dependency}"
                );
            }
            let is_refused = name == "mesh-core" && NOT_IN_CORE.contains(&dependency.as_str());
            assert!(!is_refused, "{name} uses {dependency}");
        }
    }
}

#[test]
fn what_belongs_in_one_room_stays_there() {
    for (path, text) in all_sources() {
        let is_room = || XDS_ROOMS.iter().any(|room| path.starts_with(room));
        if path.starts_with("mesh-tower/src") && !is_room() {
            assert!(
                !text.contains("mesh_xds_client"),
                "{path} knows the xDS client"
            );
        }
        if text.contains(concat!("envoy_", "types::")) {
            let known = PROTOBUF_ROOMS.iter().any(|room| path.starts_with(room));
            assert!(known, "{path} uses xDS protobuf types");
        }
    }
}

#[test]
fn code_that_the_compiler_cannot_check_is_in_two_files() {
    let is_unsafe = |line: &&str| {
        line.contains(concat!("uns", "afe {")) || line.contains(concat!("uns", "afe_code)]"))
    };
    let known = ["mesh-core/src/rcu/barrier.rs", "mesh-core/src/rcu/cell.rs"];
    for (path, text) in all_sources() {
        let found = text.lines().find(is_unsafe);
        assert!(
            found.is_none() || known.contains(&path.as_str()),
            "{path}: {found:?}"
        );
    }
}

#[test]
fn every_file_says_what_it_is_for_and_leaves_nothing_undone() {
    let words = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
    ];
    for (path, text) in all_sources() {
        assert!(
            text.starts_with("//!"),
            "{path} does not begin with its page"
        );
        for word in words {
            assert!(!text.contains(word), "{path} contains {word}");
        }
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{path} has {lines} lines");
    }
}

#[test]
fn both_ends_of_a_registration_speak_of_the_same() {
    let of = |name: &str| {
        let path = format!("{name}/proto/mesh/registry/v1/registry.proto");
        fs::read_to_string(root().join(path)).expect("a protocol")
    };
    assert_eq!(of("mesh-xds-client"), of("control-plane"));
}

#[test]
fn every_dependency_is_explained() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let decisions = fs::read_to_string(root().join("docs/decisions.md")).expect("the decisions");
    let rows = decisions.lines().filter(|line| line.starts_with('|'));
    let explained: Vec<_> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .collect();
    for dependency in section(&manifest, "[workspace.dependencies]") {
        assert!(
            explained.contains(&dependency.as_str()),
            "docs/decisions.md lacks {dependency}"
        );
    }
}

#[test]
fn the_tests_that_the_page_of_routing_names_exist() {
    let page = fs::read_to_string(root().join("docs/routing.md")).expect("a page");
    let sources = all_sources();
    let named = page.lines().filter(|line| line.starts_with('|'));
    let named = named.flat_map(|line| line.split('`').skip(1).step_by(2));
    let mut count = 0;
    for (module, test) in named.filter_map(|name| name.split_once("::")) {
        let file = format!("/{module}.rs");
        let function = format!("fn {test}()");
        let mut files = sources.iter().filter(|(path, _)| path.ends_with(&file));
        let exists = files.any(|(_, text)| text.contains(&function));
        assert!(
            exists,
            "docs/routing.md names {module}::{test}, which is not there"
        );
        count += 1;
    }
    assert!(count > 20, "the scan finds the names");
}
