use super::*;
use crate::objects::{Kind, ObjectName};

/// Files by name; each call of `say` is one look at the directory.
#[derive(Default)]
struct Directory {
    files: BTreeMap<Arc<str>, File>,
    catalogue: Catalogue,
}

impl Directory {
    fn write(&mut self, name: &str, text: &str) -> &mut Self {
        self.files.insert(name.into(), File::Text(text.into()));
        self
    }

    fn remove(&mut self, name: &str) -> &mut Self {
        self.files.remove(name);
        self
    }

    fn look(&mut self) -> Loaded {
        self.catalogue.update(&self.files)
    }
}

fn pool(name: &str, port: u32) -> String {
    format!(
        "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{name: {name}}}\nspec:\n  endpoints:\n  - address: 127.0.0.1\n    port: {port}\n---\n"
    )
}

fn ports(loaded: &Loaded) -> Vec<(String, u16)> {
    let port = |pool: &crate::objects::Pool| pool.spec.endpoints.as_ref().map_or(0, |list| list[0].port);
    loaded.objects.pools.iter().map(|(name, pool)| (name.name.to_string(), port(pool))).collect()
}

fn reasons(loaded: &Loaded) -> Vec<&'static str> {
    loaded.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn a_bad_document_keeps_its_last_good_version_and_leaves_the_others_alone() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &(pool("one", 1) + &pool("two", 2))).look();
    directory.write("a.yaml", &(pool("one", 70000) + &pool("two", 3)));
    let loaded = directory.look();
    assert_eq!(ports(&loaded), [("one".into(), 1), ("two".into(), 3)]);
    assert_eq!(
        loaded.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "a.yaml:1:1: warning: Pool default/one: the last good version stays in force (kept)",
            "a.yaml:7:11: Pool default/one: spec.endpoints[0].port: 70000: expected a whole number from 0 to 65535 (invalid_value)",
        ]
    );
    directory.write("a.yaml", &(pool("one", 4) + &pool("two", 3)));
    let loaded = directory.look();
    assert_eq!(ports(&loaded), [("one".into(), 4), ("two".into(), 3)]);
    assert!(loaded.problems.is_empty());
}

#[test]
fn text_that_is_no_yaml_deletes_nothing() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &(pool("one", 1) + &pool("two", 2))).look();
    directory.write("a.yaml", &(pool("one", 3) + "kind: [oops\n"));
    let loaded = directory.look();
    assert_eq!(ports(&loaded), [("one".into(), 3), ("two".into(), 2)]);
    assert_eq!(reasons(&loaded), ["syntax"]);
}

#[test]
fn a_document_that_does_not_say_whose_it_is_deletes_nothing() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &pool("one", 1)).look();
    let loaded = directory.write("a.yaml", &pool("one", 1).replace("name: one", "nam: one")).look();
    assert_eq!(ports(&loaded), [("one".into(), 1)]);
    assert_eq!(reasons(&loaded), ["missing_field"]);
}

#[test]
fn an_empty_or_unreadable_file_deletes_nothing_a_missing_one_does() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &pool("one", 1)).look();
    let loaded = directory.write("a.yaml", "").look();
    assert_eq!((ports(&loaded).len(), reasons(&loaded)), (1, vec!["empty"]));
    let unusable = File::Unusable { reason: "unreadable", message: "permission denied".into() };
    directory.files.insert("a.yaml".into(), unusable);
    let loaded = directory.look();
    assert_eq!((ports(&loaded).len(), reasons(&loaded)), (1, vec!["unreadable"]));
    let loaded = directory.remove("a.yaml").look();
    assert_eq!((ports(&loaded).len(), reasons(&loaded).len()), (0, 0));
}

#[test]
fn a_document_taken_out_of_a_good_file_is_a_deletion() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &(pool("one", 1) + &pool("two", 2))).look();
    assert_eq!(ports(&directory.write("a.yaml", &pool("two", 2)).look()), [("two".into(), 2)]);
}

#[test]
fn an_empty_file_that_never_held_anything_is_no_problem() {
    assert!(Directory::default().write("a.yaml", "# nothing yet\n").look().problems.is_empty());
}

#[test]
fn of_two_files_with_one_object_the_one_in_force_counts_and_both_are_named() {
    let mut directory = Directory::default();
    directory.write("b.yaml", &pool("one", 1)).look();
    let loaded = directory.write("a.yaml", &pool("one", 2)).look();
    assert_eq!(ports(&loaded), [("one".into(), 1)]);
    assert_eq!(
        loaded.problems[0].to_string(),
        "a.yaml:3:12: Pool default/one: metadata.name: \"one\": Pool default/one is already written in b.yaml:1, which is the one that counts (duplicate)"
    );
    let loaded = directory.remove("b.yaml").look();
    assert_eq!((ports(&loaded), reasons(&loaded).len()), (vec![("one".into(), 2)], 0));
}

#[test]
fn an_object_moves_to_another_file_without_a_gap() {
    let mut directory = Directory::default();
    directory.write("a.yaml", &pool("one", 1)).look();
    let loaded = directory.remove("a.yaml").write("b.yaml", &pool("one", 1)).look();
    assert_eq!(ports(&loaded), [("one".into(), 1)]);
    let reference = ObjectRef { kind: Kind::Pool, name: ObjectName::new("default", "one") };
    assert_eq!(loaded.file_of(&reference).map(|file| &**file), Some("b.yaml"));
}

