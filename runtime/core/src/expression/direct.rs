//! What is known of a condition without the interpreter, which makes a dozen small values to compare two texts.

use cel::IdedExpr;
use cel::common::ast::{Expr, LiteralValue, operators};

use super::scope;
use crate::event::Event;

/// A condition, as far as it compares attributes that are texts with literals.
#[derive(Debug)]
pub(super) enum Direct {
    /// The attribute of this name is one of these texts.
    IsOneOf(String, Vec<String>),
    Not(Box<Self>),
    And(Box<[Self; 2]>),
    Or(Box<[Self; 2]>),
    /// Anything else.
    Unknown,
}

impl Direct {
    pub(super) fn of(condition: &IdedExpr) -> Self {
        let Expr::Call(call) = &condition.expr else { return Self::Unknown };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::EQUALS, [left, right]) => Self::is_one_of(left, std::slice::from_ref(right)),
            (operators::NOT_EQUALS, [left, right]) => {
                Self::Not(Box::new(Self::is_one_of(left, std::slice::from_ref(right))))
            }
            (operators::IN, [left, right]) => match &right.expr {
                Expr::List(list) if list.optional_indices.is_empty() => Self::is_one_of(left, &list.elements),
                _ => Self::Unknown,
            },
            (operators::LOGICAL_NOT, [operand]) => Self::Not(Box::new(Self::of(operand))),
            (operators::LOGICAL_AND, [left, right]) => Self::And(Box::new([left, right].map(Self::of))),
            (operators::LOGICAL_OR, [left, right]) => Self::Or(Box::new([left, right].map(Self::of))),
            _ => Self::Unknown,
        }
    }

    fn is_one_of(value: &IdedExpr, literals: &[IdedExpr]) -> Self {
        let Expr::Select(select) = &value.expr else { return Self::Unknown };
        if select.test || !matches!(&select.operand.expr, Expr::Ident(name) if name == "event") {
            return Self::Unknown;
        }
        let text = |literal: &IdedExpr| match &literal.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
            _ => None,
        };
        let texts: Option<Vec<String>> = literals.iter().map(text).collect();
        texts.map_or(Self::Unknown, |texts| Self::IsOneOf(select.field.clone(), texts))
    }

    /// The interpreter's answer for this event; none if it must be asked, be it for the reason why there is no answer.
    pub(super) fn answer(&self, event: &Event) -> Option<bool> {
        match self {
            Self::IsOneOf(name, texts) => {
                scope::text(event, name).map(|value| texts.iter().any(|text| **text == **value))
            }
            Self::Not(condition) => condition.answer(event).map(|answer| !answer),
            Self::And(conditions) => joined(conditions, event, false),
            Self::Or(conditions) => joined(conditions, event, true),
            Self::Unknown => None,
        }
    }
}

/// The answer of two conditions, either of which decides alone with this answer, even where the other one fails.
fn joined([left, right]: &[Direct; 2], event: &Event, decisive: bool) -> Option<bool> {
    let left = left.answer(event);
    if left == Some(decisive) {
        return left;
    }
    right.answer(event).filter(|&answer| answer == decisive || left.is_some())
}
