//! The first connection to a cluster; and if there is none, why, for a person.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::clients::{Clients, REQUEST_TIMEOUT, lock};
use crate::broker::Error;

/// Between two looks at what became of a connection.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long what has come is served.
const SERVE: Duration = Duration::from_millis(10);
/// How long a second handshake may take, which tells what is wrong with a certificate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What librdkafka says where a handshake is not answered in kind.
const NO_TLS: &str = "connecting to a PLAINTEXT broker listener";

/// Waits until a broker has answered. Blocks.
///
/// # Errors
/// A fatal one if a broker is there, and TLS or the login fails: waiting does not mend that.
pub(super) fn establish(clients: &Clients) -> Result<(), Error> {
    let Err(complaint) = attempt(&clients.witness(&[])?, REQUEST_TIMEOUT) else { return Ok(()) };
    let bootstrap = &clients.bootstrap;
    match complaint {
        Some(complaint) if complaint.is_refusal() => {
            let is_other_host = complaint.is_of_certificate() && is_signed_well(clients)?;
            let (wrong, fix) = explain(&complaint, is_other_host, &clients.properties);
            Err(Error::Fatal(format!("Kafka at `{bootstrap}`: {wrong}; {fix}")))
        }
        Some(Complaint { reason, .. }) => {
            Err(Error::Transient(format!("no broker answers at `{bootstrap}`: {reason}")))
        }
        None => Err(Error::Transient(format!("no broker answers at `{bootstrap}`: {}", silence(&clients.properties)))),
    }
}

/// Whether a broker's certificate is good but for the host that it names. No name and no password is sent: whoever listens
/// there is not known yet.
fn is_signed_well(clients: &Clients) -> Result<bool, Error> {
    let witness =
        clients.witness(&[("security.protocol", "ssl"), ("ssl.endpoint.identification.algorithm", "none")])?;
    let complaint = attempt(&witness, HANDSHAKE_TIMEOUT).err().flatten();
    Ok(!complaint.is_some_and(|complaint| complaint.is_of_certificate()))
}

/// Asks until a broker answers, or says what would be said for ever; else what it last heard.
fn attempt(witness: &BaseConsumer<Witness>, within: Duration) -> Result<(), Option<Complaint>> {
    let deadline = Instant::now() + within;
    let heard = || lock(&witness.context().0).clone();
    loop {
        if witness.fetch_metadata(None, LOOK_AGAIN).is_ok() {
            return Ok(());
        }
        // Without waiting, it would serve no more than one event.
        while witness.poll(SERVE).is_some() {}
        let refused = heard().filter(Complaint::is_refusal);
        if refused.is_some() || Instant::now() >= deadline {
            return Err(refused.or_else(heard));
        }
    }
}

/// What librdkafka has to say about a connection that it does not get.
#[derive(Clone, Debug)]
struct Complaint {
    code: RDKafkaErrorCode,
    reason: String,
}

impl Complaint {
    /// Whether a broker is there, and will not have us.
    fn is_refusal(&self) -> bool {
        matches!(self.code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) || self.reason.contains(NO_TLS)
    }

    /// A certificate was shown, and is not trusted.
    fn is_of_certificate(&self) -> bool {
        self.code == RDKafkaErrorCode::SSL && self.reason.contains("certificate verify failed")
    }
}

/// Keeps the complaint that says most.
#[derive(Debug, Default)]
pub(super) struct Witness(Mutex<Option<Complaint>>);

impl ClientContext for Witness {
    /// What matters of it becomes the error.
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code().filter(|code| *code != RDKafkaErrorCode::AllBrokersDown) else {
            return;
        };
        let new = Complaint { code, reason: reason.to_owned() };
        let mut kept = lock(&self.0);
        if !kept.as_ref().is_some_and(Complaint::is_refusal) {
            *kept = Some(new);
        }
    }
}

impl ConsumerContext for Witness {}

type Properties = BTreeMap<String, String>;

