use super::*;
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::instance::InstanceStatus;
use crate::registry::eureka::instance::{Action, DataCenter, LeaseInfo, Port, Urls};

/// What a legacy client (Hoxton, Jersey 1) sends.
const LEGACY: &str = r#"{"instance":{"instanceId":"192.0.2.2:inventory:28082","hostName":"localhost","app":"INVENTORY","ipAddr":"192.0.2.2","status":"UP","overriddenStatus":"UNKNOWN","port":{"$":28082,"@enabled":"true"},"securePort":{"$":443,"@enabled":"false"},"countryId":1,"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":0,"lastRenewalTimestamp":0,"evictionTimestamp":0,"serviceUpTimestamp":0},"metadata":{"management.port":"28082","lab":"legacy","version":"1"},"homePageUrl":"http://localhost:28082/","statusPageUrl":"http://localhost:28082/actuator/info","healthCheckUrl":"http://localhost:28082/actuator/health","vipAddress":"inventory","secureVipAddress":"inventory","isCoordinatingDiscoveryServer":"false","lastUpdatedTimestamp":"1795406692770","lastDirtyTimestamp":"1795406698506"}}"#;

/// What a modern client (2025.0) sends.
const MODERN: &str = r#"{"instance":{"instanceId":"192.0.2.2:inventory:18082","app":"INVENTORY","appGroupName":null,"ipAddr":"192.0.2.2","sid":"na","homePageUrl":"http://localhost:18082/","statusPageUrl":"http://localhost:18082/actuator/info","healthCheckUrl":"http://localhost:18082/actuator/health","secureHealthCheckUrl":null,"vipAddress":"inventory","secureVipAddress":"inventory","countryId":1,"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"hostName":"localhost","status":"UP","overriddenStatus":"UNKNOWN","leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":0,"lastRenewalTimestamp":0,"evictionTimestamp":0,"serviceUpTimestamp":0},"isCoordinatingDiscoveryServer":false,"lastUpdatedTimestamp":1795406679706,"lastDirtyTimestamp":1795406683092,"actionType":null,"asgName":null,"port":{"$":18082,"@enabled":"true"},"securePort":{"$":443,"@enabled":"false"},"metadata":{"management.port":"18082","lab":"modern","version":"1"}}}"#;

/// How a real server shows the modern one. Metadata is in our order: a map has none.
const SERVED: &str = r#"{"applications":{"versions__delta":"1","apps__hashcode":"UP_1_","application":[{"name":"INVENTORY","instance":[{"instanceId":"192.0.2.2:inventory:18082","hostName":"localhost","app":"INVENTORY","ipAddr":"192.0.2.2","status":"UP","overriddenStatus":"UNKNOWN","port":{"$":18082,"@enabled":"true"},"securePort":{"$":443,"@enabled":"false"},"countryId":1,"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90,"registrationTimestamp":1795406683997,"lastRenewalTimestamp":1795406683997,"evictionTimestamp":0,"serviceUpTimestamp":1795406683997},"metadata":{"lab":"modern","management.port":"18082","version":"1"},"homePageUrl":"http://localhost:18082/","statusPageUrl":"http://localhost:18082/actuator/info","healthCheckUrl":"http://localhost:18082/actuator/health","vipAddress":"inventory","secureVipAddress":"inventory","isCoordinatingDiscoveryServer":"false","lastUpdatedTimestamp":"1795406683997","lastDirtyTimestamp":"1795406683092","actionType":"ADDED"}]}]}}"#;

