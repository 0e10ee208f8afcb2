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
    assert!(matches!(object.spec, crate::model::Spec::Unreadable));
}

#[tokio::test]
async fn the_last_good_version_stays_and_a_removed_object_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    fs::write(&path, POLICY).unwrap();
    let (_source, mut loaded) = FileSource::open(folder.path()).unwrap();
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
