//! The double of the runtime's imports.

use std::time::Duration;

use std::collections::BTreeMap;

use super::{Emitted, Invocation};
use crate::context::Host;
use crate::{Data, Emission, EmitError, Event, StateError, state};

pub(super) struct Double<'a> {
    pub(super) invocation: &'a Invocation,
    pub(super) emitted: Vec<Emitted>,
    pub(super) state: Store,
}

/// The state, if it is granted.
pub(super) struct Store(pub(super) Option<BTreeMap<String, Vec<u8>>>);

/// The runtime's bound on the events that one invocation emits, unless the manifest says otherwise.
pub(super) const EMITTED_DEFAULT_EVENTS: usize = 100;

/// The runtime's bounds on a key and on a value, in bytes.
const STATE_KEY_MAX_BYTES: usize = 1024;
const STATE_VALUE_MAX_BYTES: usize = 256 * 1024;

impl Store {
    fn granted(&self, key: &str) -> Result<&BTreeMap<String, Vec<u8>>, StateError> {
        let state = self.0.as_ref().ok_or(StateError::NotGranted)?;
        match key.len() {
            0 => Err(StateError::Refused("the key is empty".into())),
            1..=STATE_KEY_MAX_BYTES => Ok(state),
            bytes => Err(StateError::Refused(format!("the key has {bytes} bytes, more than {STATE_KEY_MAX_BYTES}"))),
        }
    }
}

impl state::Store for Store {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.granted(key)?.get(key).cloned())
    }

    fn write(&mut self, key: &str, value: Option<Vec<u8>>) -> Result<(), StateError> {
        self.granted(key)?;
        let bytes = value.as_ref().map_or(0, Vec::len);
        if bytes > STATE_VALUE_MAX_BYTES {
            let reason = format!("the value has {bytes} bytes, more than {STATE_VALUE_MAX_BYTES}");
            return Err(StateError::Refused(reason));
        }
        let state = self.0.get_or_insert_default();
        match value {
            Some(value) => drop(state.insert(key.into(), value)),
            None => drop(state.remove(key)),
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<String>, StateError> {
        Ok(self.0.as_ref().ok_or(StateError::NotGranted)?.keys().cloned().collect())
    }
}

impl Host for Double<'_> {
    fn emit(&mut self, topic: &str, emission: Emission) -> Result<String, EmitError> {
        let max = self.invocation.emitted_events;
        if self.emitted.len() >= max {
            return Err(EmitError::TooMany(max as u64));
        }
        if let Some(err) = self.invocation.refusals.get(topic) {
            return Err(err.clone());
        }
        if self.invocation.grants.as_ref().is_some_and(|granted| !granted.contains(topic)) {
            return Err(EmitError::NotGranted(topic.into()));
        }
        check(&emission)?;
        let emitted = self.complete(topic, emission);
        let id = emitted.event.id.clone();
        self.emitted.push(emitted);
        Ok(id)
    }

    fn config(&self, key: &str) -> Result<Option<String>, String> {
        Ok(self.invocation.config.get(key).cloned())
    }

    fn topic(&self) -> String {
        self.invocation.topic.clone()
    }

    fn partition(&self) -> u32 {
        self.invocation.partition
    }

    fn offset(&self) -> u64 {
        self.invocation.offset
    }

    fn key(&self) -> Option<Vec<u8>> {
        self.invocation.key.clone()
    }

    fn attempt(&self) -> u32 {
        self.invocation.attempt
    }

    fn idempotency_key(&self) -> String {
        self.invocation.idempotency_key.clone()
    }

    fn remaining(&self) -> Duration {
        self.invocation.remaining
    }

    #[cfg(not(target_family = "wasm"))]
    fn state(&mut self) -> &mut dyn state::Store {
        &mut self.state
    }
}

impl Double<'_> {
    /// Fills in what the runtime would.
    fn complete(&self, topic: &str, emission: Emission) -> Emitted {
        let Emission { id, source, ty, subject, time, datacontenttype, dataschema, mut extensions, data, key } =
            emission;
        let handled = &self.invocation.event;
        let correlation = handled.extension("correlationid").unwrap_or(&handled.id);
        for (name, value) in [("causationid", handled.id.as_str()), ("correlationid", correlation)] {
            if extensions.iter().all(|(n, _)| n != name) {
                extensions.push((name.into(), value.into()));
            }
        }
        extensions.sort();
        let event = Event {
            id: id.unwrap_or_else(|| format!("emitted-{}", self.emitted.len())),
            source: source.unwrap_or_else(|| "/millrace/test/function".into()),
            ty,
            subject,
            time,
            datacontenttype,
            dataschema,
            extensions,
            data: Data::from(data),
        };
        Emitted { topic: topic.into(), key: key.or_else(|| self.invocation.key.clone()), event }
    }
}

