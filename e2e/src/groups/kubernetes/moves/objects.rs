//! What is applied: the pods of `inventory`, and the way to both of its generations.

use pontoon_e2e::kubernetes::INVENTORY;

/// Names the user.
pub(super) const USER: &str = "x-user-id";
/// Who has this is answered by pods from stage `canary` on.
pub(super) const CANARY: (&str, &str) = ("x-canary", "always");

/// All of it. The application is as it was where it registers; here it does not, and has no hook for its end.
pub(super) fn all(replicas: u32) -> String {
    let (canary, value) = CANARY;
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: inventory}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: inventory}}}}
  template:
    metadata: {{labels: {{app: inventory}}}}
    spec:
      containers:
      - name: inventory
        image: {INVENTORY}
        args: [-Xmx192m, -XX:+UseSerialGC, -XX:TieredStopAtLevel=1, -jar, /inventory.jar]
        env:
        - {{name: PORT, value: '8080'}}
        - {{name: EUREKA_URL, value: 'http://nobody.invalid/eureka/'}}
        - {{name: EUREKA_CLIENT_ENABLED, value: 'false'}}
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /stock/0, port: http}}, periodSeconds: 1, timeoutSeconds: 10}}
---
apiVersion: v1
kind: Service
metadata: {{name: inventory}}
spec:
  selector: {{app: inventory}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, protocol: HTTP, port: 80}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - matches:
    - path: {{type: PathPrefix, value: /stock}}
    backendRefs: [{{name: inventory, port: 80}}]
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{name: inventory}}
spec:
  service: inventory
  legacy: {{eureka: {{application: inventory, selector: {{lab: legacy}}}}}}
  target: {{service: {{name: inventory, port: 80}}}}
  key: {{header: {USER}}}
  canary:
  - header: {{name: {canary}, value: {value}}}
"
    )
}
