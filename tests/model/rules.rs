//! The rules as bits of a state, and what each of them is called.

pub const SNAPSHOT_FIRST: u16 = 1 << 0;
pub const ONE_MIGRATION: u16 = 1 << 1;
pub const WRITERS: u16 = 1 << 2;
pub const NOTHING_LOST: u16 = 1 << 3;
pub const OLD_DATA_KEPT: u16 = 1 << 4;
pub const BLAME: u16 = 1 << 5;
pub const PLAN: u16 = 1 << 6;
pub const OUTCOME: u16 = 1 << 7;
pub const SETTINGS: u16 = 1 << 8;

/// Rule 5 is asked of every state that rests, the others of every step.
pub const REST: &str = "5: what rests has ended, or says what it waits for";

pub const NAMES: [(u16, &str); 9] = [
    (SNAPSHOT_FIRST, "1: image and schema change only after the verified snapshot, on the snapshot's data"),
    (ONE_MIGRATION, "2: migrations begin at most once, and never on the way back"),
    (WRITERS, "3: writers are let in only to the data that belongs to them, verified or proved"),
    (NOTHING_LOST, "4: no write of a client is taken back without being told"),
    (OLD_DATA_KEPT, "6: the old data is never destroyed before its replacement is there"),
    (BLAME, "7: an image is blamed only for its own fault"),
    (PLAN, "9: what is done is what was planned"),
    (OUTCOME, "an outcome says what is so"),
    (SETTINGS, "a version starts with its own settings, and nobody else's are overwritten"),
];
