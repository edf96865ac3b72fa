//! The keys that sign requests: how the value of a Secret becomes a key.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{
    api::{Reason, webhook::Dialect},
    runtime::secret::{SecretBytes, SecretString},
};

/// Shortest key of Standard Webhooks, in bytes after decoding.
pub const KEY_BYTES_MIN: usize = 24;
/// Longest key of Standard Webhooks that is written as `whsec_…`, in bytes after decoding.
pub const KEY_BYTES_MAX: usize = 64;
/// Shortest key of the dialects that take the text of the Secret as it is, in
/// bytes. Less than [`KEY_BYTES_MIN`], since such keys exist already and their
/// receivers made them; 128 bits are still out of reach of guessing.
pub const TEXT_KEY_BYTES_MIN: usize = 16;
/// Longest value that is used as a key as it is, in bytes. HMAC takes any
/// length; Improvado sends the value as a header.
pub const TEXT_KEY_BYTES_MAX: usize = 1024;
/// How keys of Standard Webhooks begin.
pub const KEY_PREFIX: &str = "whsec_";

/// Standard base64, with or without the padding at its end: both are about.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One key that signs requests. Its `Debug` hides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// What goes into the HMAC.
    key: SecretBytes,
    /// The value of the Secret as text, for handshakes that send it.
    text: Option<SecretString>,
}

/// Why the value of a Secret is not a key. Holds no part of the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is nothing in it.
    #[error("the signing key is empty: put a key into the Secret")]
    Empty,
    /// Too little to be safe.
    #[error("the signing key has {bytes} bytes: use at least {min}")]
    TooShort {
        /// Bytes of the key.
        bytes: usize,
        /// Bytes that it must have.
        min: usize,
    },
    /// More than receivers take.
    #[error("the signing key has {bytes} bytes: use at most {max}")]
    TooLong {
        /// Bytes of the key.
        bytes: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// `whsec_` and then something else.
    #[error("the signing key begins with whsec_, but what follows is not base64: copy the key again")]
    NotBase64,
    /// The trap of `echo key | kubectl create secret --from-file`.
    #[error(
        "the signing key ends with a line break, which would be part of the key: write the Secret without it (printf instead of echo)"
    )]
    LineBreak,
    /// The handshake sends the key as a header.
    #[error(
        "the signing key has characters that a header cannot carry, and the Improvado handshake sends it as one: use printable ASCII without spaces"
    )]
    NotHeaderText,
}

impl KeyError {
    /// The reason for a condition.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Empty => Reason::SecretEmpty,
            Self::TooShort { .. } => Reason::SecretTooShort,
            Self::TooLong { .. } => Reason::SecretTooLong,
            Self::NotBase64 | Self::LineBreak | Self::NotHeaderText => Reason::SecretInvalid,
        }
    }
}

impl SigningKey {
    /// The key in the value of a Secret.
    ///
    /// Standard Webhooks (and CloudEvents, which needs a key only for
    /// `SignedChallenge`): `whsec_` and base64 of 24 to 64 bytes; any other
    /// value is used as it is, from 24 bytes on. The other dialects use every
    /// value as it is.
    ///
    /// # Errors
    /// If the value is no such key; the error never quotes it.
    pub fn parse(dialect: Dialect, value: SecretBytes) -> Result<Self, KeyError> {
        if value.expose().iter().all(u8::is_ascii_whitespace) {
            return Err(KeyError::Empty);
        }
        match dialect {
            Dialect::StandardWebhooks | Dialect::CloudEvents => {
                match value.expose().trim_ascii().strip_prefix(KEY_PREFIX.as_bytes()) {
                    Some(encoded) => Self::decode(encoded),
                    None => Self::as_it_is(value, KEY_BYTES_MIN),
                }
            }
            Dialect::Improvado => {
                let key = Self::as_it_is(value, TEXT_KEY_BYTES_MIN)?;
                if key.key.expose().iter().all(u8::is_ascii_graphic) { Ok(key) } else { Err(KeyError::NotHeaderText) }
            }
            Dialect::Analytics | Dialect::Impira => Self::as_it_is(value, TEXT_KEY_BYTES_MIN),
        }
    }

