//! A text small enough for a termination message: zlib, then base64. The operator unpacks it again.

/// Why an answer's packed text cannot be read. Shows none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    NotBase64,
    NotZlib,
    /// It would be larger than the caller allows.
    TooLarge,
    NotUtf8,
}

impl std::fmt::Display for PackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotBase64 => "it is not base64",
            Self::NotZlib => "it is not zlib, or its checksum is another",
            Self::TooLarge => "unpacked it is too large",
            Self::NotUtf8 => "unpacked it is not UTF-8",
        })
    }
}

impl std::error::Error for PackError {}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BEST: u8 = 10;

/// Packs a text.
pub fn pack(text: &str) -> String {
    let bytes = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), BEST);
    let mut packed = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().enumerate().fold(0_u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let digit = (bits >> (18 - 6 * at)) & 63;
            packed.push(if at > three.len() { '=' } else { char::from(DIGITS[digit as usize]) });
        }
    }
    packed
}

/// Unpacks what [`pack`] made, of at most `limit` bytes.
///
/// # Errors
/// [`PackError`]
pub fn unpack(packed: &str, limit: usize) -> Result<String, PackError> {
    use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_zlib_with_limit};
    let mut bytes = Vec::with_capacity(packed.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in packed.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|known| *known == digit).ok_or(PackError::NotBase64)?;
        bits = bits << 6 | u32::try_from(value).map_err(|_| PackError::NotBase64)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).map_err(|_| PackError::NotBase64)?);
        }
    }
    let text = decompress_to_vec_zlib_with_limit(&bytes, limit).map_err(|error| match error.status {
        TINFLStatus::HasMoreOutput => PackError::TooLarge,
        _ => PackError::NotZlib,
    })?;
    String::from_utf8(text).map_err(|_| PackError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::{PackError, pack, unpack};

    #[test]
    fn what_is_packed_comes_out_again_and_is_smaller() {
        let settings = "agents:\n  default_model: local-medium\n".repeat(40);
        for text in ["", "a", "ab", "abc", "äöü: 1\n", settings.as_str()] {
            assert_eq!(unpack(&pack(text), 4096).as_deref(), Ok(text));
        }
        assert!(pack(&settings).len() * 5 < settings.len());
        // The form of zlib and of base64, as other tools know them.
        assert!(pack(&settings).starts_with("eNr") || pack(&settings).starts_with("eN"), "{}", pack(&settings));
    }

    #[test]
    fn what_was_cut_or_is_too_large_is_refused() {
        let packed = pack(&"x".repeat(1000));
        assert_eq!(unpack(&packed, 999), Err(PackError::TooLarge));
        assert_eq!(unpack(&packed[..packed.len() - 4], 4096), Err(PackError::NotZlib));
        assert_eq!(unpack("e!", 4096), Err(PackError::NotBase64));
        assert_eq!(unpack("", 4096), Err(PackError::NotZlib));
    }
}
