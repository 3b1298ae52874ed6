//! role shim
pub(crate) fn run(_name: &str) -> anyhow::Result<()> { anyhow::bail!("not built yet") }
