//! Interception on real networks: sidecars on hosts that are network namespaces, both families, both modes, both
//! directions, each exclusion, and the ways in which a proxy could come to talk to itself. `c` is a host outside
//! the mesh, with the control plane. And what becomes of a proxy whose network is bad. Needs root, `ip` and `nft` (as a
//! witness: the proxy needs neither).

mod hosts;
mod names;
mod passing;
mod traffic;
mod weather;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::until;

use self::hosts::{Host, Network};
use self::traffic::{Conversation, Identity, Says, ask, dns_server, foo, get, greet, greeter, http, resolve};
use super::place;

const HTTP: u16 = 8080;
const GREETER: u16 = 2525;
const RESOLVER: u16 = 15_053;
/// What the resolver of the network says of every name.
const ELSEWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 7);
const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_006;
/// For a debug build on a busy machine.
const START: Duration = Duration::from_secs(60);
const NOBODY: Identity = Identity { uid: None, gid: None, mark: None };
/// Of the proxy where it has no capability.
const PROXY_UID: u32 = 1_337;

struct Lab {
    network: Network,
    proxy: PathBuf,
    folder: PathBuf,
}

/// Runs the group. True: all cases passed.
pub(crate) async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("network")?;
    let folder = report.folder().to_owned();
    let lab = Lab { network: Network::make()?, proxy: place("PONTOON_E2E_PROXY")?, folder: folder.clone() };
    let Network { a, b, c, .. } = &lab.network;
    for host in [a, b, c] {
        http(host, HTTP).await?;
        greeter(host, GREETER).await?;
        passing::keeper(host).await?;
    }
    let _plane = lab.control_plane().await?;
    macro_rules! case {
        ($name:literal, $case:expr) => {
            if arguments.is_empty() || arguments.iter().any(|wanted| $name.contains(wanted.as_str())) {
                report.case($name, $case).await;
                lab.everything_down()?;
            }
        };
    }
    case!("rules: up twice is once, and down leaves nothing", lab.undone());
    case!("rules: the kernel has what show says", lab.witnessed());
    case!("rules: connections that are open stay as they are", lab.open_stay());
    case!("rules: without the capability the error says so", lab.not_permitted());
    case!("outbound: passes to where it was going, names by their routes", lab.outbound());
    case!("outbound: each client's connection has one of its own behind it", lab.own_connections());
    case!("outbound: what is asked of a proxy is passed as it is", lab.asked_of_a_proxy());
    case!("outbound: what is for nobody is refused where policy says so", lab.refuses());
    case!("outbound: exclusions", lab.outbound_exclusions());
    case!("outbound: DNS comes to the resolver, and its addresses to the services", lab.dns());
    case!("outbound: names have addresses, and these lead to their services", lab.names());
    case!("inbound: redirect", lab.inbound("redirect"));
    case!("inbound: tproxy keeps the caller's address", lab.inbound("tproxy"));
    case!("inbound: exclusions by redirect", lab.inbound_exclusions("redirect"));
    case!("inbound: exclusions by tproxy", lab.inbound_exclusions("tproxy"));
    case!("both: from sidecar to sidecar", lab.both());
    case!("loops: a direct connection is refused", lab.direct());
    case!("loops: where the marks differ the proxy knows its own connections", lab.marks_differ());
    case!("loops: a proxy without capabilities is told by its user", lab.unprivileged());
    case!("chaos: packets that are lost and late, and a network that is gone", lab.lost_and_late());
    case!("chaos: names that come and go", lab.names_flap());
    drop(lab);
    report.finish()
}

impl Lab {
    fn intercept(&self, host: &Host, arguments: &str) -> anyhow::Result<String> {
        host.run(&self.proxy, &format!("intercept {arguments}"))
    }

    fn everything_down(&self) -> anyhow::Result<()> {
        let Network { a, b, .. } = &self.network;
        [a, b].iter().try_for_each(|host| self.intercept(host, "down").map(drop))
    }

