//! What tests of TLS need: authorities, certificates in files, and a client that looks at what it is shown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Files, Identity, trusting};
use crate::clock::Clock;

/// A stream of a client.
pub(crate) type Client<S> = tokio_rustls::client::TlsStream<S>;

/// An authority of a test's own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
    /// Its key.
    pub(crate) key: String,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let pem = params.self_signed(&key).unwrap().pem();
        let shown = key.serialize_pem();
        Self { issuer: Issuer::new(params, key), pem, key: shown }
    }

    /// A certificate for these names that holds for a long time.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, [2020, 3000])
    }

    /// The same that holds from the beginning of one year to that of the other.
    pub(crate) fn issue_for(&self, names: &[&str], [from, to]: [i32; 2]) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A directory with the files of a server, and with that of its authority.
pub(crate) struct Place {
    _directory: tempfile::TempDir,
    pub(crate) files: Files,
    pub(crate) authority: PathBuf,
}

impl Place {
    pub(crate) fn of(authority: &Authority, issued: &Issued) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [certificate, key, trusted] =
            ["certificate.pem", "key.pem", "authority.pem"].map(|name| directory.path().join(name));
        std::fs::write(&trusted, &authority.pem).unwrap();
        let place = Self { _directory: directory, files: Files { certificate, key }, authority: trusted };
        place.put(issued);
        place
    }

    /// Puts another pair into the files.
    pub(crate) fn put(&self, issued: &Issued) {
        std::fs::write(&self.files.certificate, &issued.certificate).unwrap();
        std::fs::write(&self.files.key, &issued.key).unwrap();
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::new(Identity::open(self.files.clone(), Clock::system()).unwrap())
    }

    /// Connects to a server as one that trusts this authority does.
    pub(crate) async fn connect(&self, address: SocketAddr) -> std::io::Result<Client<TcpStream>> {
        self.agree(TcpStream::connect(address).await?, "127.0.0.1").await
    }

    /// Agrees on TLS with a server that is to have this name.
    pub(crate) async fn agree<S>(&self, stream: S, name: &str) -> std::io::Result<Client<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = trusting(Some(&self.authority)).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// The certificate that a client was shown, in DER.
pub(crate) fn shown<S>(client: &Client<S>) -> Vec<u8> {
    client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

impl Identity {
    /// Looks at the files once.
    pub(crate) async fn look_once(&self) {
        self.look(&mut super::Said::default()).await;
    }
}
