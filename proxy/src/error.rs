//! Why a request was not answered by its upstream: one closed enum, read alike by the access log, the metrics,
//! the retry rules and the answer's body. Each variant knows whose fault it is and its stable `reason`.

use http::StatusCode;

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The client.
    Downstream,
    /// The endpoint, or the network to it.
    Upstream,
    /// This proxy or its configuration.
    Us,
}

macro_rules! errors {
    ($( $(#[doc = $doc:literal])+ $name:ident: $fault:ident, $status:ident, $flag:literal, $reason:literal, $message:literal; )+) => {
        /// What went wrong with a request. The message says what an operator should look at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Error {
            $( $(#[doc = $doc])+ #[error($message)] $name, )+
        }

        impl Error {
            /// All of them, in the order of [`Error::index`].
            pub const ALL: &[Error] = &[$( Error::$name ),+];

            /// Who is at fault.
            pub fn fault(self) -> Fault {
                match self { $( Error::$name => Fault::$fault, )+ }
            }

            /// The status of the answer where none has been sent yet.
            pub fn status(self) -> StatusCode {
                match self { $( Error::$name => StatusCode::$status, )+ }
            }

            /// Envoy's response flag, `-` where it has none.
            pub fn flag(self) -> &'static str {
                match self { $( Error::$name => $flag, )+ }
            }

            /// A stable `snake_case` word.
            pub fn reason(self) -> &'static str {
                match self { $( Error::$name => $reason, )+ }
            }

            /// The answer's body.
            pub fn body(self) -> &'static str {
                // Envoy's, which clients know.
                if self == Error::RbacDenied {
                    return "RBAC: access denied";
                }
                match self { $( Error::$name => concat!($reason, ": ", $message, "\n"), )+ }
            }
        }
    };
}

