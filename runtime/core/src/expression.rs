//! Expressions over an event, in the Common Expression Language (<https://cel.dev>): filters and idempotency keys.
//!
//! There is one variable, `event`. Its fields are the attributes of CloudEvents by their names (`event.type`,
//! `event.subject`, `event.time` in RFC 3339, extension attributes), `event.key` (the ordering key as text) and
//! `event.data` (the data parsed as JSON); `timestamp(event.time)` computes with the time. A field that an event does not have is an error to read; `has(event.subject)`
//! asks for it. Fields are made when an expression reads them, so that a filter on the type costs no parsing of data.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use bytestring::ByteString;
use cel::common::traits::Indexer;
use cel::common::types::{CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::objects::{Key, Map};
use cel::{Context, Env, ExecutionError, Program, Value};

use crate::codec;
use crate::event::Event;
use crate::outcome::{Category, Failure};

/// Longest text of an expression, in bytes. It also bounds how deep its evaluation can nest.
pub const EXPRESSION_MAX_BYTES: usize = 1024;
/// Deepest nesting of brackets in an expression.
pub const EXPRESSION_MAX_NESTING: usize = 24;

/// Why a text is not an expression that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError(String);

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ExpressionError {}

/// Says which events a function handles.
#[derive(Debug)]
pub struct Filter(Expression);

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// If it is no expression, is too long or nested too deep, or names anything but `event`.
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        Expression::compile(source).map(Self)
    }

    /// Whether the function handles this event. `key` is the event's ordering key.
    ///
    /// # Errors
    /// Invalid, if the expression fails over this event or its value is not a boolean.
    pub fn matches(&self, event: &Event, key: Option<&Bytes>) -> Result<bool, Failure> {
        match self.0.evaluate(event, key) {
            Ok(Value::Bool(answer)) => Ok(answer),
            Ok(other) => Err(failure("filter", format_args!("it is {}, not a boolean", other.type_of()))),
            Err(error) => Err(failure("filter", error)),
        }
    }
}

/// Says what makes two events the same.
#[derive(Debug)]
pub struct KeyExpression(Expression);

impl KeyExpression {
    /// Compiles an idempotency key.
    ///
    /// # Errors
    /// If it is no expression, is too long or nested too deep, or names anything but `event`.
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        Expression::compile(source).map(Self)
    }

    /// The idempotency key of this event. `key` is its ordering key.
    ///
    /// # Errors
    /// Invalid, if the expression fails over this event, or its value is empty or neither text nor a whole number.
    pub fn evaluate(&self, event: &Event, key: Option<&Bytes>) -> Result<ByteString, Failure> {
        match self.0.evaluate(event, key) {
            Ok(Value::String(text)) if !text.is_empty() => Ok(ByteString::from(text.as_str())),
            Ok(Value::String(_)) => Err(failure("idempotency key", "it is empty")),
            Ok(Value::Int(number)) => Ok(number.to_string().into()),
            Ok(Value::UInt(number)) => Ok(number.to_string().into()),
            Ok(other) => {
                Err(failure("idempotency key", format_args!("it is {}, not a text; use string(...)", other.type_of())))
            }
            Err(error) => Err(failure("idempotency key", error)),
        }
    }
}

fn failure(what: &str, reason: impl fmt::Display) -> Failure {
    Failure::new(Category::Invalid, format!("the {what} cannot be computed: {reason}"))
}

struct Expression {
    source: String,
    program: Program,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Expression {
    fn compile(source: &str) -> Result<Self, ExpressionError> {
        if source.len() > EXPRESSION_MAX_BYTES {
            let message = format!("an expression has at most {EXPRESSION_MAX_BYTES} bytes, this one {}", source.len());
            return Err(ExpressionError(message));
        }
        if nesting(source) > EXPRESSION_MAX_NESTING {
            let message = format!("brackets nest at most {EXPRESSION_MAX_NESTING} deep in an expression");
            return Err(ExpressionError(message));
        }
        let program = environment()
            .compile(source)
            .map_err(|errors| ExpressionError(format!("it is not an expression: {}", one_line(&errors.to_string()))))?;
        let packed: String = source.split_whitespace().collect();
        let known = |name: &str| name == "event" || is_bound_by_a_macro(&packed, name);
        if let Some(unknown) = program.references().variables().into_iter().find(|name| !known(name)) {
            return Err(ExpressionError(format!("there is no variable `{unknown}`; the event is `event`")));
        }
        Ok(Self { source: source.to_owned(), program })
    }

    fn evaluate(&self, event: &Event, key: Option<&Bytes>) -> Result<Value, ExecutionError> {
        let subject = Subject { event, key, data: OnceLock::new() };
        let resolver = Resolver(&subject);
        let mut context = Context::with_env(Arc::clone(environment()));
        context.set_variable_resolver(&resolver);
        self.program.execute(&context)
    }
}

/// The standard library, made once.
fn environment() -> &'static Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| Arc::new(Env::stdlib()))
}

