use std::io::Write as _;

use super::*;
use crate::discovery::To;
use crate::dns::Settings;

fn with_file(text: &str, args: Args) -> Result<Bootstrap, BootstrapError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Bootstrap::from_args(Args { config: Some(file.path().to_owned()), ..args })
}

#[test]
fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
    let flags = Args { workers: Some(3), ..Args::default() };
    let bootstrap = with_file("workers: 7\ndrainSeconds: 5\n", flags).unwrap();
    assert_eq!((bootstrap.workers, bootstrap.drain), (3, Duration::from_secs(5)));
    assert_eq!(bootstrap.xds_server.unwrap(), "http://127.0.0.1:18000/");
}

#[test]
fn a_bootstrap_of_envoys_is_known_by_its_fields() {
    let file = "node: {id: a}\nstatic_resources: {clusters: [{name: c}]}\n";
    let bootstrap = with_file(file, Args::default()).unwrap();
    assert_eq!((bootstrap.xds_server, &*bootstrap.node_id), (None, "a"));
    assert_eq!(bootstrap.resources.len(), 1);
    let merged = Args { config_yaml: Some("node: {id: b}".into()), ..Args::default() };
    assert_eq!(with_file(file, merged).unwrap().node_id, "b");
    let own = Args { config_yaml: Some("node: {id: b}".into()), ..Args::default() };
    assert!(with_file("workers: 7\n", own).is_err());
    let sidecar = Args { outbound: Some("127.0.0.1:15001".parse().unwrap()), ..Args::default() };
    assert!(with_file(file, sidecar).unwrap_err().to_string().contains("--outbound"));
}

#[test]
fn an_overload_manager_of_envoys_is_obeyed() {
    let file = "node: {id: a}
overload_manager:
  resource_monitors:
  - name: heap
    typed_config: {'@type': type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 67108864}
  actions:
  - {name: envoy.overload_actions.stop_accepting_requests, triggers: [{name: heap, threshold: {value: 0.98}}]}
";
    let bootstrap = with_file(file, Args::default()).unwrap();
    assert_eq!(bootstrap.max_memory_mib, Some(64));
    assert_eq!(bootstrap.memory_shares, Shares { no_keep_alive: None, shed: Some(980) });
    let flag = Args { max_memory_mib: Some(32), ..Args::default() };
    assert_eq!(with_file(file, flag).unwrap().max_memory_mib, Some(32));
}

#[test]
fn the_variant_is_delta_unless_one_is_named() {
    assert_eq!(Bootstrap::from_args(Args::default()).unwrap().xds_variant, Variant::Delta);
    assert_eq!(with_file("xdsVariant: sotw\n", Args::default()).unwrap().xds_variant, Variant::Sotw);
    let flags = Args { xds_variant: Some(XdsVariant::Delta), ..Args::default() };
    assert_eq!(with_file("xdsVariant: sotw\n", flags).unwrap().xds_variant, Variant::Delta);
    assert!(with_file("xdsVariant: rest\n", Args::default()).is_err());
}

#[test]
fn a_setting_that_does_not_exist_is_named() {
    let error = with_file("worker: 7\n", Args::default()).unwrap_err().to_string();
    assert!(error.contains("worker") && error.contains("1"), "{error}");
}

/// What is said of such a file, without its name.
fn said(text: &str) -> String {
    let error = with_file(text, Args::default()).unwrap_err().to_string();
    let (name, rest) = error.split_once(':').unwrap();
    assert!(Path::new(name).is_absolute(), "{error}");
    rest.to_owned()
}

#[test]
fn a_mistake_in_envoys_bootstrap_has_line_path_value_and_what_would_be_right() {
    let listener = "static_resources:\n  listeners:\n  - name: l\n";
    for (rest, right) in [
        (
            "    address: {socket_address: {address: 127.0.0.1, port_value: 8x}}\n",
            "4:64: static_resources.listeners[0].address.socket_address.port_value: is \"8x\"; must be a whole number of 0 to 4294967295",
        ),
        (
            "    adress: {}\n",
            "4:13: static_resources.listeners[0].adress: is no field of envoy.config.listener.v3.Listener; address is one",
        ),
    ] {
        assert_eq!(said(&format!("{listener}{rest}")), right);
    }
    let broken = said("static_resources:\n  listeners:\n  - name: l\n   address: {}\n");
    assert!(broken.starts_with("4:"), "{broken}");
}