    fn decode(encoded: &[u8]) -> Result<Self, KeyError> {
        let key = SecretBytes::new(BASE64.decode(encoded).map_err(|_| KeyError::NotBase64)?);
        check_length(key.expose().len(), KEY_BYTES_MIN, KEY_BYTES_MAX)?;
        Ok(Self { key, text: None })
    }

    fn as_it_is(value: SecretBytes, min: usize) -> Result<Self, KeyError> {
        let bytes = value.expose();
        check_length(bytes.len(), min, TEXT_KEY_BYTES_MAX)?;
        let text = std::str::from_utf8(bytes).ok();
        // Random bytes may end with 0x0A; a text that does was written by echo.
        if text.is_some_and(|t| t.ends_with('\n') && !t.trim_end().contains(char::is_control)) {
            return Err(KeyError::LineBreak);
        }
        let text = text.map(SecretString::from);
        Ok(Self { key: value, text })
    }

    /// The value of the Secret that the controller makes for a Webhook without
    /// one: `whsec_<base64>`, which is a key in every dialect.
    pub fn generate(random: [u8; 32]) -> SecretString {
        SecretString::new(format!("{KEY_PREFIX}{}", STANDARD.encode(random)))
    }

    /// The HMAC-SHA256 of the pieces in their order, as one message.
    pub fn mac(&self, pieces: &[&[u8]]) -> [u8; 32] {
        hmac_sha256(self.key.expose(), pieces)
    }

    /// The bytes of the key. Never log them.
    pub fn expose(&self) -> &[u8] {
        self.key.expose()
    }

    /// The value of the Secret, for handshakes that send it; none if the key was
    /// encoded or is not text.
    pub fn expose_text(&self) -> Option<&SecretString> {
        self.text.as_ref()
    }
}

fn check_length(bytes: usize, min: usize, max: usize) -> Result<(), KeyError> {
    if bytes == 0 {
        Err(KeyError::Empty)
    } else if bytes < min {
        Err(KeyError::TooShort { bytes, min })
    } else if bytes > max {
        Err(KeyError::TooLong { bytes, max })
    } else {
        Ok(())
    }
}

/// The HMAC-SHA256 of the pieces in their order, as one message.
pub fn hmac_sha256(key: &[u8], pieces: &[&[u8]]) -> [u8; 32] {
    // RFC 2104 takes keys of every length, so the constructor has no failing case.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize().into_bytes().into()
}

/// The keys that sign requests: current and, during rotation, previous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKeys {
    current: Option<SigningKey>,
    previous: Option<SigningKey>,
}

impl SigningKeys {
    /// A current key and, during rotation, the one before it.
    pub const fn new(current: SigningKey, previous: Option<SigningKey>) -> Self {
        Self { current: Some(current), previous }
    }

    /// No key: requests go out unsigned.
    pub const fn none() -> Self {
        Self { current: None, previous: None }
    }

    /// The key that signs first.
    pub const fn current(&self) -> Option<&SigningKey> {
        self.current.as_ref()
    }

    /// The key that signs second while receivers change over.
    pub const fn previous(&self) -> Option<&SigningKey> {
        self.previous.as_ref()
    }

