use super::*;
use crate::model::instance::Application;

fn instance(id: &str, ip: &str, status: InstanceStatus, lab: &str) -> Arc<Instance> {
    Arc::new(Instance {
        id: id.into(),
        application: "INVENTORY".into(),
        vip: "inventory".into(),
        host_name: "localhost".into(),
        ip: ip.into(),
        port: Some(8080),
        secure_port: None,
        status,
        metadata: BTreeMap::from([("lab".to_owned(), lab.to_owned())]),
    })
}

fn registry(instances: &[Arc<Instance>], held: bool) -> RegistryView {
    let instances = instances.iter().map(|instance| (instance.id.clone(), instance.clone())).collect();
    RegistryView {
        applications: BTreeMap::from([("INVENTORY".into(), Application { instances, held }.into())]),
        ..RegistryView::default()
    }
}

fn source(lab: Option<&str>) -> Source {
    let selector = lab.map(|lab| ("lab".to_owned(), lab.to_owned())).into_iter().collect();
    Upstream::of_eureka(&EurekaSource { application: "inventory".into(), selector }).source
}

fn addresses(resolved: &Resolved) -> Vec<String> {
    resolved.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn only_up_instances_are_endpoints_in_order_of_address() {
    let view = registry(
        &[
            instance("a", "10.0.0.9", InstanceStatus::Up, "legacy"),
            instance("b", "10.0.0.1", InstanceStatus::Up, "modern"),
            instance("c", "10.0.0.2", InstanceStatus::Down, "legacy"),
            instance("d", "10.0.0.3", InstanceStatus::OutOfService, "legacy"),
        ],
        false,
    );
    let all = source(None).resolve(&view);
    assert_eq!(addresses(&all), ["10.0.0.1:8080", "10.0.0.9:8080"]);
    assert_eq!(all.status.endpoints, Some(2));
    assert_eq!(addresses(&source(Some("modern")).resolve(&view)), ["10.0.0.1:8080"]);
    assert!(source(Some("other")).resolve(&view).status.unknown);
}

#[test]
fn a_name_of_its_own_has_the_instances_of_all_applications_that_go_by_it() {
    let named = |id: &str, ip: &str, vip: &str| {
        let of = instance(id, ip, InstanceStatus::Up, "x");
        Arc::new(Instance { vip: vip.into(), ..Instance::clone(&of) })
    };
    let mut view =
        registry(&[named("a", "10.0.0.1", "stock, inventory"), named("b", "10.0.0.2", "inventory")], false);
    let other = registry(&[named("c", "10.0.0.3", "Stock")], false);
    view.applications.insert("WAREHOUSE".into(), other.applications["INVENTORY"].clone());
    let stock = Upstream::of_vip("STOCK");
    assert_eq!(&*stock.name, "eureka-vip/stock");
    assert_eq!(addresses(&stock.source.resolve(&view)), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    assert!(Upstream::of_vip("nobody").source.resolve(&view).status.unknown);
}

#[test]
fn an_instance_without_a_usable_address_is_left_out_and_named() {
    let view = registry(&[instance("a", "inventory.local", InstanceStatus::Up, "x")], false);
    let resolved = source(None).resolve(&view);
    assert!(resolved.endpoints.is_empty());
    assert_eq!(&*resolved.status.left_out[0].instance, "a");
    assert!(resolved.status.left_out[0].message.contains("prefer-ip-address"));
}

#[test]
fn held_endpoints_stay_and_say_so() {
    let view = registry(&[instance("a", "10.0.0.1", InstanceStatus::Up, "x")], true);
    let resolved = source(None).resolve(&view);
    assert_eq!(resolved.endpoints.len(), 1);
    assert!(resolved.status.held);
}

#[test]
fn an_application_never_seen_is_unknown() {
    assert!(source(None).resolve(&RegistryView::default()).status.unknown);
}

#[test]
fn names_say_application_and_selector() {
    let selector = BTreeMap::from([("lab".into(), "modern".into()), ("a".into(), "1".into())]);
    let name = |selector| Upstream::of_eureka(&EurekaSource { application: "orders".into(), selector }).name;
    assert_eq!(&*name(BTreeMap::new()), "eureka/ORDERS");
    assert_eq!(&*name(selector), "eureka/ORDERS/a=1,lab=modern");
}
