//! Keeps web pages away from the API.
//!
//! A page that a person looks at can send requests to any address that the person's machine can reach. It cannot choose
//! the `Origin` that its browser adds, nor the `Host`, even if the page's name was made to point at this machine (DNS
//! rebinding). So a request is served only if its host is a name of ours, and its origin, if it has one, is that host.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri};

use super::problem::{Kind, Refusal};

/// Knows the names of this host.
#[derive(Debug)]
pub(super) struct Guard {
    names: Vec<String>,
}

impl Guard {
    /// `names` are hosts, with a port or for any port. `localhost` and addresses of the loopback interface need no name.
    pub(super) fn new(names: &[String]) -> Self {
        Self { names: names.iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// Refuses what is meant for another host or comes from a foreign page. `local` is the address that the connection
    /// was made to: an address cannot be rebound, so it names us.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap, local: Option<IpAddr>) -> Result<(), Refusal> {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Refusal::new(Kind::ForeignHost, "a request needs one `Host` header"));
        };
        let host = authority(host.as_bytes()).filter(|host| self.is_ours(host, local));
        let target = uri.authority().is_none_or(|target| self.is_ours(target, local));
        let Some(host) = host.filter(|_| target) else {
            return Err(Refusal::new(
                Kind::ForeignHost,
                "the `Host` is none of this host's names; ask for localhost, or add the name to `http.hosts`",
            ));
        };
        if headers.get_all(ORIGIN).iter().all(|origin| is_same(origin, &host)) {
            return Ok(());
        }
        let detail = "the `Origin` is another host than the `Host`: web pages of others cannot use this API";
        Err(Refusal::new(Kind::ForeignOrigin, detail))
    }

    fn is_ours(&self, authority: &Authority, local: Option<IpAddr>) -> bool {
        let host = authority.host().to_ascii_lowercase();
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        if let Ok(address) = literal.parse::<IpAddr>() {
            let address = address.to_canonical();
            if address.is_loopback() || local.is_some_and(|local| local.to_canonical() == address) {
                return true;
            }
        }
        let with_port = authority.as_str().to_ascii_lowercase();
        host == "localhost" || self.names.iter().any(|name| *name == host || *name == with_port)
    }
}

/// A host with or without a port, and nothing else.
fn authority(bytes: &[u8]) -> Option<Authority> {
    Authority::try_from(bytes).ok().filter(|authority| !authority.as_str().contains('@'))
}

/// Whether an origin (<https://www.rfc-editor.org/rfc/rfc6454>) is this host. Its scheme does not matter: encryption may
/// have ended before us.
fn is_same(origin: &HeaderValue, host: &Authority) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(scheme, origin)| {
        matches!(scheme, "http" | "https") && origin.eq_ignore_ascii_case(host.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, origin: Option<&str>) -> &'static str {
        let guard = Guard::new(&["Events.example".to_owned(), "narrow.example:8443".to_owned()]);
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        let local = Some("10.1.2.3".parse().unwrap());
        match guard.check(&Uri::from_static("/v1/topics"), &headers, local) {
            Ok(()) => "served",
            Err(refusal) if refusal == Refusal::new(Kind::ForeignHost, "a request needs one `Host` header") => {
                "no host"
            }
            Err(refusal) if format!("{refusal:?}").contains("ForeignOrigin") => "foreign origin",
            Err(_) => "foreign host",
        }
    }

    #[test]
    fn only_names_of_ours_are_served() {
        for (host, expected) in [
            ("localhost", "served"),
            ("LocalHost:6455", "served"),
            ("127.0.0.1:6455", "served"),
            ("127.9.9.9", "served"),
            ("[::1]:6455", "served"),
            ("[::ffff:127.0.0.1]", "served"),
            ("10.1.2.3:6455", "served"),
            ("events.EXAMPLE:80", "served"),
            ("narrow.example:8443", "served"),
            ("narrow.example", "foreign host"),
            ("narrow.example:80", "foreign host"),
            ("10.1.2.4:6455", "foreign host"),
            ("0.0.0.0:6455", "foreign host"),
            ("evil.example", "foreign host"),
            ("localhost.evil.example", "foreign host"),
            ("evil.example@localhost", "foreign host"),
            ("localhost@evil.example", "foreign host"),
            ("local host", "foreign host"),
            ("", "no host"),
        ] {
            assert_eq!(check(host, None), expected, "{host}");
        }
    }

    #[test]
    fn only_pages_of_ours_are_served() {
        for (origin, expected) in [
            ("http://localhost:6455", "served"),
            ("https://LOCALHOST:6455", "served"),
            ("http://localhost", "foreign origin"),
            ("http://localhost:3000", "foreign origin"),
            ("http://127.0.0.1:6455", "foreign origin"),
            ("http://evil.example", "foreign origin"),
            ("http://localhost:6455@evil.example", "foreign origin"),
            ("http://localhost:6455.evil.example", "foreign origin"),
            ("file://localhost:6455", "foreign origin"),
            ("null", "foreign origin"),
            ("", "foreign origin"),
        ] {
            assert_eq!(check("localhost:6455", Some(origin)), expected, "{origin}");
        }
    }

    #[test]
    fn a_second_host_is_refused() {
        let mut headers = HeaderMap::new();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert!(Guard::new(&[]).check(&Uri::from_static("/"), &headers, None).is_err());
    }

    #[test]
    fn the_host_of_an_absolute_target_counts_too() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        let guard = Guard::new(&[]);
        assert!(guard.check(&Uri::from_static("http://localhost/livez"), &headers, None).is_ok());
        assert!(guard.check(&Uri::from_static("http://evil.example/livez"), &headers, None).is_err());
    }
}
