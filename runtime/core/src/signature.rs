//! Signatures of components: ed25519 (<https://www.rfc-editor.org/rfc/rfc8032>) over the text `sha256:<digest>`, so that whoever signs needs
//! no more than the digest, and so does whoever looks.

use std::fmt;

use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::pkcs8::spki::DecodePublicKey as _;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::codec::base64;
use crate::digest::Digest;

/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 64;

/// What is signed of a component.
#[must_use]
pub fn message(component: Digest) -> String {
    format!("sha256:{component}")
}

/// A signature. In text it is base64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    /// Reads what a file has: the 64 bytes as they are, or in base64 with white space around.
    ///
    /// # Errors
    /// If it has something else.
    pub fn of_file(content: &[u8]) -> Result<Self, Untrusted> {
        if let Ok(bytes) = content.try_into() {
            return Ok(Self(bytes));
        }
        std::str::from_utf8(content).map_err(|_| Untrusted::Malformed).and_then(Self::parse)
    }

    /// Reads its text.
    ///
    /// # Errors
    /// If it is not the base64 of 64 bytes.
    pub fn parse(text: &str) -> Result<Self, Untrusted> {
        let bytes = base64::decode(text.trim().as_bytes()).and_then(|bytes| bytes[..].try_into().ok());
        bytes.map(Self).ok_or(Untrusted::Malformed)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64::encode(&self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that signs. Its text is in no output.
pub struct Key(SigningKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads PKCS #8 in PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(pem: &str) -> Result<Self, InvalidKey> {
        SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| InvalidKey::Private)
    }

    /// Signs a component.
    #[must_use]
    pub fn sign(&self, component: Digest) -> Signature {
        Signature(self.0.sign(message(component).as_bytes()).to_bytes())
    }
}

/// Keys of which one has to have signed a component. Without any, nothing has to be signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted(Vec<VerifyingKey>);

impl Trusted {
    /// Trusts one key more: the public one in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// If it is something else.
    pub fn add(&mut self, pem: &str) -> Result<(), InvalidKey> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| InvalidKey::Public)?;
        // With such a one, signatures can be made for everything without knowing a secret.
        if key.is_weak() {
            return Err(InvalidKey::Weak);
        }
        self.0.push(key);
        Ok(())
    }

    /// Whether a component may run that has this signature. Whatever it is, one that cannot be a signature may not.
    ///
    /// # Errors
    /// If it may not.
    pub fn check(&self, component: Digest, signature: Option<&str>) -> Result<(), Untrusted> {
        let signature = signature.map(Signature::parse).transpose()?;
        if self.0.is_empty() {
            return Ok(());
        }
        let Signature(bytes) = signature.ok_or(Untrusted::Missing)?;
        let (message, signature) = (message(component), ed25519_dalek::Signature::from_bytes(&bytes));
        let is_of_one = self.0.iter().any(|key| key.verify_strict(message.as_bytes(), &signature).is_ok());
        if is_of_one { Ok(()) } else { Err(Untrusted::Foreign) }
    }
}

/// Why a component may not run. Says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// It is not signed.
    Missing,
    /// What is given can be no signature.
    Malformed,
    /// None of the keys has signed it.
    Foreign,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => {
                "its component is not signed, and only what is signed may run here; deploy it with `millrace deploy --sign-with KEY.pem`, or \
                 with the signature beside the component"
            }
            Self::Malformed => "the signature of its component is not the base64 of 64 bytes; sign the component anew",
            Self::Foreign => {
                "the signature of its component is of none of the keys in `signatures.public-keys`, or of another component; sign it \
                 with one of these keys"
            }
        })
    }
}

impl std::error::Error for Untrusted {}

/// Why a key cannot be used. Says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKey {
    /// It is no private key of ed25519.
    Private,
    /// It is no public key of ed25519.
    Public,
    /// It protects nothing.
    Weak,
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => {
                "it is no private key of ed25519 in PEM (PKCS #8, not encrypted); `openssl genpkey -algorithm ed25519 -out KEY.pem` makes one"
            }
            Self::Public => {
                "it is no public key of ed25519 in PEM; `openssl pkey -in KEY.pem -pubout -out PUBLIC.pem` writes that of a private key"
            }
            Self::Weak => "it is a key that protects nothing; make another one with `openssl genpkey -algorithm ed25519`",
        })
    }
}

impl std::error::Error for InvalidKey {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Made with openssl 3.0: `genpkey -algorithm ed25519`, `pkey -pubout`, and `pkeyutl -sign -rawin` of the message of `abc`.
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEILNGk2CrPgJX4kbs32LDKwinxb6b9NCErbFIoLoVxKUU\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEApohktG+1/DSjlyZyUMmuGnU3rY4EX/4pJQIkRvEaguQ=\n-----END PUBLIC KEY-----\n";
    const SIGNATURE: &str = "WyovwJFw8vyjYxXzZp4wxTsG6ing/01ayEDrCJG5LsGDxpYY8YrD9RnD70Y/CzX5kVuHIWO8XWweYcGKVDR7AQ==";
    const OTHER_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAaDfx/j1Uev4AtpLDDPtp1xcMd0U7rci6XdnDPCHHEq8=\n-----END PUBLIC KEY-----\n";
    /// A point of small order.
    const WEAK: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END PUBLIC KEY-----\n";
    const OTHER_KIND: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAES/l2USDmqFcnpqBm3cCKKkc4n5Br\n3poK+/sSCWW7MWhpQjNuWEY53+hO3JiEc00hUX5yZ9yZSeNgti8P7NFxMg==\n-----END PUBLIC KEY-----\n";

