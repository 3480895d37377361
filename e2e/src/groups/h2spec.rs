//! h2spec, every case of it and the strict ones, against a gateway's HTTP/2 side, with prior knowledge and through
//! TLS. Each of its cases counts as one of ours.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::ports;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};
use tokio::net::TcpListener;

use super::place;

/// h2spec waits this long for each answer; its own default of 2 s is short on a busy machine.
const ANSWER_SECONDS: &str = "5";
/// All cases together take a minute where most of them are waits.
const LIMIT: Duration = Duration::from_secs(300);

/// What h2spec takes for a failure without TLS, and why it is none.
const KNOWN: [(&str, &str); 1] = [(
    "http2/3.5: Sends invalid connection preface",
    "what is not HTTP/2's preface is HTTP/1.1 on this port: answered 400 in that, and closed",
)];
const TLS: &[&str] = &["--tls", "--insecure"];

/// Runs the group. True: all cases passed.
pub(crate) async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("h2spec")?;
    let folder = report.folder().to_owned();
    let upstream = upstream().await?;
    let (plain, tls) = (ports::free()?, ports::free()?);
    let objects = objects(plain, tls, upstream)?;
    let plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, &folder, &objects)?;
    let _serving = plane.start().await?;
    let _gateway =
        Gateway::start(&place("PONTOON_E2E_PROXY")?, &folder, "default/edge", plane.xds, 1).await?;
    let url = format!("http://127.0.0.1:{plain}/");
    until("the gateway to reach the upstream", Duration::from_secs(20), async || get(&url).await).await?;

    let reports = (folder.join("h2spec.xml"), folder.join("h2spec-tls.xml"));
    let (without, with) = tokio::try_join!(
        h2spec(plain, &[], &arguments, &reports.0),
        h2spec(tls, TLS, &arguments, &reports.1)
    )?;
    for (how, outcomes, known) in [("", without, KNOWN.as_slice()), ("TLS, ", with, &[])] {
        for (name, outcome) in outcomes {
            let known = known.iter().find(|(case, _)| *case == name);
            report
                .case(&format!("{how}{name}"), async {
                    match (outcome, known) {
                        (Ok(()), None) => Ok(String::new()),
                        (Ok(()), Some(_)) => {
                            anyhow::bail!("passes, but is on the list of those that do not")
                        }
                        (Err(_), Some((_, why))) => Ok(format!("(known: {why})")),
                        (Err(said), None) => anyhow::bail!(said),
                    }
                })
                .await;
        }
    }
    report.finish()
}

/// Runs it and gives its cases, each with what it said where it failed.
async fn h2spec(
    port: u16,
    flags: &[&str],
    sections: &[String],
    junit: &Path,
) -> anyhow::Result<Vec<(String, Result<(), String>)>> {
    let mut command = tokio::process::Command::new(place("PONTOON_E2E_H2SPEC")?);
    command.args(["--strict", "--host", "127.0.0.1", "--timeout", ANSWER_SECONDS, "--port"]);
    command.arg(port.to_string()).args(flags).arg("--junit-report").arg(junit).args(sections);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.context("h2spec does not end")??;
    std::fs::write(junit.with_extension("log"), &output.stdout)?;
    let xml = std::fs::read_to_string(junit)
        .with_context(|| format!("h2spec ended with {} and no report", output.status))?;
    let outcomes = cases(&xml);
    ensure!(!outcomes.is_empty(), "h2spec reports no case");
    Ok(outcomes)
}

/// The cases of its JUnit report.
fn cases(xml: &str) -> Vec<(String, Result<(), String>)> {
    xml.split("<testcase ")
        .skip(1)
        .map(|case| {
            let name = format!("{}: {}", attribute(case, "package"), attribute(case, "classname"));
            let outcome = case.split_once("<failure>").or_else(|| case.split_once("<error>"));
            match outcome {
                Some((_, said)) => {
                    (name, Err(unescape(said.split("</").next().unwrap_or_default()).replace('\n', "; ")))
                }
                None => (name, Ok(())),
            }
        })
        .collect()
}

fn attribute(element: &str, name: &str) -> String {
    let value = element.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
    unescape(value.unwrap_or_default())
}

fn unescape(text: &str) -> String {
    [("&#34;", "\""), ("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&#xA;", "\n"), ("&amp;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Reads what it is sent and answers with enough that windows matter.
async fn upstream() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(async |request: Request<Incoming>| {
                request.into_body().collect().await?;
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(&[b'x'; 1024]))))
            });
            let builder = hyper::server::conn::http1::Builder::new();
            // How a connection ends is the client's matter.
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), answer).await.ok() });
        }
    });
    Ok(address)
}

fn objects(plain: u16, tls: u16, upstream: SocketAddr) -> anyhow::Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec![String::from("127.0.0.1")])?.self_signed(&key)?;
    Ok(format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, port: {plain}, protocol: HTTP}}
  - {{name: https, port: {tls}, protocol: HTTPS, tls: {{certificateRefs: [{{name: edge}}]}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: edge}}
type: kubernetes.io/tls
stringData:
  tls.crt: {:?}
  tls.key: {:?}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: all}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs:
    - {{name: origin, kind: Pool, group: pontoon.dev}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: origin}}
spec:
  endpoints:
  - {{address: {}, port: {}}}
",
        certificate.pem(),
        key.serialize_pem(),
        upstream.ip(),
        upstream.port()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let xml = r#"<testsuites><testsuite name="6.5.2"><testcase package="http2/6.5.2" classname="Sends &#34;x&#34;" time="0.1"></testcase>
<testcase package="http2/6.5.3" classname="Sends y" time="0.1"><failure>The endpoint MUST.&#xA;no</failure></testcase></testsuite></testsuites>"#;
        let expected = [
            ("http2/6.5.2: Sends \"x\"".to_owned(), Ok(())),
            ("http2/6.5.3: Sends y".to_owned(), Err("The endpoint MUST.; no".to_owned())),
        ];
        assert_eq!(cases(xml), expected);
    }
}
