//! `--print-capabilities`: what a management layer may use (vhost-user specification, "Backend program conventions").

use std::io::{Write, stdout};

use anyhow::Context;

/// Writes the JSON object to stdout.
pub fn print() -> anyhow::Result<()> {
    let object = serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] });
    writeln!(stdout(), "{object:#}").context("cannot write the capabilities to stdout")
}
