//! From text to an expression that is known to be bounded and to name only what exists.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SourceInfo, operators};
use cel::common::value::CowVal;
use cel::{Env, IdedExpr, ParseErrors};

use super::{EXPRESSION_MAX_BYTES, ExpressionError};

/// Parentheses, brackets and calls within one another.
const NESTING_MAX: u16 = 24;
/// Operations on operations, which is how deep an evaluation recurses.
const DEPTH_MAX: usize = 64;
/// Loops within loops.
const LOOPS_MAX: usize = 2;
/// The parser recurses, and needs up to a kibibyte of stack for each byte of its text. This is four times as much.
const STACK_BYTES: usize = 4 * EXPRESSION_MAX_BYTES * 1024;

pub(super) const GLOBAL_FUNCTIONS: [&str; 12] =
    ["bool", "bytes", "double", "duration", "dyn", "int", "matches", "size", "string", "timestamp", "type", "uint"];
pub(super) const MEMBER_FUNCTIONS: [&str; 19] = [
    "contains",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "matches",
    "or",
    "orValue",
    "size",
    "startsWith",
    "value",
];
pub(super) const OPTIONAL_FUNCTIONS: [&str; 3] = ["none", "of", "ofNonZeroValue"];

/// The language with its standard library, made once.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));
    Arc::clone(&ENVIRONMENT)
}

/// Compiles on a thread of its own, for the sake of its stack: whatever a manifest holds, the caller's cannot overflow.
pub(super) fn compile(source: &str) -> Result<IdedExpr, ExpressionError> {
    if source.len() > EXPRESSION_MAX_BYTES {
        let message = format!("has {} bytes, and may have {EXPRESSION_MAX_BYTES}", source.len());
        return Err(ExpressionError { position: None, message });
    }
    let failed = |what: &str| ExpressionError { position: None, message: format!("could not be compiled: {what}") };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || parse(source));
        let thread = thread.map_err(|e| failed(&e.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(failed("the parser failed")))
    })
}

fn parse(source: &str) -> Result<IdedExpr, ExpressionError> {
    let parser = environment().parser().max_recursion_depth(NESTING_MAX);
    let (expression, places) = parser.parse_with_source_info(source).map_err(|errors| syntax_error(&errors))?;
    if depth(&expression) > DEPTH_MAX {
        let message = format!("chains more than {DEPTH_MAX} operations: use a list and `in`, or split it");
        return Err(ExpressionError { position: None, message });
    }
    let mut check = Check { variables: Vec::new(), loops: 0 };
    match check.expression(&expression) {
        Ok(()) => Ok(expression),
        Err(Refusal { id, message }) => Err(ExpressionError { position: position(&places, id), message }),
    }
}

fn syntax_error(errors: &ParseErrors) -> ExpressionError {
    let Some(first) = errors.errors.first() else {
        return ExpressionError { position: None, message: "is no expression".to_owned() };
    };
    let message = if first.msg.contains("Recursion limit") {
        format!("nests more than {NESTING_MAX} parentheses, brackets or calls")
    } else {
        // The parser goes on with a list of all tokens that could follow.
        first.msg.split(" expecting {").next().unwrap_or_default().to_owned()
    };
    let position = usize::try_from(first.pos.0).ok().zip(usize::try_from(first.pos.1).ok());
    ExpressionError { position: position.filter(|&(line, _)| line > 0), message }
}

/// Line and column, from 1, of a node.
fn position(places: &SourceInfo, id: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(places.offset_for(id)?.0).ok()?;
    let before: Vec<char> = places.source.chars().take(offset).collect();
    let line = before.iter().filter(|c| **c == '\n').count() + 1;
    let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
    Some((line, column))
}

fn depth(expression: &IdedExpr) -> usize {
    children(expression).into_iter().map(depth).max().unwrap_or(0) + 1
}

fn children(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_children(&entry.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Struct(message) => message.entries.iter().flat_map(|entry| entry_children(&entry.expr)).collect(),
    }
}

fn entry_children(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// Why a node is refused.
struct Refusal {
    id: u64,
    message: String,
}

fn refuse(at: &IdedExpr, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { id: at.id, message: message.into() })
}

/// Walks an expression whose depth is bounded.
struct Check<'e> {
    /// The variables of the loops around, innermost last.
    variables: Vec<&'e str>,
    loops: usize,
}

impl<'e> Check<'e> {
    fn expression(&mut self, at: &'e IdedExpr) -> Result<(), Refusal> {
        match &at.expr {
            Expr::Ident(name) => self.variable(at, name),
            Expr::Select(select) if names_a_type(&at.expr) && !select.test => Ok(()),
            Expr::Select(select) => {
                if self.is_event(&select.operand) {
                    check_attribute(at, &select.field)?;
                }
                self.expression(&select.operand)
            }
            Expr::Call(call) => self.call(at, call),
            Expr::Comprehension(comprehension) => self.comprehension(at, comprehension),
            Expr::Map(_) => refuse(at, "a map can only be looked up at once, as in {\"a\": 1}[event.type]"),
            Expr::Struct(_) => refuse(at, "messages cannot be made here"),
            Expr::Unspecified | Expr::Literal(_) | Expr::List(_) => self.all(children(at)),
        }
    }

    fn all(&mut self, expressions: impl IntoIterator<Item = &'e IdedExpr>) -> Result<(), Refusal> {
        expressions.into_iter().try_for_each(|expression| self.expression(expression))
    }

    fn is_event(&self, expression: &IdedExpr) -> bool {
        matches!(&expression.expr, Expr::Ident(name) if name == "event") && !self.variables.contains(&"event")
    }

