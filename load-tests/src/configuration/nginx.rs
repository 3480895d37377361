//! nginx: the fixed upstream behind every proxy, and a peer.

use std::fmt::Write as _;
use std::path::Path;

use super::{Front, POOL, Scenario, routes};

/// Debian builds what passes bytes as a module.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A fixed answer of as many bytes as the path's last part says: nothing, 1 KiB out of memory, the rest out of files.
pub(crate) fn upstream(folder: &Path, front: Front, port: u16) -> String {
    marked_upstream(folder, front, port, 'x')
}

/// The same, told apart by the letter of which the answer of 1 KiB is made.
pub(crate) fn marked_upstream(folder: &Path, front: Front, port: u16, mark: char) -> String {
    let http2 = if front == Front::H2c { " http2" } else { "" };
    format!(
        "daemon off; master_process off; pid {folder}/upstream.pid; error_log stderr warn;
         worker_rlimit_nofile 20000; events {{ worker_connections 12000; }}
         http {{ access_log off; {paths} {keep}
           server {{ listen 127.0.0.1:{port} reuseport{http2}; http2_max_concurrent_streams 256;
             location / {{ return 200 \"{body}\"; }}
             location ~ /0$ {{ return 200 \"\"; }}
             location ~ \"/([0-9]{{5,}})$\" {{ alias {folder}/body-$1; }} }} }}",
        folder = folder.display(),
        paths = paths(folder),
        keep = KEEP_ALIVE,
        body = String::from(mark).repeat(1024),
    )
}

/// As the proxy.
pub(crate) fn proxy(folder: &Path, scenario: &Scenario, port: u16, upstream: u16) -> String {
    let mut text = String::new();
    if scenario.front == Front::Tcp {
        let _ = writeln!(text, "load_module {STREAM_MODULE};");
    }
    let _ = writeln!(
        text,
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
         worker_rlimit_nofile 20000; events {{ worker_connections 20000; }}",
        folder = folder.display()
    );
    if scenario.front == Front::Tcp {
        let _ = writeln!(
            text,
            "stream {{ upstream upstream {{ server 127.0.0.1:{upstream}; }}
               server {{ listen 127.0.0.1:{port}; proxy_pass upstream; proxy_buffer_size 64k; }} }}"
        );
        return text;
    }
    let (pass, listen) = match scenario.front {
        Front::H2c => ("grpc_pass grpc://upstream;", " http2"),
        Front::Tls => (HTTP_PASS, " ssl"),
        Front::Http | Front::Tcp => (HTTP_PASS, ""),
    };
    let header = if scenario.front == Front::H2c { "grpc_set_header" } else { "proxy_set_header" };
    let locations = routes(scenario, |i| {
        format!(
            "location /route-{i}/ {{ {pass} {header} X-Forwarded-For $proxy_add_x_forwarded_for; \
             {header} X-Request-Id $request_id; }}"
        )
    });
    let tls = scenario.pair.as_ref().map_or_else(String::new, |pair| {
        format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;",
            pair.certificate.display(),
            pair.key.display()
        )
    });
    let _ = writeln!(
        text,
        "http {{ access_log off; {paths} {keep} client_max_body_size 0; http2_max_concurrent_streams 256;
           upstream upstream {{ server 127.0.0.1:{upstream}; keepalive {POOL}; keepalive_requests 1000000000; }}
           server {{ listen 127.0.0.1:{port}{listen}; {tls} {locations} }} }}",
        paths = paths(folder),
        keep = KEEP_ALIVE,
    );
    text
}

const KEEP_ALIVE: &str = "keepalive_requests 1000000000; keepalive_timeout 600s;";
/// Requests and answers are passed on as they come, as all others do it, and not by way of files.
const HTTP_PASS: &str = "proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection ''; \
                         proxy_request_buffering off; proxy_max_temp_file_size 0;";

/// Where nginx puts what it never needs here.
fn paths(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp; \
         uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;"
    )
}
