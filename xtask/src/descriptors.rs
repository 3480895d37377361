//! `cargo xtask descriptors`: the message descriptors that `pontoon_xds::json` prints resources with. They are
//! compiled from the proto files that the envoy-types crate ships, so they are of the same release as its
//! Rust types, and cut down to the files that our resources can reach.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use flate2::{Compression, GzBuilder};

/// Where they are kept, from the workspace's root.
const TARGET: &str = "xds/descriptors.bin.gz";

/// Folders of the crate's `proto/` that imports are relative to.
const INCLUDES: [&str; 6] =
    ["cel-spec/proto", "client_model", "data-plane-api", "googleapis", "protoc-gen-validate", "xds"];

/// What the crate does not ship, beside this crate's sources.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");

/// The resources, and what may stand in an `Any` inside them. A type that is not listed (nor imported by one
/// that is) is shown by its type URL and bytes.
const ROOTS: [&str; 47] = [
    // Before what imports `envoy.extensions.filters.common`, in which protox looks for its `common` as soon as that is there.
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/service/status/v3/csds.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/health_check/v3/health_check.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/http/header_validators/envoy_default/v3/header_validator.proto",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie.proto",
    "envoy/extensions/http/stateful_session/header/v3/header.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto",
    "envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "udpa/type/v1/typed_struct.proto",
    "xds/type/v3/typed_struct.proto",
];

/// Writes the file anew.
pub(crate) fn write(workspace: &Path) -> anyhow::Result<()> {
    let packed = pack(&compile()?)?;
    let target = workspace.join(TARGET);
    std::fs::write(&target, &packed).with_context(|| format!("cannot write {}", target.display()))?;
    println!("{TARGET}: {} bytes", packed.len());
    Ok(())
}

/// The descriptor set, without comments and positions.
fn compile() -> anyhow::Result<Vec<u8>> {
    let protos = proto_folder()?;
    let folders = INCLUDES.iter().map(|folder| protos.join(folder));
    let mut compiler = protox::Compiler::new(folders.chain([OWN.into()]))?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(ROOTS)?;
    // With the options: they tell which fields are sensitive.
    Ok(compiler.encode_file_descriptor_set())
}

/// Equal input, equal bytes: no time and no file name in the header.
fn pack(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

/// Where cargo keeps the sources of the envoy-types crate that this workspace is locked to.
fn proto_folder() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata fails: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .context("the workspace does not depend on envoy-types")?;
    Ok(Path::new(manifest).with_file_name("proto"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_committed_descriptors_are_current() {
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(TARGET);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(std::fs::File::open(committed).unwrap())
            .read_to_end(&mut unpacked)
            .unwrap();
        assert!(unpacked == compile().unwrap(), "run `cargo xtask descriptors` and commit {TARGET}");
    }
}