errors! {
    /// hyper could not parse the request.
    Malformed: Downstream, BAD_REQUEST, "DPE", "malformed_request", "the request is not valid HTTP";
    /// A line of the head ends without a carriage return.
    BareLineFeed: Downstream, BAD_REQUEST, "DPE", "bare_line_feed", "a line of the request's head does not end with CR LF";
    /// `Content-Length` and `Transfer-Encoding` in one request.
    LengthAndChunked: Downstream, BAD_REQUEST, "DPE", "length_and_chunked", "the request has both Content-Length and Transfer-Encoding; what one reader takes for its end another does not";
    /// A transfer coding other than `chunked`.
    TransferCoding: Downstream, NOT_IMPLEMENTED, "DPE", "transfer_coding", "the only transfer coding served here is chunked, once";
    /// A client that opens streams only to reset them.
    RapidReset: Downstream, TOO_MANY_REQUESTS, "DPE", "rapid_reset", "the client reset most of its streams within a second of opening them; its connection was closed";
    /// A client that sends HTTP/2 frames without end that carry nothing.
    ControlFlood: Downstream, TOO_MANY_REQUESTS, "DPE", "control_flood", "the client sent far more SETTINGS, PING, PRIORITY, WINDOW_UPDATE or RST_STREAM frames than its requests need; its connection was closed";
    /// The proxy has as many connections as it may.
    ConnectionLimit: Downstream, SERVICE_UNAVAILABLE, "-", "connection_limit", "the proxy has as many connections as it may; look at --max-connections and the limit of open files";
    /// The client has as many connections as it may.
    SourceConnectionLimit: Downstream, SERVICE_UNAVAILABLE, "-", "source_connection_limit", "the client's address has as many connections as it may; look at --max-connections-per-source";
    /// The listener has as many connections as it may.
    ListenerConnectionLimit: Downstream, SERVICE_UNAVAILABLE, "-", "listener_connection_limit", "the listener has as many connections as its connection_limit filter allows";
    /// There is no memory for more.
    Overload: Us, SERVICE_UNAVAILABLE, "OM", "overload", "the proxy is short of memory and takes nothing new; look at --max-memory-mib and at pontoon_memory_bytes";
    /// The listener wants a PROXY protocol header, and this is none that it takes.
    ProxyProtocol: Downstream, BAD_REQUEST, "DPE", "proxy_protocol", "the connection does not begin with a PROXY protocol header of a version that the listener takes; does its peer send one?";
    /// A connection begins as TLS does, and its `ClientHello` cannot be read.
    ClientHello: Downstream, BAD_REQUEST, "DPE", "client_hello", "the connection begins as TLS does, but its ClientHello is malformed, larger than 16 KiB, or did not come in time; it is not passed on unread";
    /// The worker does not keep up.
    OverloadQueue: Us, SERVICE_UNAVAILABLE, "OM", "overload_queue", "work waits for its worker longer than --max-lag-ms allows, so nothing new is taken; does the proxy have processors and workers enough?";
    /// All headers did not arrive in time.
    HeaderTimeout: Downstream, REQUEST_TIMEOUT, "DPE", "request_header_timeout", "the request's headers did not arrive in time";
    /// The whole of a request did not arrive in time.
    RequestTimeout: Downstream, REQUEST_TIMEOUT, "-", "request_timeout", "the request did not arrive whole in the listener's request_timeout";
    /// The body of a request comes drop by drop.
    SlowBody: Downstream, REQUEST_TIMEOUT, "-", "slow_body", "the request's body came more slowly than --min-body-rate, for longer than is excused; a client that streams should be answered first, or speak gRPC, where the time between two messages does not count";
    /// An exchange has lived as long as it may.
    StreamTooLong: Us, REQUEST_TIMEOUT, "-", "max_stream_duration", "the exchange lasted longer than the max_stream_duration of its route or listener";
    /// The request target is no path we would send on.
    BadPath: Downstream, BAD_REQUEST, "DPE", "bad_path", "the path has a malformed or forbidden escape, or leaves its root";
    /// No host, two hosts, or two different hosts.
    BadHost: Downstream, BAD_REQUEST, "DPE", "bad_host", "the request needs exactly one valid host";
    /// A header name has an underscore.
    UnderscoreHeader: Downstream, BAD_REQUEST, "DPE", "header_underscore", "a header name has an underscore; the listener refuses those";
    /// `Content-Length` beside HTTP/2 framing that contradicts it, `TE` with more than trailers, and the like.
    BadHeader: Downstream, BAD_REQUEST, "DPE", "bad_header", "a header that frames the message is not valid here, or a value has white space around it, which HTTP/2 forbids";
    /// HTTP/1.0 where the listener does not take it.
    OldVersion: Downstream, UPGRADE_REQUIRED, "-", "old_http_version", "the request is of HTTP/1.0, which the listener does not take; see accept_http_10 of its http_protocol_options";
    /// `ftp:` and the like.
    BadScheme: Downstream, BAD_REQUEST, "DPE", "bad_scheme", "the scheme that the request names is neither http nor https";
    /// `CONNECT`.
    ConnectRefused: Downstream, METHOD_NOT_ALLOWED, "DPE", "connect_refused", "CONNECT is not served here";
    /// A change of protocol that the listener does not pass on.
    UpgradeRefused: Downstream, NOT_IMPLEMENTED, "DPE", "upgrade_refused", "the listener does not pass this protocol on; look at its upgrade_configs";
    /// A body that is not in the form that its type says.
    BadBody: Downstream, BAD_REQUEST, "DPE", "bad_body", "the request's body is not the base64 that its content type says";
    /// The target is too long.
    UriTooLong: Downstream, URI_TOO_LONG, "DPE", "uri_too_long", "the request target is longer than the listener allows";
    /// Too many header bytes or fields.
    HeadersTooLarge: Downstream, REQUEST_HEADER_FIELDS_TOO_LARGE, "DPE", "headers_too_large", "the request has more header bytes or fields than the listener allows";
    /// The body is larger than allowed.
    BodyTooLarge: Downstream, PAYLOAD_TOO_LARGE, "DPE", "body_too_large", "the request's body is larger than the listener allows";
    /// An RBAC filter says no.
    RbacDenied: Downstream, FORBIDDEN, "-", "rbac_access_denied", "the RBAC rules of the listener or the route keep the request out; `explain` shows which";
    /// Who an ext_authz filter asks says no.
    AuthzDenied: Downstream, FORBIDDEN, "UAEX", "ext_authz_denied", "the service that ext_authz asks refused the request; the answer is its own";
    /// Who an ext_authz filter asks gives no answer that can be used.
    AuthzFailed: Upstream, FORBIDDEN, "UAEX", "ext_authz_failed", "the service that ext_authz asks did not answer in its timeout, or with an error; is its cluster there, and healthy?";
    /// The route, or the client, has had as many requests as it may for now.
    RateLimited: Downstream, TOO_MANY_REQUESTS, "RL", "rate_limited", "more requests came than the route's local_ratelimit takes, of all clients or of this one";
    /// The client went away before the answer was complete.
    ClientGone: Downstream, BAD_REQUEST, "DC", "client_gone", "the client closed the connection before the answer was complete";
    /// No virtual host.
    NoVirtualHost: Us, NOT_FOUND, "NR", "no_virtual_host", "no route configuration has this host; look at the HTTPRoute's hostnames";
    /// No route.
    NoRoute: Us, NOT_FOUND, "NR", "no_route", "no route of this host matches; `explain` shows which rule fails where";
    /// The route configuration has not arrived.
    NoRouteTable: Us, SERVICE_UNAVAILABLE, "NR", "no_route_configuration", "the listener's routes have not arrived; look at the connection to the control plane";
    /// On a sidecar: the control plane says that there is no such name.
    UnknownName: Us, SERVICE_UNAVAILABLE, "NR", "unknown_name", "no service has this name; look at the registry and at how the name is spelled";
    /// On a sidecar: what the control plane gave for the name cannot be used.
    NameRefused: Us, SERVICE_UNAVAILABLE, "NR", "name_refused", "the proxy refused the name's listener; /config_dump says why";
    /// On a sidecar: the control plane did not answer in time.
    NameTimeout: Us, SERVICE_UNAVAILABLE, "NR", "name_timeout", "the name's routes did not arrive in time; look at the connection to the control plane";
    /// On a sidecar: too many names, or too many requests that wait for one.
    TooManyNames: Us, SERVICE_UNAVAILABLE, "OL", "too_many_names", "too many names are in use or asked for at a time; look at outbound.maxNames and outbound.maxWaiting";
    /// A connection to the proxy's own port where only intercepted ones are passed on.
    NotIntercepted: Downstream, SERVICE_UNAVAILABLE, "NR", "not_intercepted", "the connection came to the proxy's own port, so there is nowhere to pass it on to; is interception up, and is this the right port?";
    /// What this process sends is brought back to it.
    OwnConnection: Us, SERVICE_UNAVAILABLE, "NR", "own_connection", "the connection is this proxy's own, brought back to it by interception; do the rules leave alone its --mark, or its user?";
    /// The cluster is named but unknown.
    NoCluster: Us, SERVICE_UNAVAILABLE, "NC", "no_cluster", "the route names a cluster that the control plane has not given";
    /// The cluster holds as much as it may.
    UpstreamOverflow: Us, SERVICE_UNAVAILABLE, "UO", "upstream_overflow", "the cluster has as many requests or connections as its circuit_breakers allow";
    /// Nobody to send it to.
    NoHealthyUpstream: Upstream, SERVICE_UNAVAILABLE, "UH", "no_healthy_upstream", "the cluster has no endpoint that takes requests; look at the registry";
    /// The connection was refused or failed.
    ConnectFailure: Upstream, SERVICE_UNAVAILABLE, "UF", "connect_failure", "no connection to the endpoint; is it running, and does a firewall or NetworkPolicy block its port?";
    /// The endpoint is the proxy's own machine.
    LocalEndpoint: Us, SERVICE_UNAVAILABLE, "UF", "local_endpoint", "the endpoint is this machine itself or a link-local address, and this proxy runs with --refuse-local-endpoints";
    /// The connection took too long.
    ConnectTimeout: Upstream, SERVICE_UNAVAILABLE, "UF", "connect_timeout", "the endpoint did not accept in the cluster's connect_timeout; is its address right and routed?";
    /// This machine had no socket to spare.
    NoSocket: Us, SERVICE_UNAVAILABLE, "UF", "no_socket", "this proxy is out of sockets or local ports; look at its file limit and at net.ipv4.ip_local_port_range";
    /// The server's certificate has none of the names that count.
    UpstreamTlsName: Upstream, SERVICE_UNAVAILABLE, "UF", "upstream_tls_name", "the endpoint's certificate is for another name; look at the cluster's sni and match_typed_subject_alt_names";
    /// The server's certificate is expired, revoked, or from an unknown authority.
    UpstreamTlsCertificate: Upstream, SERVICE_UNAVAILABLE, "UF", "upstream_tls_certificate", "the endpoint's certificate is expired, revoked, or of an authority that the cluster's trusted_ca does not have";
    /// ALPN.
    UpstreamTlsProtocol: Upstream, SERVICE_UNAVAILABLE, "UF", "upstream_tls_protocol", "the endpoint does not offer the cluster's HTTP version by ALPN";
    /// The server sent an alert.
    UpstreamTlsRefused: Upstream, SERVICE_UNAVAILABLE, "UF", "upstream_tls_refused", "the endpoint refused the TLS handshake; does it want another TLS version, server name or client certificate?";
    /// The handshake failed otherwise.
    UpstreamTlsFailure: Upstream, SERVICE_UNAVAILABLE, "UF", "upstream_tls_failure", "the TLS handshake with the endpoint failed; does it speak TLS on this port?";
    /// HTTP/2 `REFUSED_STREAM`.
    RefusedStream: Upstream, SERVICE_UNAVAILABLE, "UR", "refused_stream", "the endpoint refused the stream; it is shutting down or over its limit";
    /// The connection broke before the answer was complete.
    UpstreamReset: Upstream, BAD_GATEWAY, "UC", "upstream_reset", "the endpoint closed the connection before its answer was complete";
    /// The answer is not valid HTTP.
    UpstreamProtocol: Upstream, BAD_GATEWAY, "UPE", "upstream_protocol", "the endpoint's answer is not valid HTTP; does it speak the cluster's protocol?";
    /// The route's timeout.
    UpstreamTimeout: Upstream, GATEWAY_TIMEOUT, "UT", "upstream_timeout", "the endpoint did not answer within the route's timeout";
    /// One try's timeout, with no try left.
    PerTryTimeout: Upstream, GATEWAY_TIMEOUT, "UT", "per_try_timeout", "no try was answered within the route's per-try timeout";
    /// A connection without HTTP has lived as long as it may.
    ConnectionTooOld: Us, GATEWAY_TIMEOUT, "DT", "connection_too_old", "the connection reached its tcp_proxy's max_downstream_connection_duration";
    /// The listener, or the proxy, ended before it did.
    Drained: Us, SERVICE_UNAVAILABLE, "LR", "drained", "the listener ended, and with the drain time over the connections that were left";
    /// No progress in either direction.
    StreamIdle: Upstream, GATEWAY_TIMEOUT, "SI", "stream_idle_timeout", "no bytes went either way for the stream's idle timeout";
}

