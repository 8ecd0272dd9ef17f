//! TLS: the certificate that the API shows, read again when its files change, and what the command line trusts.
//!
//! rustls and ring stay in here: whoever uses them gets streams and configurations.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace_core::digest::Digest;
use millrace_core::limits;
use millrace_core::time::Timestamp;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode as _;

use crate::clock::Clock;

mod trust;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use trust::{Unknown, Untrusted, explain, nobody, trusting};

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A certificate is warned of when this is left of its time, or a third of it if that is less.
const WARN_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Where the configuration names the files.
const CERTIFICATE: &str = "http.tls-certificate-file";
const KEY: &str = "http.tls-key-file";

/// A connection over TLS.
pub type Stream<S> = tokio_rustls::server::TlsStream<S>;

/// Where a certificate and its key are, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's own certificate, then those of authorities between it and one that clients trust.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why a certificate and its key cannot be used. Each message names the file and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file cannot be read.
    #[error("{setting}: {} cannot be read: {reason}; name a file in PEM that this process may read", file.display())]
    Unread {
        /// The setting.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// There is no certificate.
    #[error(
        "{CERTIFICATE}: {} has no certificate in PEM, which begins with `-----BEGIN CERTIFICATE-----`; name the file with the \
         server's certificate, or make PEM of DER with `openssl x509 -inform der -in FILE -out FILE.pem`",
        file.display()
    )]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// There is no key.
    #[error(
        "{KEY}: {} has no private key in PEM, which begins with `-----BEGIN PRIVATE KEY-----`; {}",
        file.display(),
        if *encrypted { "this one is encrypted: `openssl pkey -in FILE -out FILE.plain` decrypts it" } else { "name the file with the key of the certificate" }
    )]
    NoKey {
        /// The file.
        file: PathBuf,
        /// Whether there is one that needs a password.
        encrypted: bool,
    },
    /// What is in a file is damaged, or of a kind that is not known.
    #[error("{setting}: {} cannot be used: {reason}; make it anew", file.display())]
    Broken {
        /// The setting.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// They do not belong together.
    #[error(
        "{KEY}: {} is not the key of the first certificate in {}; name the two that were made together, and put the server's own \
         certificate before those of authorities",
        key.display(),
        certificate.display()
    )]
    Apart {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
}

/// The certificate that a server shows, with its key. Clients that come in see the one that was read last.
pub struct Identity {
    files: Files,
    clock: Clock,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    /// If a file cannot be read, has not what it is to have, or the key is not that of the certificate.
    pub fn open(files: Files, clock: Clock) -> Result<Self, Unusable> {
        let pair = Contents::read(&files)?.pair(&files)?;
        let shown = Arc::new(Shown(watch::Sender::new(Arc::new(pair))));
        let resolver = Arc::<Shown>::clone(&shown);
        let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let mut config =
            versions.map_err(|e| files.broken_certificate(&e))?.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let identity = Self { files, clock, shown, acceptor: TlsAcceptor::from(Arc::new(config)) };
        let (certificate, expires) = (identity.files.certificate.display(), identity.told());
        tracing::info!(%certificate, expires, "The API speaks TLS.");
        Ok(identity)
    }

    /// When the certificate expires, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> u64 {
        self.shown.now().validity.expires.as_secs()
    }

    fn told(&self) -> String {
        (Timestamp::EPOCH + self.shown.now().validity.expires).to_rfc3339()
    }

    /// Agrees on TLS with whoever came in, within [`limits::TLS_HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// If that does not come about, for example because the other side speaks plain HTTP.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<Stream<S>> {
        let accepting = tokio::time::timeout(limits::TLS_HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
        accepting.map_err(late)?.map_err(|error| match trust::inner(&error) {
            Some(rustls::Error::InvalidMessage(_)) => io::Error::new(error.kind(), "what came is not TLS"),
            _ => error,
        })
    }

    /// Reads the files again whenever they change, for ever, and warns before the certificate expires.
    pub async fn follow(&self, every: Duration) {
        let mut said = Said::default();
        loop {
            self.look(&mut said).await;
            tokio::time::sleep(every).await;
        }
    }

    /// Takes over what the files have, if it is another pair that can be used, and whose time it is if it is that of the one before.
    async fn look(&self, said: &mut Said) {
        match self.read_again().await {
            Ok(true) => {
                let (certificate, expires) = (self.files.certificate.display(), self.told());
                tracing::info!(%certificate, expires, "The certificate of the API was read again.");
                *said = Said::default();
            }
            Ok(false) => said.problem = None,
            // Of two files one is written first. What is wrong twice in a row stays so.
            Err(problem) => match &mut said.problem {
                Some((known, is_told)) if *known == problem => {
                    if !std::mem::replace(is_told, true) {
                        tracing::warn!(
                            problem,
                            "The certificate of the API cannot be read again; the one before stays in use."
                        );
                    }
                }
                _ => said.problem = Some((problem, false)),
            },
        }
        self.warn(said);
    }

    /// Says whether there is another pair now.
    async fn read_again(&self) -> Result<bool, String> {
        let (files, now) = (self.files.clone(), self.shown.now().content);
        let reading = tokio::task::spawn_blocking(move || {
            let contents = Contents::read(&files)?;
            if contents.digest() == now { Ok(None) } else { contents.pair(&files).map(Some) }
        });
        let read = reading.await.map_err(|e| e.to_string())?.map_err(|e: Unusable| e.to_string())?;
        let Some(pair) = read else { return Ok(false) };
        let now = self.clock.now();
        if !pair.validity.holds(now) && self.shown.now().validity.holds(now) {
            let file = self.files.certificate.display();
            return Err(format!(
                "{CERTIFICATE}: clients would refuse {file} now, as it has expired or does not hold yet"
            ));
        }
        self.shown.0.send_replace(Arc::new(pair));
        Ok(true)
    }

    /// Says once a day that the time of the certificate is over, soon will be, or has not come.
    fn warn(&self, said: &mut Said) {
        let (pair, now) = (self.shown.now(), self.clock.now());
        let Some(problem) = pair.validity.at(now).told() else { return };
        if said.warned.is_none_or(|at| now.since(at) >= WARN_EVERY) {
            said.warned = Some(now);
            let (certificate, expires) = (self.files.certificate.display(), self.told());
            tracing::warn!(%certificate, expires, "{problem}");
        }
    }
}

