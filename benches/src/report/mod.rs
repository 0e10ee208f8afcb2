//! report
pub const FAMILIES: [&str; 3] = ["library", "wire", "big"];
pub fn write() -> anyhow::Result<()> {
    Ok(())
}
