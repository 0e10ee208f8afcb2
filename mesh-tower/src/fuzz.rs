//! Seeded damage of texts for bounded fuzzing, in tests only.

use mesh_core::rng::{Rng as _, SplitMix64};

/// Rounds of a test: `default`, or what the environment variable `MESH_FUZZ_ROUNDS` says, for a long
/// run.
pub(crate) fn rounds(default: u64) -> u64 {
    let asked = std::env::var("MESH_FUZZ_ROUNDS").ok();
    asked.map_or(default, |text| {
        text.parse().expect("MESH_FUZZ_ROUNDS is a number")
    })
}

/// A damaged copy of a text; what comes new is of `letters`.
pub(crate) fn damage(text: &str, letters: &[u8], rng: &mut SplitMix64) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=rng.next_u64() % 3 {
        if bytes.is_empty() {
            break;
        }
        let at = (rng.next_u64() % bytes.len() as u64) as usize;
        match rng.next_u64() % 4 {
            0 => _ = bytes.remove(at),
            1 => bytes[at] = letters[(rng.next_u64() % letters.len() as u64) as usize],
            2 => bytes.insert(at, bytes[at]),
            _ => bytes.truncate(at),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