/// The rules of CloudEvents for what a handler can set.
fn check(emission: &Emission) -> Result<(), EmitError> {
    let attributes = [
        ("type", Some(&emission.ty)),
        ("id", emission.id.as_ref()),
        ("source", emission.source.as_ref()),
        ("subject", emission.subject.as_ref()),
        ("datacontenttype", emission.datacontenttype.as_ref()),
        ("dataschema", emission.dataschema.as_ref()),
    ];
    if let Some((name, _)) = attributes.iter().find(|(_, value)| value.is_some_and(String::is_empty)) {
        return Err(EmitError::Invalid(format!("`{name}` is empty")));
    }
    for (at, (name, _)) in emission.extensions.iter().enumerate() {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if name.is_empty() || !name.bytes().all(legal) {
            return Err(EmitError::Invalid(format!("extension `{name}`: use lower-case letters and digits")));
        }
        if super::cloudevent::CORE_ATTRIBUTES.contains(&name.as_str()) {
            return Err(EmitError::Invalid(format!("`{name}` is not an extension")));
        }
        if emission.extensions[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(EmitError::Invalid(format!("extension `{name}` is set twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Invocation, event};
    use crate::{Context, Emission, EmitError, Event, Failure, StateError};

    #[track_caller]
    fn check(emission: &Emission, expected: Result<(), &str>) {
        let emit = |_: Event, cx: &mut Context<'_>| -> Result<(), Failure> {
            let answer = cx.emit("topic", emission.clone()).map(drop);
            assert_eq!(answer, expected.map_err(|reason| EmitError::Invalid(reason.into())));
            Ok(())
        };
        Invocation::new(event("ping", &())).run(emit).expect_completed();
    }

    #[test]
    fn emissions_are_checked_as_the_runtime_does() {
        let emission = || Emission::new("pong");
        check(&emission(), Ok(()));
        check(&emission().extension("tenant", ""), Ok(()));
        check(&Emission::new(""), Err("`type` is empty"));
        check(&emission().id(""), Err("`id` is empty"));
        check(&emission().source(""), Err("`source` is empty"));
        check(&emission().subject(""), Err("`subject` is empty"));
        check(&emission().dataschema(""), Err("`dataschema` is empty"));
        check(&emission().extension("Tenant", "a"), Err("extension `Tenant`: use lower-case letters and digits"));
        check(&emission().extension("", "a"), Err("extension ``: use lower-case letters and digits"));
        check(&emission().extension("subject", "a"), Err("`subject` is not an extension"));
        check(&emission().extension("a", "1").extension("a", "2"), Err("extension `a` is set twice"));
    }

    #[test]
    fn as_many_events_are_taken_as_by_the_runtime() {
        let emit = |_: Event, cx: &mut Context<'_>| -> Result<(), Failure> {
            for _ in 0..100 {
                cx.emit("topic", Emission::new("pong"))?;
            }
            assert_eq!(cx.emit("topic", Emission::new("pong")), Err(EmitError::TooMany(100)));
            Ok(())
        };
        assert_eq!(Invocation::new(event("ping", &())).run(emit).expect_completed().emitted.len(), 100);
    }

    #[test]
    fn state_is_checked_as_the_runtime_does() {
        let check = |key: &str, value: usize, expected: Result<(), &str>| {
            let set = |_: Event, cx: &mut Context<'_>| -> Result<(), Failure> {
                let answer = cx.state().set(key, vec![0; value]);
                assert_eq!(answer, expected.map_err(|reason| StateError::Refused(reason.into())));
                Ok(())
            };
            Invocation::new(event("ping", &())).run(set).expect_completed();
        };
        check("a", 0, Ok(()));
        check(&"a".repeat(1024), 256 * 1024, Ok(()));
        check("", 0, Err("the key is empty"));
        check(&"a".repeat(1025), 0, Err("the key has 1025 bytes, more than 1024"));
        check("a", 256 * 1024 + 1, Err("the value has 262145 bytes, more than 262144"));
    }

    #[test]
    fn what_a_failed_invocation_wrote_is_dropped() {
        let fail = |_: Event, cx: &mut Context<'_>| -> Result<(), Failure> {
            cx.state().set("a", "2")?;
            assert_eq!(cx.state().get("a")?.as_deref(), Some(&b"2"[..]));
            cx.state().delete("b")?;
            Err(Failure::rejected("no"))
        };
        let completion = Invocation::new(event("ping", &())).state("a", "1").state("b", "1").run(fail);
        assert_eq!(completion.state.into_values().collect::<Vec<_>>(), [b"1", b"1"]);
    }

    #[test]
    fn correlation_is_inherited_and_causation_is_the_event_handled() {
        let mut handled = event("ping", &());
        handled.extensions.push(("correlationid".into(), "first".into()));
        let emit = |_: Event, cx: &mut Context<'_>| {
            cx.emit("topic", Emission::new("pong"))?;
            cx.emit("topic", Emission::new("pong").extension("causationid", "own"))?;
            Ok(())
        };
        let completion = Invocation::new(handled).run(emit).expect_completed();
        let ids = |at: usize| ["causationid", "correlationid"].map(|name| completion.emitted[at].event.extension(name));
        assert_eq!(ids(0), [Some("event-1"), Some("first")]);
        assert_eq!(ids(1), [Some("own"), Some("first")]);
        assert_ne!(completion.emitted[0].event.id, completion.emitted[1].event.id);
    }
}
