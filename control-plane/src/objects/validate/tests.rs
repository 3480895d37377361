use super::*;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  gatewayClassName: pontoon\n  listeners:\n  - {name: http, port: 8080, protocol: HTTP}\n";

fn route(rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{name: edge}}]\n  rules:\n{rest}"
    )
}

fn report(files: &[(&str, &str)]) -> Report {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    validate(folder.path())
}

fn lines(report: &Report) -> Vec<String> {
    report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_directory_has_nothing_to_say() {
    let shop = route("  - backendRefs: [{name: shop}]\n");
    let report = report(&[("gateway.yaml", GATEWAY), ("route.yaml", &shop)]);
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.to_string(), "2 files, 2 objects: 0 errors, 0 warnings");
}

#[test]
fn of_files_for_a_cluster_not_all_has_to_be_there() {
    let shop =
        route("  - backendRefs: [{name: shop, port: 80, kind: Pool, group: pontoon.dev}]\n    matchez: []\n");
    let foreign = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: shop}\n";
    let mistaken = "apiVersion: pontoon.dev/v1alpha1\nkind: Poool\nmetadata: {name: shop}\n";
    let files = [("a.yaml", shop.as_str()), ("b.yaml", foreign), ("c.yaml", mistaken)];
    assert_eq!(report(&files).errors(), 3);
    let for_cluster = report(&files).for_cluster();
    assert_eq!(for_cluster.errors(), 2, "{for_cluster}");
    let shop = shop.replace("    matchez: []\n", "");
    let for_cluster = report(&[("a.yaml", &shop), ("b.yaml", foreign)]).for_cluster();
    assert_eq!((for_cluster.errors(), for_cluster.problems.len()), (0, 2), "{for_cluster}");
}

#[test]
fn what_the_compiler_refuses_has_file_and_line() {
    let shop = route(
        "  - backendRefs:\n    - {name: inventori, kind: Pool, group: pontoon.dev}\n  - matches:\n    - path: {type: PathPrefix, value: /shop}\n    backendRefs: [{name: shop, namespace: other}]\n  - filters:\n    - type: ExtensionRef\n      extensionRef: {group: a, kind: b, name: c}\n    backendRefs: [{name: shop}]\n",
    )
    .replace("name: edge", "name: edg");
    let pool = "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {name: inventory}\nspec:\n  dns: {name: a, port: 1}\n";
    let tls = GATEWAY.to_owned()
        + "  - {name: mail, port: 8443, protocol: UDP}\n  - {name: again, port: 8080, protocol: HTTP}\n";
    let report = report(&[("gateway.yaml", &tls), ("pool.yaml", pool), ("route.yaml", &shop)]);
    assert_eq!(
        lines(&report),
        [
            "gateway.yaml:7:5: Gateway default/edge: spec.listeners[0].hostname: listener again has the same port and hostname; none of them is served (HostnameConflict)",
            "gateway.yaml:8:30: Gateway default/edge: spec.listeners[1].protocol: \"UDP\": expected HTTP, HTTPS, TLS or TCP; other protocols are not supported (UnsupportedProtocol)",
            "gateway.yaml:9:5: Gateway default/edge: spec.listeners[2].hostname: listener http has the same port and hostname; none of them is served (HostnameConflict)",
            "route.yaml:5:17: HTTPRoute default/shop: spec.parentRefs[0].name: \"edg\": there is no Gateway default/edg; did you mean edge? (NoMatchingParent)",
            "route.yaml:8:8: HTTPRoute default/shop: spec.rules[0].backendRefs[0].name: \"inventori\": there is no Pool default/inventori; did you mean inventory? (BackendNotFound)",
            "route.yaml:11:32: HTTPRoute default/shop: spec.rules[1].backendRefs[0].namespace: \"other\": Service other/shop is in another namespace, and no ReferenceGrant there lets a HTTPRoute of default refer to it (RefNotPermitted)",
            "route.yaml:13:7: HTTPRoute default/shop: spec.rules[2].filters[0].type: \"ExtensionRef\": the filter ExtensionRef is not supported by this version; the rule answers 500 (UnsupportedValue)",
        ]
    );
    assert!(!report.is_ok());
}

#[test]
fn a_migration_that_no_route_uses_is_a_warning() {
    let migration = "apiVersion: pontoon.dev/v1alpha1\nkind: Migration\nmetadata: {name: m}\nspec:\n  service: s\n  legacy: {eureka: {application: s}}\n  target: {eureka: {application: t}}\n";
    let report = report(&[("m.yaml", migration)]);
    assert!(report.is_ok());
    assert!(
        lines(&report)[0].starts_with("m.yaml:5:3: warning: Migration default/m: spec.service"),
        "{report}"
    );
}

#[test]
fn a_secret_that_cannot_be_used_is_said_where_it_is_and_where_it_is_named() {
    let gateway = GATEWAY.to_owned()
        + "  - {name: tls, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}\n";
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: cert}\ntype: kubernetes.io/tls\nstringData: {tls.crt: no, tls.key: no}\n";
    let report = report(&[("gateway.yaml", &gateway), ("secret.yaml", secret)]);
    let why = "the private key is not usable PEM: there is none in it";
    let lines = lines(&report);
    assert_eq!(lines.len(), 2, "{report}");
    assert!(lines[0].starts_with("gateway.yaml:8:"), "{report}");
    assert!(
        lines[0]
            .ends_with(&format!("Secret default/cert cannot be used: data: {why} (InvalidCertificateRef)")),
        "{report}"
    );
    assert!(lines[1].ends_with(&format!("Secret default/cert: data: {why} (invalid_value)")), "{report}");
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    assert!(!validate(Path::new("/does/not/exist")).is_ok());
}
