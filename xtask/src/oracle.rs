use anyhow::{Result, bail};
pub fn check(_w: &crate::workspace::Workspace) -> Result<()> {
    bail!("x")
}
