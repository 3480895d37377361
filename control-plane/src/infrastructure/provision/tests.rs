use super::*;

fn settings() -> Settings {
    Settings {
        image: "pontoon-proxy:1".to_owned(),
        pull_policy: Some(PullPolicy::IfNotPresent),
        xds_server: "http://pontoon:18000".to_owned(),
        controller: Controller::default(),
        service_type: ServiceType::LoadBalancer,
    }
}

fn gateway(spec: Value) -> Gateway {
    let mut object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "edge", "namespace": "shop", "uid": "u-1" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn made(gateway: &Gateway, parameters: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let data = parameters.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    let parameters = Parameters::read(&data).unwrap();
    let objects = provision(gateway, &BTreeSet::from([80, 443]), &settings(), &[parameters]);
    objects.into_iter().map(|object| (object["kind"].as_str().unwrap().to_owned(), object)).collect()
}

#[test]
fn all_of_it_is_the_gateways_and_says_so() {
    let gateway =
        gateway(json!({ "infrastructure": { "labels": { "team": "a" }, "annotations": { "note": "b" } } }));
    let made = made(&gateway, &[]);
    assert_eq!(made.len(), 4);
    for (kind, object) in &made {
        let metadata = &object["metadata"];
        assert_eq!(
            (&metadata["name"], &metadata["namespace"]),
            (&json!("edge-pontoon"), &json!("shop")),
            "{kind}"
        );
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1", "{kind}");
        assert_eq!(metadata["labels"][GATEWAY_NAME], "edge", "{kind}");
        assert_eq!(
            (&metadata["labels"]["team"], &metadata["annotations"]["note"]),
            (&json!("a"), &json!("b"))
        );
    }
    let template = &made["Deployment"]["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["team"], "a");
    assert_eq!(template["metadata"]["annotations"][GATEWAY], "edge");
    assert_eq!(template["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(made["PodDisruptionBudget"]["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    assert_eq!(made["Deployment"]["spec"]["replicas"], Value::Null, "an autoscaler may say it");
    let selector = &made["Deployment"]["spec"]["selector"]["matchLabels"];
    assert_eq!(*selector, json!({ GATEWAY_NAME: "edge" }));
    assert_eq!(made["Service"]["spec"]["selector"], *selector);
    let ports: Vec<u64> = made["Service"]["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|port| port["port"].as_u64())
        .collect();
    assert_eq!(ports, [80, 443]);
}

#[test]
fn parameters_are_laid_over_and_take_no_pod_away() {
    let gateway = gateway(json!({}));
    let deployment = "
metadata: {labels: {tier: front}}
spec:
  replicas: 3
  template:
    metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}
    spec: {containers: [{name: pontoon-proxy, resources: {limits: {memory: 1Gi}}}]}";
    let made = made(&gateway, &[("deployment", deployment), ("service", "spec: {type: NodePort}")]);
    let deployment = &made["Deployment"];
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["metadata"]["labels"]["tier"], "front");
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"][GATEWAY_NAME], "edge");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(container["image"], "pontoon-proxy:1");
    assert_eq!(made["Service"]["spec"]["type"], "NodePort");
}

#[test]
fn what_is_laid_over_may_be_anything() {
    let gateway = gateway(json!({ "addresses": [{ "value": "10.0.0.1" }] }));
    let made = made(
        &gateway,
        &[("deployment", "spec: {template: 5}"), ("service", "spec: {ports: 7, type: ClusterIP}")],
    );
    assert_eq!(made["Deployment"]["spec"]["template"]["metadata"]["labels"][GATEWAY_NAME], "edge");
    assert_eq!(made["Service"]["spec"]["clusterIP"], "10.0.0.1");
}

#[test]
fn addresses_are_asked_of_the_service() {
    let gateway = gateway(json!({ "addresses": [{ "value": "10.0.0.1" }, { "value": "fd00::1" }] }));
    assert_eq!(made(&gateway, &[])["Service"]["spec"]["loadBalancerIP"], "10.0.0.1");
    let service = made(&gateway, &[("service", "spec: {type: ClusterIP}")]).remove("Service").unwrap();
    assert_eq!(service["spec"]["clusterIPs"], json!(["10.0.0.1", "fd00::1"]));
}

#[test]
fn a_name_is_always_one_of_a_service() {
    assert_eq!(name_of("edge", "pontoon"), "edge-pontoon");
    assert_eq!(name_of("edge.v1", "pontoon"), "edge-v1-pontoon");
    assert!(name_of("1edge", "pontoon").starts_with("g-1edge-pontoon-"));
    let (long, other) = ("e".repeat(70), "e".repeat(71));
    for name in [&long, &other] {
        let name = name_of(name, "pontoon");
        assert!(name.len() <= LONGEST, "{name}");
    }
    assert_ne!(name_of(&long, "pontoon"), name_of(&other, "pontoon"));
    assert!(name_of(&"1".repeat(70), "pontoon").len() <= LONGEST);
}

#[test]
fn what_an_installation_with_a_name_makes_says_whose_it_is() {
    let ports = BTreeSet::from([80]);
    let marks = |settings: &Settings| -> Vec<Value> {
        let objects = provision(&gateway(json!({})), &ports, settings, &[]);
        let of_pods = objects[1]["spec"]["template"]["metadata"]["annotations"][CONTROLLER_NAME].clone();
        let marks = objects.iter().map(|object| object["metadata"]["annotations"][CONTROLLER_NAME].clone());
        marks.chain([of_pods]).collect()
    };
    assert!(marks(&settings()).iter().all(Value::is_null), "as it was before there were others");
    let other = Settings { controller: "example.com/gateways".parse().unwrap(), ..settings() };
    assert_eq!(marks(&other), vec![json!("example.com/gateways"); 5]);
}
