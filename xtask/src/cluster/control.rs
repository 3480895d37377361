//! etcd, the API server, the controllers and the scheduler.

use super::{Cluster, Facts, node};

/// Starts them, and waits until the controllers work.
pub(super) fn start(cluster: &Cluster, Facts { control, port }: Facts) -> anyhow::Result<()> {
    let etcd = format!("http://127.0.0.1:{}", port + 1);
    let peer = format!("http://127.0.0.1:{}", port + 2);
    let start = |name: &str, program: &str, arguments: String| {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        cluster.start(name, program, &arguments)
    };
    start(
        "etcd",
        "etcd",
        format!(
            // What is lost with the machine is no loss.
            "--unsafe-no-fsync --log-level=warn --name=test --data-dir=etcd
            --listen-client-urls={etcd} --advertise-client-urls={etcd}
            --listen-peer-urls={peer} --initial-advertise-peer-urls={peer} --initial-cluster=test={peer}"
        ),
    )?;
    let address = if control {
        // Nobody reports that the node is healthy, so nothing may depend on it.
        String::from(
            "--bind-address=127.0.0.1 --advertise-address=127.0.0.1 --endpoint-reconciler-type=none
            --disable-admission-plugins=TaintNodesByCondition",
        )
    } else {
        format!("--bind-address=0.0.0.0 --advertise-address={}", node::ADDRESS)
    };
    start(
        "apiserver",
        "kube-apiserver",
        format!(
            "{address} --secure-port={port} --etcd-servers={etcd} --allow-privileged=true
            --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt
            --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
            --service-cluster-ip-range={services}
            --service-account-issuer=https://kubernetes.default.svc.cluster.local
            --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key
            --kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key
            --kubelet-certificate-authority=pki/ca.crt --kubelet-preferred-address-types=InternalIP
            --requestheader-client-ca-file=pki/ca.crt --requestheader-allowed-names=front-proxy
            --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group
            --requestheader-username-headers=X-Remote-User
            --proxy-client-cert-file=pki/front-proxy.crt --proxy-client-key-file=pki/front-proxy.key",
            services = node::SERVICES,
        ),
    )?;
    if !control {
        start("containerd", "containerd", String::from("--config=containerd.toml"))?;
    }
    cluster.until("the API server", "kubectl", &["get", "--raw", "/readyz"])?;
    let without_node =
        if control { "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller" } else { "" };
    start(
        "controllers",
        "kube-controller-manager",
        format!(
            "{without_node} --kubeconfig=controllers.conf --leader-elect=false --use-service-account-credentials
            --bind-address=127.0.0.1 --secure-port={} --root-ca-file=pki/ca.crt
            --service-account-private-key-file=pki/sa.key
            --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key",
            port + 3
        ),
    )?;
    start(
        "scheduler",
        "kube-scheduler",
        format!(
            "--kubeconfig=scheduler.conf --leader-elect=false --bind-address=127.0.0.1 --secure-port={}",
            port + 4
        ),
    )?;
    cluster.until("the default service account", "kubectl", &["get", "serviceaccount", "default"])
}
