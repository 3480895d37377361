//! What is served of gateways whose proxies run in pods of their own, with what is not as it should be.

use super::*;

/// The objects of a manifest.
fn objects_of(manifest: &str) -> Objects {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let loaded = crate::objects::load(&file).expect("the file");
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    (*loaded.objects).clone()
}

fn compiled(manifest: &str) -> Compiled {
    compile(&Model { objects: Arc::new(objects_of(manifest)), in_pods: true, ..Model::default() })
}

/// Of each condition its type, its status and its reason.
fn said(conditions: &[standing::Said]) -> Vec<(&str, bool, &str)> {
    conditions.iter().map(|said| (said.kind, said.status, said.reason)).collect()
}

#[test]
fn what_its_pods_are_made_with_does_not_stop_those_that_serve() {
    let edge = ObjectName::new("default", "edge");
    let of = |infrastructure: &str| {
        compiled(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: pontoon
  listeners: [{{name: http, port: 80, protocol: HTTP}}]
  {infrastructure}
"
        ))
    };
    let well = of("");
    let served = |compiled: &Compiled| {
        compiled.views["default/edge"].get(ResourceType::Listener, "default/edge/http").cloned()
    };
    assert!(served(&well).is_some());
    assert_eq!(well.standings.ports[&edge], BTreeSet::from([80]));
    let gone = "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: gone}}";
    let named = "addresses: [{type: Hostname, value: edge.example}]";
    for (infrastructure, reason) in [(gone, "InvalidParameters"), (named, "UnsupportedAddress")] {
        let compiled = of(infrastructure);
        assert_eq!(served(&compiled), served(&well), "{infrastructure}");
        let refused = [("Accepted", false, reason), ("Programmed", false, reason)];
        assert_eq!(said(&compiled.standings.gateways[&edge].conditions), refused);
        // Nothing is made, and nothing that is there is changed.
        assert_eq!(compiled.standings.ports.get(&edge), None);
    }
}