/// What was said of a certificate.
#[derive(Debug, Default)]
struct Said {
    /// Why the files cannot be read again, and whether that was told.
    problem: Option<(String, bool)>,
    /// When it was last said that it expires.
    warned: Option<Timestamp>,
}

/// The pair in use. One takes the place of another between two handshakes.
struct Shown(watch::Sender<Arc<Pair>>);

impl Shown {
    fn now(&self) -> Arc<Pair> {
        Arc::clone(&self.0.borrow())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("validity", &self.now().validity).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.now().key))
    }
}

/// A certificate with its key.
struct Pair {
    key: Arc<CertifiedKey>,
    /// Of the files that it was read from.
    content: Digest,
    validity: Validity,
}

/// When a certificate holds. Not by [`Timestamp`]s: what does not expire has the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    /// From when on it holds, since 1970.
    begins: Duration,
    /// Until when, since 1970.
    expires: Duration,
}

/// How a certificate stands in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Early,
    Good,
    Ending,
    Over,
}

impl Time {
    const fn told(self) -> Option<&'static str> {
        match self {
            Self::Early => Some(
                "The certificate of the API does not hold yet, and clients refuse it: see that this machine's clock is right.",
            ),
            Self::Good => None,
            Self::Ending => Some(
                "The certificate of the API expires soon: put a new one into its place, which is read without a restart.",
            ),
            Self::Over => Some(
                "The certificate of the API has expired, and clients refuse it: put a new one into its place, which is read without \
                 a restart.",
            ),
        }
    }
}

impl Validity {
    fn holds(self, now: Timestamp) -> bool {
        matches!(self.at(now), Time::Good | Time::Ending)
    }

    fn at(self, now: Timestamp) -> Time {
        let now = now.since(Timestamp::EPOCH);
        let left = self.expires.saturating_sub(now);
        if now < self.begins {
            Time::Early
        } else if left.is_zero() {
            Time::Over
        } else if left < WARN_BEFORE.min(self.expires.saturating_sub(self.begins) / 3) {
            Time::Ending
        } else {
            Time::Good
        }
    }
}

/// What the two files have.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Contents {
    fn read(files: &Files) -> Result<Self, Unusable> {
        let read = |setting, file: &Path| {
            read(file).map_err(|e| Unusable::Unread { setting, file: file.to_owned(), reason: e.to_string() })
        };
        Ok(Self { certificate: read(CERTIFICATE, &files.certificate)?, key: read(KEY, &files.key)? })
    }

    fn digest(&self) -> Digest {
        let both = [Digest::of(&self.certificate), Digest::of(&self.key)].map(|digest| *digest.as_bytes());
        Digest::of(both.as_flattened())
    }

    fn pair(self, files: &Files) -> Result<Pair, Unusable> {
        let content = self.digest();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.map_err(|e| files.broken_certificate(&e))?;
        let own = chain.first().ok_or_else(|| Unusable::NoCertificate { file: files.certificate.clone() })?;
        let read = x509_cert::Certificate::from_der(own).map_err(|e| files.broken_certificate(&e))?;
        let validity = read.tbs_certificate().validity();
        let [begins, expires] = [validity.not_before, validity.not_after].map(|time| time.to_unix_duration());
        let validity = Validity { begins, expires };
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            let encrypted = String::from_utf8_lossy(&self.key).contains("ENCRYPTED");
            Unusable::NoKey { file: files.key.clone(), encrypted }
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                Unusable::Apart { certificate: files.certificate.clone(), key: files.key.clone() }
            }
            rustls::Error::InvalidCertificate(error) => files.broken_certificate(&error),
            error => Unusable::Broken { setting: KEY, file: files.key.clone(), reason: error.to_string() },
        })?;
        Ok(Pair { key: Arc::new(key), content, validity })
    }
}

impl Files {
    fn broken_certificate(&self, reason: &impl fmt::Display) -> Unusable {
        Unusable::Broken { setting: CERTIFICATE, file: self.certificate.clone(), reason: reason.to_string() }
    }
}

/// Reads a file of certificates or a key.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (mut content, max) = (Vec::new(), limits::CERTIFICATES_MAX_BYTES);
    let read = std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut content)?;
    if read > max {
        return Err(io::Error::other(format!("it is longer than {max} bytes")));
    }
    Ok(content)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
