use tokio::io::duplex;

use super::testing::{Authority, Issued, Place, shown};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn what_cannot_be_used_is_told_with_its_file_and_the_fix() {
    let authority = Authority::new();
    let issued = authority.issue(&["localhost"]);
    let other = authority.issue(&["localhost"]);
    let place = Place::of(&authority, &issued);
    let encrypted = issued.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let block = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    let cut = issued.certificate.replace("-----END CERTIFICATE-----\n", "");
    for (certificate, key, expected) in [
        (
            "",
            &*issued.key,
            "certificate.pem has no certificate in PEM, which begins with `-----BEGIN CERTIFICATE-----`",
        ),
        (&*issued.key, &issued.key, "certificate.pem has no certificate in PEM"),
        ("\u{30}\u{3}", &issued.key, "make PEM of DER with `openssl x509"),
        (&cut, &issued.key, "certificate.pem cannot be used"),
        (&block("CERTIFICATE"), &issued.key, "http.tls-certificate-file: "),
        (&issued.certificate, "", "http.tls-key-file: "),
        (&issued.certificate, &issued.certificate, "key.pem has no private key in PEM"),
        (&issued.certificate, &encrypted, "this one is encrypted: `openssl pkey -in FILE"),
        (&issued.certificate, &block("PRIVATE KEY"), "key.pem cannot be used"),
        (&issued.certificate, &other.key, "is not the key of the first certificate in"),
        (&format!("{}{}", authority.pem, issued.certificate), &issued.key, "before those of authorities"),
    ] {
        place.put(&Issued { certificate: certificate.to_owned(), key: key.to_owned() });
        let told = Identity::open(place.files.clone(), Clock::system()).unwrap_err().to_string();
        assert!(told.contains(expected), "{expected}: {told}");
        assert!(key.lines().nth(1).is_none_or(|line| !told.contains(line)), "a key is told: {told}");
    }
    place.put(&Issued { certificate: format!("{}{}", issued.certificate, authority.pem), key: issued.key });
    assert!(Identity::open(place.files.clone(), Clock::system()).is_ok());
    std::fs::remove_file(&place.files.key).unwrap();
    let told = Identity::open(place.files.clone(), Clock::system()).unwrap_err().to_string();
    assert!(told.contains("key.pem cannot be read: No such file"), "{told}");
    let without_end = Files { certificate: "/dev/zero".into(), ..place.files };
    let told = Identity::open(without_end, Clock::system()).unwrap_err().to_string();
    assert!(told.contains("it is longer than 1048576 bytes"), "{told}");
}

#[tokio::test]
async fn a_new_pair_is_taken_over_and_a_broken_one_is_told_when_it_stays_so() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue_for(&["localhost"], [2020, 2200]));
    let identity = place.identity();
    let (first, mut said) = (identity.expires(), Said::default());
    assert_eq!(
        Timestamp::EPOCH + Duration::from_secs(first),
        Timestamp::parse_rfc3339("2200-01-01T00:00:00Z").unwrap()
    );
    identity.look(&mut said).await;
    assert_eq!(said.problem, None);
    let new = authority.issue_for(&["localhost"], [2020, 2201]);
    std::fs::write(&place.files.certificate, &new.certificate).unwrap();
    for is_told in [false, true, true] {
        identity.look(&mut said).await;
        let (problem, told) = said.problem.clone().unwrap();
        assert!(problem.contains("is not the key of") && told == is_told, "{told}: {problem}");
        assert_eq!(identity.expires(), first);
    }
    std::fs::write(&place.files.key, &new.key).unwrap();
    identity.look(&mut said).await;
    assert_eq!((said.problem.clone(), identity.expires()), (None, first + 365 * DAY.as_secs()));
    std::fs::remove_file(&place.files.certificate).unwrap();
    identity.look(&mut said).await;
    assert!(said.problem.clone().unwrap().0.contains("No such file"));
    assert_eq!(identity.expires(), first + 365 * DAY.as_secs());
}

#[tokio::test]
async fn a_pair_that_clients_would_refuse_takes_the_place_of_no_good_one() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue_for(&["localhost"], [2020, 2200]));
    let identity = place.identity();
    let (first, mut said) = (identity.expires(), Said::default());
    for years in [[2020, 2021], [2199, 2201]] {
        place.put(&authority.issue_for(&["localhost"], years));
        for is_told in [false, true] {
            identity.look(&mut said).await;
            let (problem, told) = said.problem.clone().unwrap();
            assert!(problem.contains("clients would refuse") && told == is_told, "{told}: {problem}");
            assert_eq!(identity.expires(), first);
        }
        said = Said::default();
    }
    // Where the one before is no better, the newer one is shown.
    place.put(&authority.issue_for(&["localhost"], [2020, 2021]));
    let expired = place.identity();
    place.put(&authority.issue_for(&["localhost"], [2020, 2022]));
    expired.look(&mut said).await;
    assert_eq!((said.problem, expired.expires()), (None, 1_640_995_200));
}