    fn variable(&self, at: &IdedExpr, name: &str) -> Result<(), Refusal> {
        let is_type = environment().types().find_type(name).is_some();
        if name == "event" || is_type || self.variables.contains(&name) {
            return Ok(());
        }
        refuse(at, format!("there is no variable `{name}`: write `event.{name}`, if it is an attribute of the event"))
    }

    fn call(&mut self, at: &'e IdedExpr, call: &'e CallExpr) -> Result<(), Refusal> {
        let target = call.target.as_deref();
        let is_optional = matches!(target.map(|t| &t.expr), Some(Expr::Ident(name)) if name == "optional");
        let (known, other): (&[&str], &[&str]) = match target {
            _ if !call.func_name.starts_with(|c: char| c.is_ascii_alphabetic()) => return self.operator(call),
            Some(_) if is_optional => (&OPTIONAL_FUNCTIONS, &[]),
            Some(_) => (&MEMBER_FUNCTIONS, &GLOBAL_FUNCTIONS),
            None => (&GLOBAL_FUNCTIONS, &MEMBER_FUNCTIONS),
        };
        let name = &call.func_name;
        if !known.contains(&name.as_str()) {
            return match (other.contains(&name.as_str()), target) {
                (true, Some(_)) => refuse(at, format!("`{name}` is called as {name}(...)")),
                (true, None) => refuse(at, format!("`{name}` is called on a value, as in event.subject.{name}(...)")),
                (false, _) => refuse(at, format!("there is no function `{name}`: known are {}", known.join(", "))),
            };
        }
        if name == "matches" {
            check_pattern(at, call)?;
        }
        self.all(target.filter(|_| !is_optional).into_iter().chain(&call.args))
    }

    /// A map is allowed where it is looked up.
    fn operator(&mut self, call: &'e CallExpr) -> Result<(), Refusal> {
        let looked_up = match call.func_name.as_str() {
            operators::INDEX | operators::OPT_INDEX => Some(0),
            operators::IN => Some(1),
            _ => None,
        };
        for (place, arg) in call.args.iter().enumerate() {
            match &arg.expr {
                Expr::Map(_) if looked_up == Some(place) => self.all(children(arg))?,
                _ => self.expression(arg)?,
            }
        }
        if matches!(call.func_name.as_str(), operators::INDEX | operators::OPT_SELECT)
            && let [operand, index] = call.args.as_slice()
            && let Expr::Literal(LiteralValue::String(name)) = &index.expr
            && self.is_event(operand)
        {
            check_attribute(index, name.inner())?;
        }
        Ok(())
    }

    /// A loop within a loop goes over a part of what the outer one goes over, so that both together take as long as the
    /// data is large, and not its square.
    fn comprehension(&mut self, at: &'e IdedExpr, comprehension: &'e ComprehensionExpr) -> Result<(), Refusal> {
        if self.loops >= LOOPS_MAX {
            return refuse(at, format!("loops more than {LOOPS_MAX} deep: split it or do this in the handler"));
        }
        if self.loops > 0 && !self.is_part_of_item(&comprehension.iter_range) {
            return refuse(at, "a loop within a loop can only go over a field of the outer loop's variable");
        }
        self.expression(&comprehension.iter_range)?;
        let outer = self.variables.len();
        self.variables.push(&comprehension.iter_var);
        self.variables.extend(comprehension.iter_var2.as_deref());
        self.variables.push(&comprehension.accu_var);
        self.loops += 1;
        let ComprehensionExpr { accu_init, loop_cond, loop_step, result, .. } = comprehension;
        let checked = self.all([accu_init, loop_cond, loop_step, result]);
        self.loops -= 1;
        self.variables.truncate(outer);
        checked
    }

    fn is_part_of_item(&self, range: &IdedExpr) -> bool {
        match &range.expr {
            Expr::Ident(name) => self.variables.contains(&name.as_str()),
            Expr::Select(select) => self.is_part_of_item(&select.operand),
            Expr::Call(call) if call.func_name == operators::INDEX => {
                call.args.first().is_some_and(|operand| self.is_part_of_item(operand))
            }
            _ => false,
        }
    }
}

/// Whether a chain of names is a type, such as `google.protobuf.Timestamp`.
fn names_a_type(expression: &Expr) -> bool {
    qualified_name(expression).is_some_and(|name| environment().types().find_type(&name).is_some())
}

fn qualified_name(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) => Some(format!("{}.{}", qualified_name(&select.operand.expr)?, select.field)),
        _ => None,
    }
}

fn check_attribute(at: &IdedExpr, name: &str) -> Result<(), Refusal> {
    if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Ok(());
    }
    refuse(
        at,
        format!(
            "an event has no attribute `{name}`: there are id, source, type, subject, time, datacontenttype, \
             dataschema, key and data, and extensions, whose names are lower-case letters and digits"
        ),
    )
}

/// A pattern from an event could take any time to build; one from a manifest can be tried now.
fn check_pattern(at: &IdedExpr, call: &CallExpr) -> Result<(), Refusal> {
    let Some(Expr::Literal(pattern @ LiteralValue::String(_))) = call.args.last().map(|arg| &arg.expr) else {
        return refuse(at, "the pattern of `matches` must be a text in quotes");
    };
    let args = vec![CowVal::owned(cel::common::types::CelString::from("")), pattern.to_val()];
    match environment().find_overload("matches", &args).map(|matches| matches(args)) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => refuse(at, error.to_string()),
        None => refuse(at, "there is no function `matches`"),
    }
}
