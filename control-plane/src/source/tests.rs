//! Places of mistakes, and what stays when something cannot be read.

use std::{fs, time::Duration};

use tokio::time::timeout;

use super::*;

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: shop}
spec: {action: ALLOW}
";

#[test]
fn a_mistake_is_reported_with_file_line_object_and_field() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: greeter
spec:
  hosts: [greeter]
  http:
  - route:
    - destination: {host: greeter}
      weight: ninety
---
kind: Gateway
metadata: {name: g}
";
    let loaded = load_text("mesh.yaml", text);
    assert_eq!(loaded.objects.len(), 1);
    let [weight, kind] = &loaded.diagnostics[..] else {
        panic!("{:?}", loaded.diagnostics)
    };
    let shown = weight.to_string();
    assert!(
        shown.starts_with("mesh.yaml:16: error[MESH0102]: VirtualService default/greeter: "),
        "{shown}"
    );
    assert!(shown.contains("spec.http[0].route[0].weight"), "{shown}");
    assert!(
        kind.to_string()
            .contains("mesh.yaml:18: error[MESH0101]: Gateway default/g"),
        "{kind}"
    );
}

#[test]
fn an_unknown_field_is_an_error_and_a_security_object_closes_its_namespace() {
    let loaded = load_text("p.yaml", &POLICY.replace("action: ALLOW", "actoin: DENY"));
    let codes: Vec<_> = loaded.diagnostics.iter().map(|found| found.code).collect();
    assert_eq!(codes, ["MESH0102", "MESH0106"]);
    let object = loaded.objects.values().next().unwrap();
    assert!(matches!(object.spec, crate::model::Spec::Unreadable(_)));
}

#[tokio::test]
async fn the_last_good_version_stays_and_a_removed_object_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    fs::write(&path, POLICY).unwrap();
    let (_source, mut loaded) = FileSource::open(folder.path(), None).unwrap();
    assert_eq!(loaded.borrow_and_update().objects.len(), 1);
    for (text, objects, findings) in [
        (POLICY.replace("ALLOW", "[ALLOW"), 1, 1),
        (POLICY.replace("action", "actoin"), 1, 1),
        (POLICY.to_owned(), 1, 0),
        (String::new(), 0, 0),
    ] {
        let temporary = folder.path().join("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, &path).unwrap();
        let changed = loaded.wait_for(|loaded| {
            loaded.objects.len() == objects && loaded.diagnostics.len() == findings
        });
        let changed = timeout(Duration::from_secs(10), changed)
            .await
            .expect("noticed")
            .unwrap();
        if findings > 0 {
            let held = changed.objects.values().next().unwrap();
            assert!(matches!(
                held.spec,
                crate::model::Spec::AuthorizationPolicy(_)
            ));
        }
    }
}

#[test]
fn a_misspelt_field_is_an_error_that_names_the_nearest() {
    let service = |spec: &str| {
        format!("kind: VirtualService\nmetadata:\n  name: a\nspec:\n  hosts: [a]\n{spec}")
    };
    for (text, field, line, help) in [
        (
            service("  http:\n  - route:\n    - destination: {host: a}\n      weigth: 1\n"),
            "spec.http[0].route[0].weigth",
            9,
            "did you mean weight?",
        ),
        (
            service("  htpp: []\n"),
            "spec.htpp",
            6,
            "did you mean http?",
        ),
        (
            service("  http:\n  - per_try_timeout: 1s\n"),
            "spec.http[0].per_try_timeout",
            7,
            "docs/config-fields.md lists the fields",
        ),
        (
            service("export_to: []\n"),
            "export_to",
            6,
            "docs/config-fields.md lists the fields",
        ),
        (service("sepc: {}\n"), "sepc", 6, "did you mean spec?"),
    ] {
        let loaded = load_text("a.yaml", &text);
        let [found] = &loaded.diagnostics[..] else {
            panic!("{:?}", loaded.diagnostics)
        };
        assert_eq!(
            (found.code, &*found.field, found.line),
            ("MESH0102", field, line),
            "{text}"
        );
        assert_eq!(found.help, help, "{text}");
        assert!(loaded.objects.is_empty());
    }
    let loaded = load_text("a.yaml", "kind: VirtualSerice\nmetadata: {name: a}\n");
    assert_eq!(loaded.diagnostics[0].help, "did you mean VirtualService?");
}

#[test]
fn a_kind_of_another_group_is_not_ours_and_security_of_one_fails_closed() {
    let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
    let loaded = load_text("a.yaml", text);
    assert_eq!((loaded.diagnostics.len(), loaded.objects.len()), (1, 0));
    assert_eq!(loaded.diagnostics[0].field, "apiVersion");
    let loaded = load_text(
        "a.yaml",
        &POLICY.replace("security.istio.io", "security.istoi.io"),
    );
    let object = loaded.objects.values().next().unwrap();
    assert!(matches!(object.spec, crate::model::Spec::Unreadable(_)));
}

#[test]
fn a_rule_that_cannot_be_used_still_asks_for_mtls() {
    let rule = |mode: &str| {
        format!(
            "kind: DestinationRule\nmetadata: {{name: a}}\nspec:\n  host: a\n  subsets:\n  \
             - {{name: v1, trafficPolicy: {{tunnel: {{}}, tls: {{mode: {mode}}}}}}}\n"
        )
    };
    let loaded = load_text("a.yaml", &rule("SIMPEL"));
    let codes: Vec<_> = loaded.diagnostics.iter().map(|found| found.code).collect();
    assert_eq!(codes, ["MESH0107", "MESH0107", "MESH0106"]);
    let object = loaded.objects.values().next().unwrap();
    let crate::model::Spec::DestinationRule(rule_left) = &object.spec else {
        panic!()
    };
    let policy = rule_left.traffic_policy.as_ref().unwrap();
    assert_eq!(policy.tls.as_ref().unwrap().mode, "ISTIO_MUTUAL");
    assert!(load_text("a.yaml", &rule("DISABLE")).objects.is_empty());
}

#[test]
fn reading_a_folder_is_no_change_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let read = folder.path().join("read.yaml");
    fs::write(&read, "a").unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    let _watcher = file::watch_changes(folder.path(), move |paths| {
        _ = tx.send(paths);
    })
    .unwrap();
    for _ in 0..3 {
        fs::read_dir(folder.path()).unwrap().for_each(drop);
        fs::read(&read).unwrap();
    }
    let written = folder.path().join("written.yaml");
    fs::write(&written, "b").unwrap();
    // Events come in order: those of the reading would be first.
    let limit = Duration::from_secs(20);
    assert_eq!(rx.recv_timeout(limit).unwrap(), [written]);
}