#[test]
fn a_certificate_is_warned_of_before_it_ends() {
    let validity = |begins: u32, expires: u32| Validity { begins: DAY * begins, expires: DAY * expires };
    for (validity, now, expected) in [
        (validity(100, 200), DAY * 99, Time::Early),
        (validity(100, 200), DAY * 100, Time::Good),
        (validity(100, 200), DAY * 193, Time::Good),
        (validity(100, 200), DAY * 193 + Duration::from_secs(1), Time::Ending),
        (validity(100, 200), DAY * 200, Time::Over),
        (validity(100, 200), DAY * 900, Time::Over),
        // One that is short anyway.
        (validity(100, 103), DAY * 102, Time::Good),
        (validity(100, 103), DAY * 102 + Duration::from_secs(1), Time::Ending),
    ] {
        assert_eq!(validity.at(Timestamp::EPOCH + now), expected, "{validity:?} {now:?}");
    }
    let endless = Validity { begins: Duration::ZERO, expires: Duration::from_secs(253_402_300_799) };
    assert_eq!(endless.at(Timestamp::MAX), Time::Good);
}

#[tokio::test]
async fn an_expired_certificate_is_used_and_warned_of_once_a_day() {
    let authority = Authority::new();
    let place = Place::of(&authority, &authority.issue_for(&["localhost"], [2020, 2021]));
    let identity = Identity::open(place.files.clone(), Clock::system()).unwrap();
    let mut said = Said::default();
    identity.look(&mut said).await;
    let warned = said.warned.unwrap();
    identity.look(&mut said).await;
    assert_eq!(said.warned, Some(warned));
    said.warned = Some(warned - DAY);
    identity.look(&mut said).await;
    assert!(said.warned >= Some(warned));
}

/// What a client that asks for a name says of a server.
async fn verdict(place: &Place, name: &str) -> String {
    let identity = place.identity();
    let (near, far) = duplex(64 * 1024);
    let (agreed, accepted) = tokio::join!(place.agree(near, name), identity.accept(far));
    assert_eq!(agreed.is_ok(), accepted.is_ok(), "{accepted:?}");
    match agreed {
        Ok(client) => {
            assert!(!shown(&client).is_empty());
            "trusted".to_owned()
        }
        Err(error) => {
            let Untrusted { reason, fix } = explain(&error).unwrap();
            // As hyper hands it on.
            assert_eq!(explain(&io::Error::other(io::Error::other(error))).unwrap().reason, reason);
            format!("{reason}; {fix}")
        }
    }
}

#[tokio::test]
async fn a_client_trusts_its_authorities_and_says_what_is_wrong_with_others() {
    let (authority, other) = (Authority::new(), Authority::new());
    let names = ["mill.example", "127.0.0.1"];
    let good = authority.issue(&names);
    let own = Issued { certificate: authority.pem.clone(), key: authority.key.clone() };
    for (issued, name, expected) in [
        (&good, "mill.example", "trusted"),
        (&good, "127.0.0.1", "trusted"),
        (&good, "localhost", "its certificate is for mill.example, 127.0.0.1, and not for localhost"),
        (&other.issue(&names), "127.0.0.1", "name the file with the authority's certificate with --ca-file"),
        (&authority.issue_for(&names, [2020, 2021]), "127.0.0.1", "its certificate has expired"),
        (&authority.issue_for(&names, [2900, 3000]), "127.0.0.1", "its certificate does not hold yet"),
        (&own, "127.0.0.1", "give the server one that says `CA:FALSE`"),
    ] {
        let said = verdict(&Place::of(&authority, issued), name).await;
        assert!(said.contains(expected), "{name}, {expected}: {said}");
    }
    // A certificate that nobody signed but itself is its own authority.
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let issued = Issued { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() };
    let place = Place::of(&authority, &issued);
    std::fs::write(&place.authority, &issued.certificate).unwrap();
    assert_eq!(verdict(&place, "127.0.0.1").await, "trusted");
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("authority.pem");
    let told = || trusting(Some(&file)).unwrap_err().to_string();
    assert!(told().contains("authority.pem: it cannot be read: No such file"), "{}", told());
    for (content, expected) in [
        ("", "there is no certificate in it; name a file with the authority's certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate in it cannot be used"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "it is not PEM"),
    ] {
        std::fs::write(&file, content).unwrap();
        assert!(told().contains(expected), "{expected}: {}", told());
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_agrees_is_given_up() {
    let authority = Authority::new();
    let identity = Place::of(&authority, &authority.issue(&["localhost"])).identity();
    let (_silent, far) = duplex(1024);
    let error = identity.accept(far).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