const SERVED_XML: &str = r#"<applications><versions__delta>1</versions__delta><apps__hashcode>UP_1_</apps__hashcode><application><name>INVENTORY</name><instance><instanceId>192.0.2.2:inventory:18082</instanceId><hostName>localhost</hostName><app>INVENTORY</app><ipAddr>192.0.2.2</ipAddr><status>UP</status><overriddenstatus>UNKNOWN</overriddenstatus><port enabled="true">18082</port><securePort enabled="false">443</securePort><countryId>1</countryId><dataCenterInfo class="com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"><name>MyOwn</name></dataCenterInfo><leaseInfo><renewalIntervalInSecs>30</renewalIntervalInSecs><durationInSecs>90</durationInSecs><registrationTimestamp>1795406683997</registrationTimestamp><lastRenewalTimestamp>1795406683997</lastRenewalTimestamp><evictionTimestamp>0</evictionTimestamp><serviceUpTimestamp>1795406683997</serviceUpTimestamp></leaseInfo><metadata><lab>modern</lab><management.port>18082</management.port><version>1</version></metadata><homePageUrl>http://localhost:18082/</homePageUrl><statusPageUrl>http://localhost:18082/actuator/info</statusPageUrl><healthCheckUrl>http://localhost:18082/actuator/health</healthCheckUrl><vipAddress>inventory</vipAddress><secureVipAddress>inventory</secureVipAddress><isCoordinatingDiscoveryServer>false</isCoordinatingDiscoveryServer><lastUpdatedTimestamp>1795406683997</lastUpdatedTimestamp><lastDirtyTimestamp>1795406683092</lastDirtyTimestamp><actionType>ADDED</actionType></instance></application></applications>"#;

fn listing() -> Listing {
    let mut info = json::read_instance(MODERN.as_bytes()).unwrap();
    let at_ms = 1_795_406_683_997;
    info.lease = LeaseInfo { registration_ms: at_ms, service_up_ms: at_ms, ..info.lease };
    info.last_updated_ms = at_ms;
    let listed = Listed { info: Arc::new(info), last_renewal_ms: at_ms };
    let application = ListedApplication { name: "INVENTORY".into(), instances: vec![listed] };
    Listing { version: "1".to_owned(), hash: "UP_1_".to_owned(), applications: vec![application] }
}

#[test]
fn both_generations_registrations_are_read() {
    let legacy = json::read_instance(LEGACY.as_bytes()).unwrap();
    assert_eq!(&*legacy.id, "192.0.2.2:inventory:28082");
    assert_eq!(legacy.port, Port { number: 28082, enabled: true });
    assert_eq!(legacy.secure_port, Port { number: 443, enabled: false });
    assert_eq!(legacy.last_dirty_ms, 1_795_406_698_506);
    assert_eq!(legacy.metadata["management.port"], "28082");
    let modern = json::read_instance(MODERN.as_bytes()).unwrap();
    assert_eq!(modern.last_dirty_ms, 1_795_406_683_092);
    assert_eq!((modern.app_group, modern.asg_name, modern.urls.secure_health_check), (None, None, None));
    assert!(!modern.coordinating);
}

#[test]
fn the_full_list_is_byte_for_byte_as_recorded() {
    let json = json::applications(&listing(), Detail::Full).unwrap();
    assert_eq!(String::from_utf8(json).unwrap(), SERVED);
    let xml = xml::applications(&listing(), Detail::Full);
    assert_eq!(String::from_utf8(xml).unwrap(), SERVED_XML);
    let empty = Listing { version: "1".to_owned(), hash: String::new(), applications: Vec::new() };
    let json = json::applications(&empty, Detail::Full).unwrap();
    let recorded = r#"{"applications":{"versions__delta":"1","apps__hashcode":"","application":[]}}"#;
    assert_eq!(String::from_utf8(json).unwrap(), recorded);
}

#[test]
fn compact_drops_what_the_facts_say() {
    let json = json::applications(&listing(), Detail::Compact).unwrap();
    let body: Value = serde_json::from_slice(&json).unwrap();
    let applications = body["applications"].as_object().unwrap();
    assert_eq!(applications.keys().collect::<Vec<_>>(), ["application"]);
    let instance = &applications["application"][0]["instance"][0];
    assert_eq!(instance["lastDirtyTimestamp"], json!(1_795_406_683_092_u64));
    for dropped in ["leaseInfo", "metadata", "homePageUrl", "statusPageUrl", "healthCheckUrl"] {
        assert!(instance.get(dropped).is_none(), "{dropped}");
    }
    let xml = String::from_utf8(xml::applications(&listing(), Detail::Compact)).unwrap();
    assert!(!xml.contains("leaseInfo") && !xml.contains("apps__hashcode") && !xml.contains("metadata"));
}