#[test]
fn a_mistake_in_our_own_settings_has_it_too() {
    for (text, right) in [
        (
            "workers: seven\n",
            "1:10: workers: is \"seven\": invalid u64; expected a whole number, not negative",
        ),
        (
            "workers: 2\noutbound: {address: 127.0.0.1}\n",
            "2:21: outbound.address: is \"127.0.0.1\": invalid socket address syntax; expected ADDRESS:PORT, as 127.0.0.1:15000 or '[::1]:15000'",
        ),
        ("workers: 0\n", "1:10: --workers is \"0\": expected 1 to 1024"),
        (
            "inbound:\n- {address: '1.2.3.4:5'}\n",
            "2:13: inbound is \"1.2.3.4:5\": expected one of application and intercepted",
        ),
        ("workers: 3\nworkers: 4\n", "2:1: duplicate mapping key: workers"),
    ] {
        assert_eq!(said(text), right);
    }
    assert!(said("worker: 3\n").starts_with("1:1: unknown field `worker`, expected one of xdsServer"));
}

#[test]
fn what_cannot_be_read_says_why_once() {
    let missing = Args { config: Some("/no/such/file".into()), ..Args::default() };
    let error = anyhow::Error::from(Bootstrap::from_args(missing).unwrap_err());
    let said = format!("{error:#}");
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert!(said.starts_with("cannot read /no/such/file: "), "{said}");
}

#[test]
fn a_resource_that_cannot_be_used_is_found_in_the_file() {
    let text = "static_resources:\n  clusters: [{name: a}]\n  listeners:\n  - name: b\n  - name: c\n    address: {socket_address: {address: x, port_value: 1}}\n";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let problem = Problem::new("LDS \"c\".address.socket_address.address", "is \"x\"");
    let said = placed(Some(file.path()), &problem);
    let right = format!(
        "{}:6:41: static_resources.listeners[1].address.socket_address.address: is \"x\"",
        file.path().display()
    );
    assert_eq!(said, right);
    assert_eq!(placed(None, &problem), problem.to_string());
}

#[test]
fn what_is_intercepted_is_marked_unless_told_otherwise() {
    let file = "outbound: {address: '[::]:15001', intercepted: true, unknown: refuse}
inbound: [{address: '[::]:15006', intercepted: tproxy}]
";
    let bootstrap = with_file(file, Args::default()).unwrap();
    let sidecar = bootstrap.sidecar.unwrap();
    assert_eq!(sidecar.outbound.unwrap().unknown, Unknown::Refuse);
    assert_eq!(sidecar.inbound, [("[::]:15006".parse().unwrap(), To::Transparent)]);
    assert_eq!(bootstrap.mark, Some(1501));
    let unmarked = with_file(file, Args { mark: Some(0), ..Args::default() }).unwrap();
    assert_eq!(unmarked.mark, None);
    let plain = Args { inbound: vec!["[::]:8081=127.0.0.1:8080".parse().unwrap()], ..Args::default() };
    assert_eq!(Bootstrap::from_args(plain).unwrap().mark, None);
}

#[test]
fn dns_alone_makes_a_sidecar_and_must_not_ask_itself() {
    let file = "dns: {addresses: ['127.0.0.1:53'], upstreams: ['10.0.0.1:53'], search: [Corp.Example.], ttlSeconds: 5}";
    let sidecar = with_file(file, Args::default()).unwrap().sidecar.unwrap();
    let dns = sidecar.dns.unwrap();
    assert_eq!((dns.ttl, dns.timeout), (Duration::from_secs(5), Settings::default().timeout));
    assert_eq!((&*sidecar.naming.zone, &*sidecar.naming.search[0]), ("mesh.internal", "corp.example"));
    let upstream = "127.0.0.1:53".parse().unwrap();
    let itself = Args { dns_upstream: vec![upstream], ..Args::default() };
    let error = with_file(file, itself).unwrap_err().to_string();
    assert!(error.contains("where the proxy itself answers"), "{error}");
}

#[test]
fn values_that_cannot_be_used_say_what_could() {
    for (args, expected) in [
        (Args { xds_server: Some("127.0.0.1:18000".into()), ..Args::default() }, "http://HOST:PORT"),
        (Args { outbound_intercepted: true, ..Args::default() }, "--outbound too"),
        (Args { cluster: Some(" ".into()), ..Args::default() }, "--cluster"),
        (Args { node_id: Some(String::new()), ..Args::default() }, "--node-id"),
        (Args { drain_seconds: Some(u64::MAX), ..Args::default() }, "a week"),
        (Args { dns: vec!["0.0.0.0:53".parse().unwrap()], ..Args::default() }, "each address"),
        (
            Args { inbound: vec!["0.0.0.0:8081=127.0.0.1:8081".parse().unwrap()], ..Args::default() },
            "where the proxy does",
        ),
        (Args { workers: Some(0), ..Args::default() }, "1 to 1024"),
        (Args { admin: Some("0.0.0.0:15000".parse().unwrap()), ..Args::default() }, "--admin-anywhere"),
    ] {
        let error = Bootstrap::from_args(args).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