/// Whether a name is the variable of a macro such as `exists(item, ...)`, or one that such a macro makes for itself.
fn is_bound_by_a_macro(packed: &str, name: &str) -> bool {
    name.starts_with(['@', '_']) || packed.contains(&format!("({name},"))
}

/// How deep brackets and runs of prefix operators nest, taken from the text alone, before a parser recurses into it.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest, mut prefixes) = (0usize, 0, 0usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' | b'?' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'!' | b'-' => prefixes += 1,
            b' ' | b'\t' | b'\n' | b'\r' => continue,
            _ => prefixes = 0,
        }
        deepest = deepest.max(depth + prefixes);
    }
    deepest
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An event with what was made of it so far.
#[derive(Debug)]
struct Subject<'a> {
    event: &'a Event,
    key: Option<&'a Bytes>,
    data: OnceLock<Result<Box<dyn Val>, ExecutionError>>,
}

struct Resolver<'a>(&'a Subject<'a>);

impl VariableResolver for Resolver<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        (variable == "event").then(|| CowVal::owned(EventVal(self.0)))
    }
}

/// The variable `event`.
#[derive(Clone, Copy, Debug)]
struct EventVal<'a>(&'a Subject<'a>);

impl<'a> EventVal<'a> {
    fn field<'v>(&self, name: &str) -> Result<CowVal<'a, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        let event = self.0.event;
        let text = match name {
            "id" => Some(&event.id),
            "source" => Some(&event.source),
            "type" => Some(&event.ty),
            "subject" => event.subject.as_ref(),
            "datacontenttype" => event.datacontenttype.as_ref(),
            "dataschema" => event.dataschema.as_ref(),
            "time" => {
                let text = event.time.map(|at| at.to_rfc3339()).ok_or_else(|| missing(name))?;
                return Ok(CowVal::owned(CelString::from(text)));
            }
            "key" => return self.key(),
            "data" => return self.data(),
            extension => event.extension(extension),
        };
        text.map(|text| CowVal::owned(CelString::from(&**text))).ok_or_else(|| missing(name))
    }

    fn key<'v>(&self) -> Result<CowVal<'a, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        let key = self.0.key.ok_or_else(|| missing("key"))?;
        let text = std::str::from_utf8(key).map_err(|_| ExecutionError::function_error("key", "it is not UTF-8"))?;
        Ok(CowVal::owned(CelString::from(text)))
    }

    fn data<'v>(&self) -> Result<CowVal<'a, 'v>, ExecutionError>
    where
        'a: 'v,
    {
        match self.0.data.get_or_init(|| parse(self.0.event)) {
            Ok(value) => Ok(CowVal::Borrowed(&**value)),
            Err(error) => Err(error.clone()),
        }
    }
}

impl Val for EventVal<'_> {
    fn get_type(&self) -> &Type {
        &DYN_TYPE
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
        Box::new(*self)
    }
}

impl Indexer for EventVal<'_> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = index.downcast_ref::<CelString>().ok_or_else(|| missing("event[...]"))?;
        self.field(name.inner())
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = index.downcast_ref::<CelString>().ok_or_else(|| missing("event[...]"))?;
        self.field(name.inner()).map(CowVal::into_owned)
    }
}

fn missing(name: &str) -> ExecutionError {
    ExecutionError::no_such_key(name)
}

/// The data as a value. Data that is not declared as something else is taken for JSON.
fn parse(event: &Event) -> Result<Box<dyn Val>, ExecutionError> {
    let data = event.data.as_ref().ok_or_else(|| missing("data"))?;
    let unreadable = |reason: String| ExecutionError::function_error("data", reason);
    if let Some(media) = &event.datacontenttype
        && !codec::is_json(media)
    {
        return Err(unreadable(format!("data of type {media} cannot be looked into")));
    }
    let json: serde_json::Value =
        serde_json::from_slice(data).map_err(|error| unreadable(format!("the data is not JSON: {error}")))?;
    <Box<dyn Val>>::try_from(value_of(json)).map_err(|_| unreadable("it has no counterpart in CEL".to_owned()))
}