impl Error {
    /// No connection to this endpoint could be made, so nothing was sent; another may do better.
    pub fn is_connect(self) -> bool {
        matches!(
            self,
            Error::ConnectFailure
                | Error::ConnectTimeout
                | Error::UpstreamTlsName
                | Error::UpstreamTlsCertificate
                | Error::UpstreamTlsProtocol
                | Error::UpstreamTlsRefused
                | Error::UpstreamTlsFailure
        )
    }

    /// The position in [`Error::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_words_and_indexes_agree() {
        let mut seen = std::collections::BTreeSet::new();
        for (position, error) in Error::ALL.iter().enumerate() {
            assert_eq!(error.index(), position);
            assert!(seen.insert(error.reason()));
            assert!(error.reason().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }

    #[test]
    fn the_reference_lists_them_all() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/proxy.md");
        let page = std::fs::read_to_string(path).unwrap();
        let head = "| status | flag | reason | look at |\n|---|---|---|---|\n";
        let (before, rest) = page.split_once(head).unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        let row = |error: &Error| {
            format!("| {} | {} | `{}` | {error} |", error.status().as_u16(), error.flag(), error.reason())
        };
        let rows: Vec<String> = Error::ALL.iter().map(row).collect();
        let right = format!("{before}{head}{}\n\n{after}", rows.join("\n"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &right).unwrap();
        } else {
            assert!(page == right, "the table of reasons is old: run this test with UPDATE=1");
        }
    }
}