#[test]
fn empty_metadata_is_shown_as_java_shows_it() {
    let mut listing = listing();
    let info = Arc::make_mut(&mut listing.applications[0].instances[0].info);
    info.metadata.clear();
    let json = String::from_utf8(json::applications(&listing, Detail::Full).unwrap()).unwrap();
    assert!(json.contains(r#""metadata":{"@class":"java.util.Collections$EmptyMap"}"#));
    let xml = String::from_utf8(xml::applications(&listing, Detail::Full)).unwrap();
    assert!(xml.contains(r#"<metadata class="java.util.Collections$EmptyMap"/>"#));
}

#[test]
fn a_small_xml_registration_is_read() {
    let body = r#"<?xml version="1.0"?><instance>
        <instanceId>a&amp;b&#33;</instanceId><hostName>h</hostName><app>probe</app><ipAddr>192.0.2.1</ipAddr>
        <port enabled="true"> 9998 </port><vipAddress><![CDATA[a<b]]></vipAddress>
        <metadata><zone>one</zone><empty/></metadata>
        <dataCenterInfo class="com.netflix.appinfo.AmazonInfo"><name>Amazon</name><metadata><ami-id>x</ami-id></metadata></dataCenterInfo>
        </instance>"#;
    let info = xml::read_instance(body.as_bytes()).unwrap();
    assert_eq!(&*info.id, "a&b!");
    assert_eq!(&*info.app, "PROBE");
    assert_eq!(info.port, Port { number: 9998, enabled: true });
    assert_eq!(info.vip.as_deref(), Some("a<b"));
    assert_eq!(info.metadata, BTreeMap::from([("zone".into(), "one".into()), ("empty".into(), "".into())]));
    assert_eq!(info.data_center.metadata["ami-id"], "x");
    assert_eq!(info.status, InstanceStatus::Up);
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let deep = format!("{{\"instance\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, reason, word) in [
        (r#"{"instance":{}}"#, "unparsable", "cannot parse request body"),
        ("", "unparsable", "EOF"),
        ("[1", "unparsable", "cannot parse"),
        (r#"{"instance":{"app":"A","ipAddr":"1.2.3.4"}}"#, "missing_field", "Missing hostname"),
        (r#"{"instance":{"app":"A","hostName":"h"}}"#, "missing_field", "Missing ip address"),
        (r#"{"instance":{"ipAddr":"1","hostName":"h"}}"#, "missing_field", "Missing appName"),
        (
            r#"{"instance":{"app":"A","hostName":"h","ipAddr":"1","port":{"$":70000}}}"#,
            "invalid_value",
            "port",
        ),
        (r#"{"instance":{"app":"A\u0000","hostName":"h","ipAddr":"1"}}"#, "invalid_value", "U+0000"),
        (
            r#"{"instance":{"app":"A","hostName":"h","ipAddr":"1","metadata":{"k":"\u0001"}}}"#,
            "invalid_value",
            "metadata.k",
        ),
        (r#"{"instance":{"app":{"a":1},"hostName":"h","ipAddr":"1"}}"#, "unparsable", "line 1"),
        (&deep, "unparsable", ""),
    ] {
        let refusal = json::read_instance(body.as_bytes()).unwrap_err();
        assert_eq!(refusal.reason(), reason, "{refusal}");
        assert!(refusal.to_string().contains(word), "{refusal}");
        assert_eq!(refusal.status().as_u16(), 400);
    }
    let many: BTreeMap<String, String> = (0..300).map(|n| (n.to_string(), String::new())).collect();
    let body = json!({"instance": {"app": "A", "hostName": "h", "ipAddr": "1", "metadata": many}});
    assert_eq!(json::read_instance(body.to_string().as_bytes()).unwrap_err().reason(), "invalid_value");
}

#[test]
fn dangerous_xml_is_refused() {
    let deep = "<instance>".repeat(100_000);
    for body in [
        r#"<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><instance><hostName>&b;</hostName></instance>"#,
        "<instance><hostName>&bomb;</hostName></instance>",
        "<instance><hostName>h</instance>",
        "<instance><hostName>h</hostName>",
        "<other/>",
        "",
        "\u{0}",
        &deep,
    ] {
        let refusal = xml::read_instance(body.as_bytes()).unwrap_err();
        assert_eq!(refusal.status().as_u16(), 400, "{refusal}");
    }
    assert!(xml::read_instance(&[0xff, 0xfe]).is_err());
}

#[test]
fn an_old_clients_words_are_understood() {
    let body = r#"{"instance":{"hostName":"h","app":"a","ipAddr":"1.2.3.4","overriddenstatus":"OUT_OF_SERVICE",
        "port":{"$":"80","@enabled":true},"lastDirtyTimestamp":-5,"leaseInfo":{"durationInSecs":-1},
        "status":"ODD","metadata":{"@class":"x","n":1,"b":true,"z":null},"unknown":[{"deep":[]}]}}"#;
    let info = json::read_instance(body.as_bytes()).unwrap();
    assert_eq!(&*info.id, "h", "without an id the host name is it");
    assert_eq!(info.overridden, InstanceStatus::OutOfService);
    assert_eq!(info.status, InstanceStatus::Unknown);
    assert_eq!(info.port, Port { number: 80, enabled: true });
    assert_eq!((info.last_dirty_ms, info.lease.duration_s), (0, 90));
    assert_eq!(info.metadata, BTreeMap::from([("n".into(), "1".into()), ("b".into(), "true".into())]));
}

fn word() -> impl Strategy<Value = String> {
    "[ -~äßλ漢😀]{0,12}[!-~]"
}

fn option() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[\t\n\r -~ä😀<>&'\"]{0,20}")
}

fn any_info() -> impl Strategy<Value = InstanceInfo> {
    let port = (any::<u16>(), any::<bool>()).prop_map(|(number, enabled)| Port { number, enabled });
    let status = || proptest::sample::select(InstanceStatus::ALL.to_vec());
    let map =
        || proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_.-]{0,10}", "[\t\n\r -~ä😀]{0,12}", 0..4);
    let names = (word(), word(), word(), word(), option(), option(), option(), option());
    let lease = (1..=86_400_u32, 1..=86_400_u32, 0..u64::MAX / 2, 0..u64::MAX / 2);
    let action = proptest::sample::select(vec![Action::Added, Action::Modified, Action::Deleted]);
    (names, (port.clone(), port, status(), status()), (map(), map(), word()), lease, any::<bool>(), action)
        .prop_map(
            |(
                names,
                (port, secure_port, status, overridden),
                (metadata, center, class),
                lease,
                coordinating,
                action,
            )| {
                InstanceInfo {
                    id: names.0.into(),
                    app: names.1.to_uppercase().into(),
                    app_group: names.4.clone(),
                    host_name: names.2,
                    ip: names.3,
                    status,
                    overridden,
                    port,
                    secure_port,
                    country_id: 1,
                    data_center: DataCenter { class, name: "Amazon".to_owned(), metadata: center },
                    lease: LeaseInfo {
                        renewal_interval_s: lease.0,
                        duration_s: lease.1,
                        registration_ms: lease.2,
                        last_renewal_ms: lease.3,
                        eviction_ms: 0,
                        service_up_ms: lease.2,
                    },
                    metadata,
                    urls: Urls {
                        home_page: names.5.clone(),
                        status_page: names.6.clone(),
                        health_check: names.7.clone(),
                        secure_health_check: names.4,
                    },
                    vip: names.5,
                    secure_vip: names.6,
                    coordinating,
                    last_updated_ms: lease.3,
                    last_dirty_ms: lease.2,
                    asg_name: names.7,
                    action,
                }
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again_in_both_formats(info in any_info()) {
        let listed = Listed { last_renewal_ms: info.lease.last_renewal_ms, info: Arc::new(info) };
        let json = json::instance(&listed, Detail::Full).unwrap();
        prop_assert_eq!(&json::read_instance(&json).unwrap(), &*listed.info);
        let xml = xml::instance(&listed, Detail::Full);
        prop_assert_eq!(&xml::read_instance(&xml).unwrap(), &*listed.info);
    }

    #[test]
    fn nothing_from_outside_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[<>/&;a-z\"=!\\[\\]{}:,]{0,60}") {
        let _ = json::read_instance(&body);
        let _ = xml::read_instance(&body);
        let _ = xml::read_instance(format!("<instance>{text}").as_bytes());
        let _ = json::read_batch(&body);
    }
}
