//! The variable `event`, whose fields are bound only when an expression reads them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use bytestring::ByteString;
use cel::ExecutionError;
use cel::common::traits::Indexer;
use cel::common::types::{CelBytes, CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;

use super::{compile, data};
use crate::codec::is_json;
use crate::event::Event;
use crate::time::Timestamp;

static EVENT_TYPE: Type = Type::new_unspecified_type("event");

/// One event during one evaluation.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    event: &'a Event,
    key: Option<&'a Bytes>,
    data: OnceLock<Result<Box<dyn Val + 'a>, ExecutionError>>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(event: &'a Event, key: Option<&'a Bytes>) -> Self {
        Self { event, key, data: OnceLock::new() }
    }

    fn field<'b, 'v>(&'b self, name: &str) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        match name {
            "time" => self.event.time.ok_or_else(|| absent(name)).and_then(timestamp),
            "key" => self.key(),
            "data" => self.data(),
            _ => {
                let text = text(self.event, name).map(|text| CowVal::owned(CelString::from(&**text)));
                text.ok_or_else(|| absent(name))
            }
        }
    }

    fn key<'b, 'v>(&'b self) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        let key = self.key.ok_or_else(|| absent("key"))?;
        let text = std::str::from_utf8(key);
        text.map(|text| CowVal::owned(CelString::from(text)))
            .map_err(|_| ExecutionError::function_error("event.key", "the key is not UTF-8"))
    }

    fn data<'b, 'v>(&'b self) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        let data = self.data.get_or_init(|| read_data(self.event));
        match data {
            Ok(value) => Ok(CowVal::Borrowed(&**value)),
            Err(error) => Err(error.clone()),
        }
    }
}

/// The attribute of this name, if the event has it and keeps it as a text. The ordering key is not the event's.
pub(super) fn text<'a>(event: &'a Event, name: &str) -> Option<&'a ByteString> {
    match name {
        "id" => Some(&event.id),
        "source" => Some(&event.source),
        "type" => Some(&event.ty),
        "subject" => event.subject.as_ref(),
        "datacontenttype" => event.datacontenttype.as_ref(),
        "dataschema" => event.dataschema.as_ref(),
        "time" | "key" | "data" => None,
        _ => event.extension(name),
    }
}

fn absent(name: &str) -> ExecutionError {
    ExecutionError::NoSuchKey(Arc::new(format!("event.{name}")))
}

fn read_data(event: &Event) -> Result<Box<dyn Val + '_>, ExecutionError> {
    let bytes = event.data.as_deref().ok_or_else(|| absent("data"))?;
    let plain = || Box::new(CelBytes::from(bytes)) as Box<dyn Val + '_>;
    match event.datacontenttype.as_deref() {
        Some(content_type) if is_json(content_type) => {
            data::read(bytes).map_err(|e| ExecutionError::function_error("event.data", format!("not JSON: {e}")))
        }
        Some(_) => Ok(plain()),
        None => Ok(data::read(bytes).unwrap_or_else(|_| plain())),
    }
}

/// The language's own conversion makes the timestamp, so that its library of dates is not ours as well.
fn timestamp<'b, 'v>(time: Timestamp) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let args = vec![CowVal::owned(CelString::from(time.to_rfc3339()))];
    match compile::environment().find_overload("timestamp", &args) {
        Some(convert) => convert(args),
        None => Err(ExecutionError::undeclared_reference("timestamp")),
    }
}

/// Whole names come here first, such as `event.type`, and then their beginnings.
impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let rest = variable.strip_prefix("event")?;
        match rest.strip_prefix('.') {
            // What fails here fails again as a field of the event, with its reason.
            Some(name) => self.field(name).ok(),
            None => rest.is_empty().then(|| CowVal::Borrowed(self as &dyn Val)),
        }
    }
}

impl<'a> Indexer for Scope<'a> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        match index.downcast_ref::<CelString<'_>>() {
            Some(name) => self.field(name.inner()),
            None => Err(ExecutionError::UnexpectedType {
                got: index.get_type().name().to_owned(),
                want: "name of an attribute".to_owned(),
            }),
        }
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl<'a> Val for Scope<'a> {
    fn get_type(&self) -> &Type {
        &EVENT_TYPE
    }

    fn cel_type() -> &'static Type {
        &DYN_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(Scope::new(self.event, self.key))
    }
}
