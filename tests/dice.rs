//! Random numbers for tests. Which ones is said where a test fails, and `MEMORIA_TEST_SEED` gives the same again.

use std::{env, fmt};

/// SplitMix64: the same numbers from the same seed, on every machine and in every version.
pub struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// From the environment's seed, or else from the clock.
    pub fn new() -> Result<Self, String> {
        let seed = match env::var("MEMORIA_TEST_SEED") {
            Ok(text) => text.parse().map_err(|_| format!("MEMORIA_TEST_SEED={text} is no number"))?,
            Err(_) => jiff::Timestamp::now().as_microsecond().unsigned_abs(),
        };
        Ok(Self { seed, state: seed })
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to one less.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

impl fmt::Display for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MEMORIA_TEST_SEED={}", self.seed)
    }
}