    fn trusting(keys: &[&str]) -> Trusted {
        let mut trusted = Trusted::default();
        keys.iter().for_each(|key| trusted.add(key).unwrap());
        trusted
    }

    #[test]
    fn what_openssl_signs_is_what_is_signed_here() {
        let component = Digest::of(b"abc");
        assert_eq!(message(component), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Key::parse(KEY).unwrap().sign(component).to_string(), SIGNATURE);
    }

    #[test]
    fn a_component_may_run_that_one_of_the_keys_has_signed() {
        let (component, other) = (Digest::of(b"abc"), Digest::of(b"abd"));
        let (none, one, both) = (trusting(&[]), trusting(&[PUBLIC]), trusting(&[OTHER_PUBLIC, PUBLIC]));
        let foreign = trusting(&[OTHER_PUBLIC]);
        let signed = Some(SIGNATURE);
        let bytes = base64::decode(SIGNATURE.as_bytes()).unwrap();
        // S is taken modulo the order of the group by those who are not strict: the same signature once more.
        let malleable = base64::encode(&with_order_added(&bytes));
        let cut = base64::encode(&bytes[..63]);
        for (trusted, component, signature, expected) in [
            (&none, component, None, Ok(())),
            (&none, component, signed, Ok(())),
            (&none, other, signed, Ok(())),
            (&none, component, Some("AAAA"), Err(Untrusted::Malformed)),
            (&one, component, signed, Ok(())),
            (&both, component, signed, Ok(())),
            (&one, component, None, Err(Untrusted::Missing)),
            (&one, other, signed, Err(Untrusted::Foreign)),
            (&foreign, component, signed, Err(Untrusted::Foreign)),
            (&one, component, Some(""), Err(Untrusted::Malformed)),
            (&one, component, Some("!"), Err(Untrusted::Malformed)),
            (&one, component, Some(&cut), Err(Untrusted::Malformed)),
            (&one, component, Some(&malleable), Err(Untrusted::Foreign)),
        ] {
            assert_eq!(trusted.check(component, signature), expected, "{trusted:?} {component} {signature:?}");
        }
    }

    /// A signature whose second half has the order of the group added to it (RFC 8032, section 5.1.7).
    fn with_order_added(signature: &[u8]) -> Vec<u8> {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let (first, second) = signature.split_at(32);
        let mut carry = 0;
        let sum = second.iter().zip(ORDER).map(|(a, b)| {
            let sum = u16::from(*a) + u16::from(b) + carry;
            carry = sum >> 8;
            sum.to_le_bytes()[0]
        });
        first.iter().copied().chain(sum).collect()
    }

    #[test]
    fn a_file_has_the_bytes_or_their_text() {
        let bytes = base64::decode(SIGNATURE.as_bytes()).unwrap();
        for content in
            [bytes.clone(), SIGNATURE.into(), format!("{SIGNATURE}\n").into(), format!(" {SIGNATURE}\r\n").into()]
        {
            assert_eq!(Signature::of_file(&content).unwrap().to_string(), SIGNATURE);
        }
        for content in [&b""[..], &bytes[..63], b"\xff", KEY.as_bytes(), &SIGNATURE.as_bytes()[1..]] {
            assert_eq!(Signature::of_file(content), Err(Untrusted::Malformed), "{content:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_told_with_the_fix() {
        for (pem, expected) in [
            (PUBLIC, Ok(())),
            ("", Err(InvalidKey::Public)),
            (KEY, Err(InvalidKey::Public)),
            (OTHER_KIND, Err(InvalidKey::Public)),
            (WEAK, Err(InvalidKey::Weak)),
        ] {
            assert_eq!(Trusted::default().add(pem), expected, "{pem}");
        }
        for pem in ["", PUBLIC, &KEY.replace("PRIVATE", "ENCRYPTED PRIVATE")] {
            assert_eq!(Key::parse(pem).unwrap_err(), InvalidKey::Private, "{pem}");
        }
        assert!(!format!("{:?}", Key::parse(KEY).unwrap()).contains('['));
        assert!(InvalidKey::Private.to_string().contains("openssl genpkey -algorithm ed25519"));
    }

    proptest! {
        #[test]
        fn a_signature_is_good_for_one_component_alone(content: Vec<u8>, other: Vec<u8>) {
            let (key, trusted) = (Key::parse(KEY).unwrap(), trusting(&[PUBLIC]));
            let (component, other) = (Digest::of(&content), Digest::of(&other));
            let signature = key.sign(component).to_string();
            prop_assert_eq!(trusted.check(component, Some(&signature)), Ok(()));
            prop_assert_eq!(trusted.check(other, Some(&signature)).is_ok(), component == other);
        }

        #[test]
        fn foreign_bytes_never_panic(content: Vec<u8>, text: String) {
            let trusted = trusting(&[PUBLIC]);
            prop_assert_eq!(Signature::of_file(&content).is_ok(), content.len() == SIGNATURE_BYTES);
            prop_assert!(trusted.check(Digest::of(&content), Some(&text)).is_err());
            prop_assert!(Key::parse(&text).is_err() && Trusted::default().add(&text).is_err());
        }
    }
}