    /// On `c`, so that the sidecars' way to it goes through their own rules.
    async fn control_plane(&self) -> anyhow::Result<Process> {
        let Network { b, c, .. } = &self.network;
        let objects = format!(
            "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata:\n  name: orders\nspec:\n  endpoints:\n  - {{address: {}, port: {HTTP}}}\n",
            b.v4
        );
        std::fs::create_dir_all(self.folder.join("objects"))?;
        std::fs::write(self.folder.join("objects/objects.yaml"), objects)?;
        let mut command = c.command(place("PONTOON_E2E_PONTOON")?);
        command.current_dir(&self.folder).args(["serve", "--objects", "objects", "--data", "data"]);
        command.args(["--xds-listen", "[::]:18000"]);
        let mut process = Process::start("pontoon", command, &self.folder)?;
        let xds = c.at(18_000)[0];
        until("the control plane to listen", START, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            c.inside(move || Ok(std::net::TcpStream::connect(xds)?)).await.map(|_| Ok(()))
        })
        .await??;
        Ok(process)
    }

    /// A sidecar on a host, when it is ready.
    async fn sidecar(&self, host: &Host, settings: &str) -> anyhow::Result<Process> {
        self.sidecar_by(host, settings, host.command(&self.proxy)).await
    }

    async fn sidecar_by(&self, host: &Host, settings: &str, mut command: Command) -> anyhow::Result<Process> {
        let name = format!("sidecar-{}", &host.name[host.name.len() - 1..]);
        let file = self.folder.join(format!("{name}.yaml"));
        let xds = self.network.c.at(18_000)[0];
        std::fs::write(&file, format!("xdsServer: http://{xds}\nworkers: 2\ndrainSeconds: 1\n{settings}\n"))?;
        command.arg("--config").arg(&file);
        self.when_ready(host, Process::start(&name, command, &self.folder)?).await
    }

    async fn when_ready(&self, host: &Host, mut process: Process) -> anyhow::Result<Process> {
        let admin = ([127, 0, 0, 1], 15_000).into();
        until("the sidecar to be ready", START, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            let ready = host
                .inside(move || {
                    use std::io::{Read as _, Write as _};
                    let mut stream = std::net::TcpStream::connect::<std::net::SocketAddr>(admin)?;
                    write!(
                        stream,
                        "GET /ready?verbose HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
                    )?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    Ok(answer)
                })
                .await?;
            if ready.starts_with("HTTP/1.1 200") { Ok(Ok(())) } else { bail!("{ready}") }
        })
        .await??;
        Ok(process)
    }

    async fn outbound_sidecar(&self) -> anyhow::Result<Process> {
        self.sidecar(&self.network.a, "outbound: {address: '[::]:15001', intercepted: true}").await
    }

    async fn inbound_sidecar(&self, mode: &str) -> anyhow::Result<Process> {
        let settings = format!("inbound: [{{address: '[::]:15006', intercepted: {mode}}}]");
        self.sidecar(&self.network.b, &settings).await
    }

    async fn undone(&self) -> anyhow::Result<String> {
        let a = &self.network.a;
        let state = || -> anyhow::Result<String> {
            let rules = a.run("nft", "-s list ruleset")?;
            let routing = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
            let routing =
                routing.map(|what| a.run("ip", what)).into_iter().collect::<anyhow::Result<String>>();
            // A link-local address comes by itself when nobody else turned out to have it.
            let routing: Vec<_> =
                routing?.lines().filter(|line| !line.contains("fe80::")).map(str::to_owned).collect();
            Ok(format!("{rules}{}", routing.join("\n")))
        };
        let before = state()?;
        let options = "--exclude-uid 7 --exclude-outbound-cidr fd00::/8 --dns-port 53";
        for up in ["up".to_owned(), "up --mode tproxy".to_owned(), format!("up {options}")] {
            self.intercept(a, &up)?;
            let once = state()?;
            ensure!(once != before, "{up} does nothing");
            self.intercept(a, &up)?;
            ensure!(state()? == once, "{up} twice differs from once");
            // In place of other options.
            self.intercept(a, "up --mode tproxy --no-outbound")?;
            self.intercept(a, &up)?;
            ensure!(state()? == once, "{up} differs after other options");
        }
        self.intercept(a, "down")?;
        let after = state()?;
        ensure!(after == before, "left behind:\n{after}");
        self.intercept(a, "down")?;
        Ok(String::new())
    }

    async fn witnessed(&self) -> anyhow::Result<String> {
        let a = &self.network.a;
        let mut rules = 0;
        for up in [
            "up",
            "up --mode tproxy --ipv4-only --only-inbound-port 80,90-99",
            "up --dns-port 53 --exclude-uid 7 --exclude-gid 8 --exclude-mark 9 --exclude-outbound-port 1-9 \
             --exclude-outbound-cidr 10.0.0.0/9,fd00::/7 --exclude-outbound-interface eth0,v* \
             --exclude-inbound-cidr 10.0.0.0/31,fd00::/127 --exclude-inbound-interface br*",
        ] {
            self.intercept(a, up)?;
            let shown: serde_json::Value = serde_json::from_str(&self.intercept(a, "show --json")?)?;
            let listed = a.run("nft", "-s list table inet pontoon")?;
            let listed = listed.lines().filter_map(|line| line.trim().split_once(" comment \""));
            let listed = listed.map(|(rule, _)| rule.replace(" counter", "").replace('"', ""));
            let shown = shown["rules"].as_array().context("no rules")?;
            let shown = shown.iter().filter_map(|rule| rule["rule"].as_str().map(str::to_owned));
            let (listed, shown): (Vec<_>, Vec<_>) = (listed.collect(), shown.collect());
            ensure!(listed == shown, "nft lists\n{}\nshow says\n{}", listed.join("\n"), shown.join("\n"));
            rules += shown.len();
        }
        Ok(format!("({rules} rules)"))
    }

    async fn open_stay(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        for (to, mode) in c.at(GREETER).into_iter().zip(["redirect", "tproxy"]) {
            // Of `a`, one that it has opened and one that `b` has.
            let mut open = vec![Conversation::open(a, to).await?];
            open.push(
                Conversation::open(b, if to.is_ipv4() { a.at(GREETER)[0] } else { a.at(GREETER)[1] }).await?,
            );
            self.intercept(a, &format!("up --mode {mode}"))?;
            for conversation in &mut open {
                conversation.go_on().context("after up")?;
            }
            self.intercept(a, "down")?;
            for conversation in &mut open {
                conversation.go_on().context("after down")?;
            }
        }
        Ok(String::new())
    }

    async fn not_permitted(&self) -> anyhow::Result<String> {
        let (_folder, proxy) = self.readable_proxy()?;
        let a = &self.network.a;
        let mut command = a.command("setpriv");
        command.args(["--reuid", "1337", "--clear-groups"]).arg(proxy).args(["intercept", "up"]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("CAP_NET_ADMIN"), "it says {said:?}");
        Ok(String::new())
    }

    async fn outbound(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        let _sidecar = self.outbound_sidecar().await?;
        self.intercept(a, "up --no-inbound")?;
        for to in c.at(HTTP) {
            let answer = get(a, to, "example.net", NOBODY).await?;
            ensure!(answer.status == 200 && answer.proxied, "{to}: {answer:?}");
            ensure!(answer.local == to.ip().to_string(), "{to}: it went elsewhere: {answer:?}");
            ensure!(!answer.told, "{to}: a third party is told what it was not sent: {answer:?}");
            let answer = ask(a, to, "OPTIONS *", "example.net", NOBODY).await?;
            ensure!(answer.status == 200 && answer.body.ends_with(" *"), "{to}: OPTIONS *: {answer:?}");
            foo(a, to, "example.net").await.with_context(|| format!("{to}: another protocol"))?;
            let answer = get(a, to, "orders", NOBODY).await?;
            ensure!(answer.local == b.v4.to_string(), "{to}: not by the name's routes: {answer:?}");
            ensure!(answer.told, "{to}: a service is not told who asks: {answer:?}");
        }
        for to in c.at(GREETER) {
            let before = self.redirected(a)?;
            greet(a, to).await?;
            ensure!(self.redirected(a)? == before + 1, "{to}: not intercepted, or more than once");
        }
        // The sidecar's own listener and address are this host's.
        for to in a.at(HTTP) {
            let answer = get(a, to, "example.net", NOBODY).await?;
            ensure!(!answer.proxied, "what stays on the host is intercepted: {answer:?}");
        }
        Ok(String::new())
    }

    /// Connections that were redirected on a host.
    fn redirected(&self, host: &Host) -> anyhow::Result<u64> {
        let shown: serde_json::Value = serde_json::from_str(&self.intercept(host, "show --json")?)?;
        let rules = shown["rules"].as_array().context("no rules")?;
        let brought = |rule: &&serde_json::Value| {
            rule["rule"]
                .as_str()
                .is_some_and(|text| text.contains(" redirect to ") || text.contains(" tproxy to "))
        };
        Ok(rules.iter().filter(brought).filter_map(|rule| rule["packets"].as_u64()).sum())
    }

    async fn refuses(&self) -> anyhow::Result<String> {
        let Network { a, c, .. } = &self.network;
        let settings = "outbound: {address: '[::]:15001', intercepted: true, unknown: refuse}";
        let _sidecar = self.sidecar(a, settings).await?;
        self.intercept(a, "up --no-inbound")?;
        for (http, other) in c.at(HTTP).into_iter().zip(c.at(GREETER)) {
            let answer = get(a, http, "example.net", NOBODY).await?;
            ensure!(answer.status == 503 && answer.body.starts_with("unknown_name"), "{answer:?}");
            ensure!(get(a, http, "orders", NOBODY).await?.status == 200, "a name of the mesh is refused");
            ensure!(greet(a, other).await.is_err(), "another protocol is passed");
        }
        Ok(String::new())
    }

    async fn outbound_exclusions(&self) -> anyhow::Result<String> {
        let Network { a, c, .. } = &self.network;
        let _sidecar = self.outbound_sidecar().await?;
        let who = |uid, gid, mark| Identity { uid, gid, mark };
        let cidr4 = format!("--exclude-outbound-cidr {}/32", c.v4);
        let cidr6 = format!("--exclude-outbound-cidr {}/64", c.v6);
        // Options, the client, and whether IPv4 and IPv6 are intercepted.
        for (options, who, intercepted) in [
            ("--exclude-uid 1000", NOBODY, [true, true]),
            ("--exclude-uid 1000", who(Some(1_000), None, None), [false, false]),
            ("--exclude-gid 1001", who(None, Some(1_001), None), [false, false]),
            ("--exclude-mark 77", who(None, None, Some(77)), [false, false]),
            ("", who(None, None, Some(78)), [true, true]),
            ("", who(Some(1_000), Some(1_001), None), [true, true]),
            ("--exclude-outbound-port 8080", NOBODY, [false, false]),
            ("--exclude-outbound-port 8000-8079,8081", NOBODY, [true, true]),
            (&cidr4, NOBODY, [false, true]),
            (&cidr6, NOBODY, [true, false]),
            ("--exclude-outbound-interface eth0", NOBODY, [false, false]),
            ("--exclude-outbound-interface et*", NOBODY, [false, false]),
            ("--exclude-outbound-interface eth", NOBODY, [true, true]),
            ("--ipv4-only", NOBODY, [true, false]),
            ("--no-outbound", NOBODY, [false, false]),
        ] {
            // Neither direction would be nothing to do.
            let other = if options == "--no-outbound" { "" } else { "--no-inbound" };
            self.intercept(a, &format!("up {other} {options}"))?;
            for (to, intercepted) in c.at(HTTP).into_iter().zip(intercepted) {
                let answer = get(a, to, "example.net", who).await?;
                ensure!(
                    answer.status == 200 && answer.proxied == intercepted,
                    "{options:?} to {to} by {who:?}: {answer:?}"
                );
            }
        }
        Ok(String::new())
    }

    async fn dns(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        dns_server(c, || Says::Address(ELSEWHERE)).await?;
        let upstreams = c.at(53).map(|upstream| format!("'{upstream}'")).join(", ");
        let settings = format!(
            "outbound: {{address: '[::]:15001', intercepted: true}}\n\
             dns: {{addresses: ['127.0.0.1:{RESOLVER}', '[::1]:{RESOLVER}'], upstreams: [{upstreams}], search: []}}"
        );
        let _sidecar = self.sidecar(a, &settings).await?;
        self.intercept(a, &format!("up --no-inbound --dns-port {RESOLVER}"))?;
        let mut found = String::new();
        for server in c.at(53) {
            let before = self.redirected(a)?;
            let elsewhere = resolve(a, server, "example.net").await?;
            ensure!(elsewhere == ELSEWHERE, "{server}: example.net is {elsewhere}");
            let orders = resolve(a, server, "orders").await?;
            ensure!(self.redirected(a)? == before + 2, "{server}: the resolver's questions come back to it");
            let answer = get(a, (orders, 80).into(), "orders", NOBODY).await?;
            ensure!(answer.local == b.v4.to_string(), "{orders} leads elsewhere: {answer:?}");
            found = orders.to_string();
        }
        Ok(format!("(orders is {found})"))
    }

    async fn inbound(&self, mode: &str) -> anyhow::Result<String> {
        let Network { a, b, .. } = &self.network;
        let _sidecar = self.inbound_sidecar(mode).await?;
        self.intercept(b, &format!("up --no-outbound --mode {mode}"))?;
        for (to, (caller, own)) in b.at(HTTP).into_iter().zip(a.at(0).into_iter().zip(b.at(0))) {
            let seen = if mode == "tproxy" { caller.ip() } else { own.ip() }.to_string();
            // More than one, so that pooled connections are used too.
            for _ in 0..3 {
                let answer = get(a, to, "example.net", NOBODY).await?;
                ensure!(answer.status == 200 && answer.proxied, "{to}: {answer:?}");
                ensure!(answer.peer == seen, "{to}: the application sees {answer:?} and not {seen}");
            }
            let greeted = greet(a, (to.ip(), GREETER).into()).await?;
            ensure!(greeted == seen, "{to}: the greeter sees {greeted} and not {seen}");
            let answer = get(b, to, "example.net", NOBODY).await?;
            ensure!(!answer.proxied, "what stays on the host is intercepted: {answer:?}");
        }
        // Other connections of the host's own are not touched.
        for to in a.at(HTTP) {
            ensure!(!get(b, to, "example.net", NOBODY).await?.proxied, "outbound is intercepted");
        }
        Ok(String::new())
    }

    async fn inbound_exclusions(&self, mode: &str) -> anyhow::Result<String> {
        let Network { a, b, .. } = &self.network;
        let _sidecar = self.inbound_sidecar(mode).await?;
        let cidr4 = format!("--exclude-inbound-cidr {}/32", a.v4);
        let cidr6 = format!("--exclude-inbound-cidr {}/64", a.v6);
        for (options, intercepted) in [
            ("", [true, true]),
            ("--exclude-inbound-port 8080", [false, false]),
            ("--exclude-inbound-port 8081-8090", [true, true]),
            ("--only-inbound-port 8080", [true, true]),
            ("--only-inbound-port 80,8081", [false, false]),
            (&cidr4, [false, true]),
            (&cidr6, [true, false]),
            ("--exclude-inbound-interface eth0", [false, false]),
            ("--exclude-inbound-interface docker*", [true, true]),
            ("--ipv4-only", [true, false]),
            ("--no-inbound", [false, false]),
        ] {
            let other = if options == "--no-inbound" { "" } else { "--no-outbound" };
            self.intercept(b, &format!("up {other} --mode {mode} {options}"))?;
            for (to, intercepted) in b.at(HTTP).into_iter().zip(intercepted) {
                let answer = get(a, to, "example.net", NOBODY).await?;
                ensure!(
                    answer.status == 200 && answer.proxied == intercepted,
                    "{options:?} to {to}: {answer:?}"
                );
            }
        }
        Ok(String::new())
    }

    async fn both(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        let _sending = self.outbound_sidecar().await?;
        let _receiving = self.inbound_sidecar("tproxy").await?;
        self.intercept(a, "up")?;
        self.intercept(b, "up --mode tproxy")?;
        for to in c.at(HTTP) {
            let (sent, received) = (self.redirected(a)?, self.redirected(b)?);
            let answer = get(a, to, "orders", NOBODY).await?;
            ensure!(answer.local == b.v4.to_string() && answer.peer == a.v4.to_string(), "{answer:?}");
            ensure!(self.redirected(a)? == sent + 1, "the sending sidecar comes back to itself");
            ensure!(self.redirected(b)? > received, "the receiving sidecar is not in the way");
        }
        Ok(String::new())
    }

    async fn direct(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        let _sending = self.outbound_sidecar().await?;
        for (sidecar, port, mode) in
            [(a, OUTBOUND, "redirect"), (b, INBOUND, "redirect"), (b, INBOUND, "tproxy")]
        {
            let receiving =
                if sidecar.name == b.name { Some(self.inbound_sidecar(mode).await?) } else { None };
            for up in [false, true] {
                if up {
                    self.intercept(sidecar, &format!("up --mode {mode}"))?;
                }
                for to in sidecar.at(port) {
                    for host in ["orders", "example.net"] {
                        let answer = get(c, to, host, NOBODY).await?;
                        let refused = answer.status == 503 && answer.body.starts_with("not_intercepted");
                        ensure!(refused, "{to} for {host} ({mode}, rules up: {up}): {answer:?}");
                    }
                    ensure!(greet(c, to).await.is_err(), "{to}: bytes are taken");
                }
            }
            drop(receiving);
            self.everything_down()?;
        }
        Ok(String::new())
    }

    async fn marks_differ(&self) -> anyhow::Result<String> {
        let Network { a, c, .. } = &self.network;
        let sidecar = self.outbound_sidecar().await?;
        self.intercept(a, "up --no-inbound --mark 7")?;
        for (http, other) in c.at(HTTP).into_iter().zip(c.at(GREETER)) {
            for host in ["orders", "example.net"] {
                let before = self.redirected(a)?;
                let answer = get(a, http, host, NOBODY).await?;
                let brought = self.redirected(a)? - before;
                ensure!((502..=504).contains(&answer.status), "{http} for {host}: {answer:?}");
                // The client's, and one for each of two tries. Of these NAT gives some another port, because theirs is
                // one of a connection that was redirected lately: such a one is taken for a client's, and brings as
                // many again. A loop would bring thousands.
                ensure!(brought <= 15, "{http} for {host}: {brought} connections for one");
            }
            ensure!(greet(a, other).await.is_err(), "{other}: somebody answers");
        }
        ensure!(sidecar.log()?.contains("this proxy's own"), "the log does not say why");
        Ok(String::new())
    }

    async fn unprivileged(&self) -> anyhow::Result<String> {
        let (_folder, proxy) = self.readable_proxy()?;
        let Network { a, b, c, .. } = &self.network;
        let settings = "mark: 0\noutbound: {address: '[::]:15001', intercepted: true}";
        let mut command = a.command("setpriv");
        command.args(["--reuid", &PROXY_UID.to_string(), "--clear-groups"]).arg(proxy);
        self.intercept(a, &format!("up --no-inbound --exclude-uid {PROXY_UID}"))?;
        let _sidecar = self.sidecar_by(a, settings, command).await?;
        for to in c.at(HTTP) {
            let before = self.redirected(a)?;
            let answer = get(a, to, "example.net", NOBODY).await?;
            ensure!(answer.status == 200 && answer.proxied, "{answer:?}");
            ensure!(
                get(a, to, "orders", NOBODY).await?.local == b.v4.to_string(),
                "not by the name's routes"
            );
            ensure!(self.redirected(a)? == before + 2, "the proxy comes back to itself");
        }
        Ok(String::new())
    }

    /// The program where every user can read it; it goes with the folder.
    fn readable_proxy(&self) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let copy: &Path = &folder.path().join("pontoon-proxy");
        std::fs::copy(&self.proxy, copy)?;
        std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o755))?;
        Ok((folder, copy.to_owned()))
    }
}
