use super::*;

fn two(app: &str, id: &str) -> (String, String) {
    (app.to_owned(), id.to_owned())
}

#[test]
fn both_prefixes_and_a_slash_at_the_end_mean_the_same() {
    for path in ["/eureka/apps", "/eureka/apps/", "/eureka/v2/apps", "/eureka/v2/apps/", "/eureka//apps"] {
        assert_eq!(of(&Method::GET, path).unwrap(), Operation::Applications, "{path}");
    }
    for path in ["/eureka/apps/delta", "/eureka/v2/apps/delta/"] {
        assert_eq!(of(&Method::GET, path).unwrap(), Operation::Delta, "{path}");
    }
    let batch = of(&Method::POST, "/eureka/peerreplication/batch/").unwrap();
    assert_eq!(batch, Operation::Batch);
}

#[test]
fn names_are_upper_case_and_ids_are_opaque() {
    for (path, app, id) in [
        ("/eureka/apps/probe/192.0.2.2:probe:80", "PROBE", "192.0.2.2:probe:80"),
        ("/eureka/apps/Probe/a%2Fb%20c+d", "PROBE", "a/b c+d"),
        ("/eureka/apps/x/%C3%A4;a=b@%25", "X", "ä;a=b@%"),
    ] {
        let (app, id) = two(app, id);
        assert_eq!(of(&Method::PUT, path).unwrap(), Operation::Renew(app, id), "{path}");
    }
}

#[test]
fn methods_select_the_operation() {
    let (app, id) = two("A", "i");
    for (method, path, operation) in [
        (Method::POST, "/eureka/apps/a", Operation::Register(app.clone())),
        (Method::GET, "/eureka/apps/a", Operation::Application(app.clone())),
        (Method::GET, "/eureka/apps/a/i", Operation::Instance(app.clone(), id.clone())),
        (Method::DELETE, "/eureka/apps/a/i", Operation::Cancel(app.clone(), id.clone())),
        (Method::PUT, "/eureka/apps/a/i/status", Operation::SetOverride(app.clone(), id.clone())),
        (Method::DELETE, "/eureka/apps/a/i/status", Operation::DeleteOverride(app.clone(), id.clone())),
        (Method::PUT, "/eureka/apps/a/i/metadata", Operation::MergeMetadata(app, id.clone())),
        (Method::GET, "/eureka/instances/i", Operation::ById(id)),
        (Method::GET, "/eureka/vips/v", Operation::ByVip { name: "v".to_owned(), secure: false }),
        (Method::GET, "/eureka/svips/v", Operation::ByVip { name: "v".to_owned(), secure: true }),
        (Method::GET, "/eureka/status", Operation::Status),
        (Method::GET, "/eureka/lastn", Operation::Lately),
    ] {
        assert_eq!(of(&method, path).unwrap(), operation, "{method} {path}");
    }
}

#[test]
fn what_is_no_operation_is_refused_with_its_reason() {
    for (method, path, reason) in [
        (Method::GET, "/eureka/nothing", "no_such_path"),
        (Method::GET, "/eureka/apps/a/b/c", "no_such_path"),
        (Method::DELETE, "/eureka/apps", "method"),
        (Method::POST, "/eureka/apps/a/i", "method"),
        (Method::GET, "/eureka/apps/a%00b", "invalid_value"),
        (Method::PUT, "/eureka/apps/a/%FF", "invalid_value"),
        (Method::PUT, "/eureka/apps/a/%0a", "invalid_value"),
    ] {
        assert_eq!(of(&method, path).unwrap_err().reason(), reason, "{method} {path}");
    }
    let long = format!("/eureka/apps/{}", "a".repeat(NAME_BYTES + 1));
    assert_eq!(of(&Method::GET, &long).unwrap_err().reason(), "invalid_value");
}

#[test]
fn queries_are_decoded() {
    let uri: Uri = "/x?a.b=c%20d&value=OUT_OF_SERVICE&lastDirtyTimestamp=1795406683092".parse().unwrap();
    let query = Query::of(&uri);
    assert_eq!(query.0[0], two("a.b", "c d"));
    assert_eq!(query.status().unwrap(), Some(InstanceStatus::OutOfService));
    assert_eq!(query.dirty_ms().unwrap(), Some(1_795_406_683_092));
    assert_eq!(
        Query::of(&"/x?value=nonsense".parse().unwrap()).status().unwrap_err().reason(),
        "invalid_value"
    );
    assert!(Query::of(&"/x?lastDirtyTimestamp=1e3".parse().unwrap()).dirty_ms().is_err());
}