/// Whole numbers are `int`, as literals are, so that they can be computed with.
fn value_of(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(large)) => Value::UInt(large),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Arc::new(text)),
        Json::Array(items) => Value::List(Arc::new(items.into_iter().map(value_of).collect())),
        Json::Object(fields) => {
            let fields: HashMap<Key, Value> =
                fields.into_iter().map(|(name, value)| (Key::String(Arc::new(name)), value_of(value))).collect();
            Value::Map(Map { map: Arc::new(fields) })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::Timestamp;

    fn event() -> Event {
        Event {
            id: "7".into(),
            source: "/shop".into(),
            ty: "order.placed".into(),
            subject: Some("o-1".into()),
            time: Some(Timestamp::from_millis(1_700_000_000_000)),
            datacontenttype: Some("application/json".into()),
            dataschema: None,
            extensions: vec![("tenant".into(), "acme".into())],
            data: Some(Bytes::from_static(
                br#"{"order": 7, "large": 18446744073709551615, "delay": 61.5, "items": [{"sku": "x"}]}"#,
            )),
        }
    }

    fn check_filter(source: &str, expected: Result<bool, &str>) {
        let key = Bytes::from_static(b"k-1");
        let found = Filter::compile(source).expect(source).matches(&event(), Some(&key));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{source}"),
            (Err(failure), Err(fragment)) => {
                assert_eq!(failure.category, Category::Invalid);
                assert!(failure.reason.contains(fragment), "{source}: {}", failure.reason);
            }
            (found, _) => panic!("{source}: {found:?}"),
        }
    }

    #[test]
    fn a_filter_sees_attributes_extensions_key_and_data() {
        check_filter("event.type == 'order.placed'", Ok(true));
        check_filter("event.type in ['a', 'b']", Ok(false));
        check_filter("event.id == '7' && event.source.startsWith('/sh') && event.subject == 'o-1'", Ok(true));
        check_filter("timestamp(event.time) > timestamp('2020-01-01T00:00:00Z')", Ok(true));
        check_filter("event.tenant == 'acme' && event.key == 'k-1'", Ok(true));
        check_filter("event.data.order + 1 == 8 && event.data.delay > 60.0 && event.data.delay > 60", Ok(true));
        check_filter("event.data.items[0].sku == 'x' && size(event.data.items) == 1", Ok(true));
        check_filter("event.data.items.exists(item, item.sku == 'y')", Ok(false));
        check_filter("has(event.subject) && !has(event.dataschema) && !has(event.absent)", Ok(true));
        check_filter("event['type'] == 'order.placed'", Ok(true));
    }

    #[test]
    fn an_expression_that_fails_makes_the_event_invalid() {
        check_filter("event.absent == 'x'", Err("absent"));
        check_filter("event.data.absent > 1", Err("absent"));
        check_filter("event.type", Err("not a boolean"));
        check_filter("event.data.order / 0 == 1", Err("filter"));
        let text = Event { datacontenttype: Some("text/plain".into()), ..event() };
        let failure = Filter::compile("event.data.order == 1").expect("it compiles").matches(&text, None);
        assert!(failure.is_err_and(|f| f.reason.contains("text/plain")));
        let broken = Event { data: Some(Bytes::from_static(b"{")), ..event() };
        let failure = Filter::compile("event.data.order == 1").expect("it compiles").matches(&broken, None);
        assert!(failure.is_err_and(|f| f.reason.contains("not JSON")));
    }

    #[test]
    fn a_key_is_a_text_or_a_whole_number() {
        let evaluate = |source: &str| KeyExpression::compile(source).expect(source).evaluate(&event(), None);
        assert_eq!(evaluate("event.subject + string(event.data.order)").as_deref(), Ok("o-17"));
        assert_eq!(evaluate("event.data.order").as_deref(), Ok("7"));
        assert_eq!(evaluate("event.data.large").as_deref(), Ok("18446744073709551615"));
        assert!(evaluate("event.data.delay").is_err_and(|f| f.reason.contains("use string")));
        assert!(evaluate("''").is_err_and(|f| f.reason.contains("empty")));
        assert!(evaluate("event.key").is_err());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_reason() {
        let refusal = |source: &str| Filter::compile(source).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refusal("event.type ==").contains("not an expression"));
        assert!(refusal("evnt.type == 'x'").contains("`evnt`"));
        assert!(refusal(&"a".repeat(EXPRESSION_MAX_BYTES + 1)).contains("at most"));
        for deep in ["(", "[", "!", "-", "{1:", "true?", "- ("] {
            assert!(refusal(&deep.repeat(100)).contains("deep"), "{deep}");
        }
        assert!(refusal("").contains("not an expression"));
    }

    #[test]
    fn the_longest_expression_does_not_overflow_the_stack() {
        let sum = format!("1{} == 1", "+1".repeat((EXPRESSION_MAX_BYTES - 6) / 2));
        check_filter(&sum, Ok(false));
        let path = format!("has(event{})", ".a".repeat((EXPRESSION_MAX_BYTES - 11) / 2));
        drop(Filter::compile(&path).expect("it compiles").matches(&event(), None));
        let all = format!("true{}", "&&true".repeat((EXPRESSION_MAX_BYTES - 4) / 6));
        check_filter(&all, Ok(true));
    }

    proptest! {
        #[test]
        fn no_text_panics(source in "[a-z.()!\\[\\]{}'\"?:&|=<>+*/%0-9 -]{0,60}") {
            if let Ok(filter) = Filter::compile(&source) {
                drop(filter.matches(&event(), None));
            }
        }
    }
}