#[test]
fn an_object_that_says_the_same_keeps_its_identity() {
    let mut directory = Directory::default();
    let name = ObjectName::new("default", "one");
    let before = directory.write("a.yaml", &pool("one", 1)).look().objects.pools[&name].clone();
    let text = format!("# a comment\n{}", pool("one", 1));
    let after = directory.write("a.yaml", &text).look().objects.pools[&name].clone();
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn kinds_of_others_are_refused_without_suspicion() {
    let mut directory = Directory::default();
    let foreign = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n";
    directory.write("a.yaml", &(pool("one", 1) + foreign)).look();
    let loaded = directory.write("a.yaml", foreign).look();
    assert_eq!((ports(&loaded).len(), reasons(&loaded)), (0, vec!["unsupported_kind"]));
}

#[test]
fn a_misspelt_kind_and_a_wrong_version_say_what_was_meant() {
    let mut directory = Directory::default();
    let text =
        pool("one", 1).replace("kind: Pool", "kind: Poool") + &pool("two", 2).replace("v1alpha1", "v1");
    let messages = directory.write("a.yaml", &text).look();
    let messages = messages.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        messages,
        [
            "a.yaml:2:1: kind: \"Poool\": objects of kind Poool (pontoon.dev/v1alpha1) are not read here; did you mean Pool? (unsupported_kind)",
            "a.yaml:9:1: apiVersion: \"pontoon.dev/v1\": expected pontoon.dev/v1alpha1 for a Pool (unsupported_version)",
        ]
    );
}

#[test]
fn what_a_type_cannot_say_is_checked() {
    let text = "apiVersion: pontoon.dev/v1alpha1\nkind: Migration\nmetadata: {name: m}\nspec:\n  service: s\n  legacy: {eureka: {application: inventory}}\n  target: {eureka: {application: INVENTORY}}\n  key: {header: a, cookie: {name: b}}\n  canary:\n  - header: {name: x-user, regex: '('}\n  - cookie: {name: a b, value: 'x;y'}\n  weight: 10001\n";
    let loaded = Directory::default().write("a.yaml", text).look();
    let found = loaded.problems.iter().map(|p| {
        let at = p.at.expect("a place");
        (at.line, p.field.clone(), p.reason)
    });
    assert_eq!(
        found.collect::<Vec<_>>(),
        [
            (7, "spec.target".to_owned(), "same_as_legacy"),
            (8, "spec.key".to_owned(), "one_of"),
            (10, "spec.canary[0].header.regex".to_owned(), "invalid_value"),
            (11, "spec.canary[1].cookie.name".to_owned(), "invalid_value"),
            (11, "spec.canary[1].cookie.value".to_owned(), "invalid_value"),
            (12, "spec.weight".to_owned(), "invalid_value"),
        ]
    );
}

/// What an API server would not let in does not take the place of what is served.
#[test]
fn a_gateway_or_route_that_no_version_could_serve_keeps_its_last_good_version() {
    let good = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  gatewayClassName: pontoon\n  listeners: [{name: http, port: 8080, protocol: HTTP, hostname: a.example.com}]\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n  hostnames: [a.example.com]\n  parentRefs: [{name: edge}]\n  rules:\n  - matches: [{path: {value: /shop}, headers: [{name: x, value: a.*, type: RegularExpression}]}]\n    timeouts: {request: 5s}\n    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301}}]\n    backendRefs: [{name: shop, weight: 1}]\n";
    let mut directory = Directory::default();
    let before = directory.write("a.yaml", good).look();
    assert!(before.problems.is_empty(), "{:?}", before.problems);
    for (right, wrong, field) in [
        ("port: 8080", "port: 80800", "spec.listeners[0].port"),
        ("hostname: a.example.com", "hostname: a.example.com:80", "spec.listeners[0].hostname"),
        ("[a.example.com]", "[10.0.0.1]", "spec.hostnames[0]"),
        ("/shop", "shop", "spec.rules[0].matches[0].path.value"),
        ("a.*,", "'(',", "spec.rules[0].matches[0].headers[0].value"),
        ("request: 5s", "request: 5", "spec.rules[0].timeouts.request"),
        ("request: 5s", "request: 5 s", "spec.rules[0].timeouts.request"),
        ("statusCode: 301", "statusCode: 300", "spec.rules[0].filters[0].requestRedirect.statusCode"),
        ("weight: 1", "weight: -1", "spec.rules[0].backendRefs[0].weight"),
    ] {
        let after = directory.write("a.yaml", &good.replace(right, wrong)).look();
        assert_eq!(after.objects, before.objects, "{wrong}");
        let fields =
            after.problems.iter().filter(|p| p.severity == Severity::Error).map(|p| p.field.as_str());
        assert_eq!(fields.collect::<Vec<_>>(), [field], "{wrong}");
        assert!(after.problems.iter().any(|p| p.reason == "kept"), "{wrong}");
    }
}

#[test]
fn why_a_secret_cannot_be_used_is_known_to_those_that_refer_to_it() {
    let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    let secret = |crt: &str| {
        let data = serde_json::json!({ "tls.crt": crt, "tls.key": signed.signing_key.serialize_pem() });
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert}}\ntype: kubernetes.io/tls\nstringData: {data}\n"
        )
    };
    let name = ObjectName::new("default", "cert");
    let why = |loaded: &Loaded| {
        let objects = &loaded.objects;
        (objects.secrets.contains_key(&name), objects.why_refused(Kind::Secret, &name).map(str::to_owned))
    };
    let mut directory = Directory::default();
    let refused = (false, Some("data: the certificate chain has no certificate".to_owned()));
    assert_eq!(why(&directory.write("a.yaml", &secret("no certificate")).look()), refused);
    assert_eq!(why(&directory.write("a.yaml", &secret(&signed.cert.pem())).look()), (true, None));
    let kept = directory.write("a.yaml", &secret("no certificate")).look();
    assert_eq!(why(&kept), (true, refused.1));
    assert!(Arc::ptr_eq(&kept.objects, &directory.look().objects));
    assert_eq!(why(&directory.remove("a.yaml").look()), (false, None));
}