    /// All keys, current first.
    pub fn iter(&self) -> impl Iterator<Item = &SigningKey> {
        self.current.iter().chain(&self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECTS: [Dialect; 5] =
        [Dialect::StandardWebhooks, Dialect::CloudEvents, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];

    fn parse(dialect: Dialect, value: &[u8]) -> Result<SigningKey, KeyError> {
        SigningKey::parse(dialect, SecretBytes::new(value.to_vec()))
    }

    fn check(dialect: Dialect, value: &[u8], expected: Result<&[u8], KeyError>) {
        let parsed = parse(dialect, value);
        assert_eq!(parsed.as_ref().map(SigningKey::expose), expected.as_ref().copied(), "{dialect:?} {value:?}");
    }

    fn whsec(bytes: usize) -> Vec<u8> {
        format!("{KEY_PREFIX}{}", STANDARD.encode(vec![7; bytes])).into_bytes()
    }

    #[test]
    fn a_key_of_standard_webhooks_is_decoded_and_has_24_to_64_bytes() {
        for dialect in [Dialect::StandardWebhooks, Dialect::CloudEvents] {
            check(dialect, &whsec(23), Err(KeyError::TooShort { bytes: 23, min: 24 }));
            check(dialect, &whsec(24), Ok(&[7; 24]));
            check(dialect, &whsec(64), Ok(&[7; 64]));
            check(dialect, &whsec(65), Err(KeyError::TooLong { bytes: 65, max: 64 }));
            check(dialect, b"whsec_not base64", Err(KeyError::NotBase64));
            check(dialect, b"whsec_", Err(KeyError::Empty));
            let mut with_line_break = whsec(32);
            with_line_break.push(b'\n');
            check(dialect, &with_line_break, Ok(&[7; 32]));
            let unpadded: Vec<u8> = whsec(32).into_iter().filter(|b| *b != b'=').collect();
            check(dialect, &unpadded, Ok(&[7; 32]));
        }
    }

    #[test]
    fn every_other_value_is_the_key_itself_within_its_bounds() {
        let check = |dialect, bytes: usize, expected| {
            let error = parse(dialect, &vec![b'k'; bytes]).err();
            assert_eq!(error, expected, "{dialect:?} {bytes}");
        };
        for (dialect, min) in [
            (Dialect::StandardWebhooks, KEY_BYTES_MIN),
            (Dialect::Improvado, TEXT_KEY_BYTES_MIN),
            (Dialect::Analytics, TEXT_KEY_BYTES_MIN),
            (Dialect::Impira, TEXT_KEY_BYTES_MIN),
        ] {
            check(dialect, min - 1, Some(KeyError::TooShort { bytes: min - 1, min }));
            check(dialect, min, None);
            check(dialect, TEXT_KEY_BYTES_MAX, None);
            let bytes = TEXT_KEY_BYTES_MAX + 1;
            check(dialect, bytes, Some(KeyError::TooLong { bytes, max: TEXT_KEY_BYTES_MAX }));
        }
        let text = parse(Dialect::Impira, &whsec(32)).unwrap();
        assert_eq!(text.expose(), whsec(32), "only Standard Webhooks decodes");
    }

    #[test]
    fn random_bytes_are_a_key_where_no_header_carries_it() {
        let bytes: Vec<u8> = (200..=231).chain([b'\n']).collect();
        check(Dialect::StandardWebhooks, &bytes, Ok(&bytes));
        check(Dialect::Impira, &bytes, Ok(&bytes));
        check(Dialect::Improvado, &bytes, Err(KeyError::NotHeaderText));
        check(Dialect::Improvado, b"a key with spaces in it", Err(KeyError::NotHeaderText));
    }

    #[test]
    fn an_empty_value_and_a_line_break_at_the_end_are_refused() {
        for dialect in DIALECTS {
            check(dialect, b"", Err(KeyError::Empty));
            check(dialect, b" \r\n", Err(KeyError::Empty));
            check(dialect, b"a-key-written-by-echo-and-pipe\n", Err(KeyError::LineBreak));
        }
    }

    #[test]
    fn a_generated_key_is_a_key_in_every_dialect() {
        for random in [[0; 32], [0xff; 32]] {
            let secret = SigningKey::generate(random);
            for dialect in DIALECTS {
                let key = parse(dialect, secret.expose().as_bytes()).unwrap();
                let decoded = matches!(dialect, Dialect::StandardWebhooks | Dialect::CloudEvents);
                assert_eq!(key.expose() == random, decoded, "{dialect:?}");
            }
        }
    }

    #[test]
    fn errors_name_a_reason_and_the_next_step_and_no_key() {
        let check = |value: &[u8], reason: Reason| {
            let error = parse(Dialect::Improvado, value).unwrap_err();
            assert_eq!(error.reason(), reason);
            let text = error.to_string();
            assert!(text.contains(": ") && !text.contains("hunter2"), "{text}");
        };
        check(b"", Reason::SecretEmpty);
        check(b"hunter2", Reason::SecretTooShort);
        check(&b"hunter2".repeat(200), Reason::SecretTooLong);
        check("hunter2-hunter2-ü".as_bytes(), Reason::SecretInvalid);
        let key = parse(Dialect::Improvado, b"hunter2-hunter2-hunter2").unwrap();
        assert_eq!(format!("{key:?}").matches("hunter2").count(), 0);
    }
}