/// How somebody who comes in says who it is; librdkafka has two names for it.
fn mechanism(properties: &Properties) -> &str {
    let property = properties.get("sasl.mechanism").or_else(|| properties.get("sasl.mechanisms"));
    property.map_or("GSSAPI", String::as_str)
}

/// What is wrong, and the setting to change.
fn explain(complaint: &Complaint, is_other_host: bool, properties: &Properties) -> (String, &'static str) {
    let (mechanism, reason) = (mechanism(properties), &complaint.reason);
    match complaint.code {
        _ if is_other_host => (
            "the broker's certificate is for another host".to_owned(),
            "name the host in kafka.bootstrap, and in the brokers' advertised.listeners, as the certificate does",
        ),
        _ if complaint.is_of_certificate() => (
            "the broker's certificate is not signed by an authority that is trusted here".to_owned(),
            "name the file with the authority's certificate as kafka.properties.ssl.ca.location",
        ),
        RDKafkaErrorCode::Authentication if reason.contains("Unsupported SASL mechanism") => (
            format!("the cluster does not take the SASL mechanism {mechanism} ({reason})"),
            "set kafka.properties.sasl.mechanism to one that it takes",
        ),
        RDKafkaErrorCode::Authentication if mechanism == "OAUTHBEARER" => (
            format!("no token is to be had, or the cluster does not take it ({reason})"),
            "correct kafka.properties.sasl.oauthbearer.token.endpoint.url, sasl.oauthbearer.client.id and \
             sasl.oauthbearer.client.secret",
        ),
        RDKafkaErrorCode::Authentication => {
            let user = properties.get("sasl.username").map_or("", String::as_str);
            (
                format!("the cluster does not take the user `{user}` ({reason})"),
                "correct kafka.properties.sasl.username and sasl.password, or sasl.mechanism",
            )
        }
        _ if reason.contains(NO_TLS) => (
            format!("what listens there does not speak TLS ({reason})"),
            "correct the port in kafka.bootstrap, or kafka.properties.security.protocol",
        ),
        _ => (
            format!("TLS fails ({reason})"),
            "correct kafka.properties.ssl.certificate.location and ssl.key.location, which a broker may ask for, or what else \
             there is of ssl",
        ),
    }
}

/// What can be the reason when nothing comes back at all.
fn silence(properties: &Properties) -> &'static str {
    if mechanism(properties) == "OAUTHBEARER" {
        "there is no token either; set kafka.properties.sasl.oauthbearer.method to oidc, and whom to ask for one"
    } else {
        "nothing comes back; if it speaks TLS or asks who comes, kafka.properties.security.protocol must be SSL, \
         SASL_SSL or SASL_PLAINTEXT as it is there"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What librdkafka says, as it was heard of a real broker.
    #[test]
    fn each_refusal_names_the_setting_to_change() {
        use RDKafkaErrorCode::{Authentication, BrokerTransportFailure, SSL};
        let verify =
            "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could";
        for (code, reason, is_other_host, wrong, fix) in [
            (SSL, verify, true, "another host", "kafka.bootstrap"),
            (SSL, verify, false, "not signed by an authority", "ssl.ca.location"),
            (SSL, "SSL alert number 116: certificate required", false, "number 116", "ssl.certificate.location"),
            (BrokerTransportFailure, NO_TLS, false, "does not speak TLS", "security.protocol"),
            (Authentication, "due to invalid credentials", false, "the user `ada`", "sasl.password"),
            (Authentication, "Unsupported SASL mechanism: PLAIN", false, "mechanism PLAIN", "sasl.mechanism"),
        ] {
            let complaint = Complaint { code, reason: reason.to_owned() };
            let given = [("sasl.mechanism", "PLAIN"), ("sasl.username", "ada"), ("sasl.password", "secret")];
            let given = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            assert!(complaint.is_refusal());
            let said = explain(&complaint, is_other_host, &given);
            assert!(said.0.contains(wrong) && said.1.contains(fix) && !said.0.contains("secret"), "{said:?}");
        }
        let gone = Complaint { code: BrokerTransportFailure, reason: "Connection refused".to_owned() };
        assert!(!gone.is_refusal(), "it may come yet");
    }
}
